"""One backend, one precision, two artifacts: the named one is opened, and a tuned choice is named again elsewhere."""

from __future__ import annotations

import contextlib
import json
import runpy
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

import openvino
import pytest
from bundles import write_bundle
from raising import raises
from triton_schema import read_config

import vitdeploy
from vitdeploy.errors import UsageError
from vitdeploy.images.pixel_limit import MAX_PIXELS_VARIABLE
from vitdeploy.serving.model_repository.model_folder import CONFIG
from vitdeploy.serving.model_repository.python_options import PythonBackend
from vitdeploy.serving.model_repository.python_repository import write_python_model
from vitdeploy.serving.scale_out.batch_callable import BatchPredictor, DecodeImages, resolve
from vitdeploy.system.processor import processor_identity
from vitdeploy.tuning.record import record_choice
from vitdeploy.tuning.variant import Variant

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from vitdeploy.bundle.bundle import Bundle
    from vitdeploy.predictor import Predictor

OPTIONS = {"inference_threads": 1, "memory_map": False}


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """OpenVINO prefers `openvino-fp32`, which takes floats; the choice is `onnx-fp32`, which takes bytes."""
    bundle = write_bundle(tmp_path_factory.mktemp("tuned"), formats=("openvino",))
    bundle = vitdeploy.export(bundle.path, output=bundle.path, graph=vitdeploy.GraphOptions(input="uint8"))
    machine = processor_identity() | {"engine": f"openvino {openvino.__version__}"}
    return record_choice(
        bundle, Variant.of(bundle, bundle.artifact("onnx", "fp32")), (), backend="openvino", options=OPTIONS,
        batch_size=3, machine=machine, evidence={},
    )  # fmt: skip


def of_batches(path: Path, folder: Path) -> Predictor:
    return BatchPredictor(path, threads=1).predictor


def of_reloading(path: Path, folder: Path) -> Predictor:
    with vitdeploy.ReloadingPredictor(path, **resolve(path, {}, 1).options) as reloading:
        reloading.reload()
        return reloading.lease().predictor


@pytest.mark.parametrize("opened", [of_batches, of_reloading])
def test_a_tuned_choice_is_opened_again(
    tuned: Bundle, tmp_path: Path, opened: Callable[[Path, Path], Predictor]
) -> None:
    with vitdeploy.load(tuned.path) as predictor:
        expected, details = predictor.details, predictor.runtime.details
    with opened(tuned.path, tmp_path / "models") as predictor:
        assert expected["files"][-1] == "onnx/model.onnx"
        assert (predictor.details["files"], predictor.details["backend"]) == (expected["files"], "openvino")
        assert predictor.runtime.details == details
        assert DecodeImages.of(tuned.path).pixels == predictor.runtime.pixels


@pytest.mark.parametrize(("instances", "threads"), [(1, 0), (2, 1), (1, 2)])
def test_triton_opens_a_tuned_choice(
    tuned: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, instances: int, threads: int
) -> None:
    """As Triton starts an instance, with the arguments that it passes."""
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", ModuleType("triton_python_backend_utils"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv(MAX_PIXELS_VARIABLE, "1")  # which the model sets
    options = PythonBackend(instances=instances, threads=threads, top_k=1)
    written = write_python_model(tuned.path, tmp_path / "models", options)
    config = read_config(written.path / CONFIG)
    model = runpy.run_path(str(written.path / "1" / "model.py"))["TritonPythonModel"]()
    model.initialize({"model_config": json.dumps(config), "model_repository": str(written.path), "model_version": "1"})
    with contextlib.closing(model.answers):
        predictor = model.answers._predictor
        assert predictor.details["files"][-1] == "onnx/model.onnx"
        assert predictor.runtime.details["inference_threads"] == max(1, threads)
        assert predictor.runtime.details["memory_map"] is False


@pytest.mark.parametrize("backend", [None, "openvino"])
@pytest.mark.parametrize("name", ["onnx-fp32", "openvino-fp32"])
def test_the_named_artifact_is_opened(tuned: Bundle, name: str, backend: str | None) -> None:
    expected = backend or {"onnx-fp32": "onnxruntime", "openvino-fp32": "openvino"}[name]
    with vitdeploy.load(tuned.path, artifact=name, backend=backend) as predictor:
        assert predictor.details["files"][-1].startswith(name.split("-")[0])
        assert predictor.details["backend"] == expected
        assert "tuned" not in predictor.details
        assert name not in predictor.details["other_artifacts"]


@pytest.mark.parametrize(
    ("asked", "what"),
    [
        ({"artifact": "onnx-int8"}, "artifact"),
        ({"artifact": "onnx-fp32", "precision": "int8"}, "precision"),
        ({"artifact": "openvino-fp32", "backend": "onnxruntime"}, "backend"),
        ({"artifact": "onnx-fp32", "backend": "torch"}, "backend"),
    ],
)
def test_a_name_that_does_not_fit_is_refused(tuned: Bundle, asked: dict[str, Any], what: str) -> None:
    with raises(UsageError, what=what, found=asked[what]):
        vitdeploy.load(tuned.path, **asked)
