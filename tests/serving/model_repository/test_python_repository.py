"""A bundle for Triton's Python backend: its configuration against the published schema, and what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import write_bundle
from command_line import run
from raising import raises
from triton_schema import read_config

from vitdeploy import PythonBackend, load, write_python_model
from vitdeploy.bundle.bundle import Bundle
from vitdeploy.bundle.scores import ProblemType
from vitdeploy.errors import BundleError, UsageError
from vitdeploy.serving.model_repository.model_folder import CONFIG
from vitdeploy.specs import Task

FILES = ("1/model.py", "1/bundle/manifest.json", "1/bundle/config.json", "1/bundle/preprocessor_config.json")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_bundle(tmp_path_factory.mktemp("python"))


@pytest.fixture
def copy(bundle: Bundle, tmp_path: Path) -> Bundle:
    return Bundle.open(shutil.copytree(bundle.path, tmp_path / "vit"))


def tensor(name: str, kind: str, *dims: int) -> dict[str, Any]:
    return {"name": name, "data_type": kind, "dims": [str(axis) for axis in dims]}


def settings(config: dict[str, Any]) -> dict[str, str]:
    return {name: value["string_value"] for name, value in config["parameters"].items()}


def test_a_classifier(copy: Bundle, tmp_path: Path) -> None:
    options = PythonBackend(
        top_k=2, max_batch_size=8, max_delay_ms=5, max_queue=16, instances=2, threads=1, max_image_pixels=100
    )
    model = write_python_model(copy.path, tmp_path / "models", options, name="pets", version=3)
    assert (model.name, model.artifact, model.path) == ("pets", "onnx-fp32", tmp_path / "models" / "pets")
    assert model.files == (CONFIG, *(f"3/{name[2:]}" for name in FILES), "3/bundle/onnx/model.onnx")
    config = read_config(model.path / CONFIG)
    assert settings(config) == {
        "backend": "onnxruntime", "precision": "fp32", "threads": "1", "top_k": "2",
        "max_image_bytes": str(32 * 2**20), "max_image_pixels": "100",
    }  # fmt: skip
    del config["parameters"]
    assert config == {
        "name": "pets",
        "backend": "python",
        "max_batch_size": 8,
        "input": [tensor("image", "TYPE_STRING", 1)],
        "output": [
            tensor("labels", "TYPE_STRING", 2), tensor("scores", "TYPE_FP32", 2), tensor("indices", "TYPE_INT32", 2)
        ],
        "instance_group": [{"count": 2, "kind": "KIND_CPU"}],
        "dynamic_batching": {"max_queue_delay_microseconds": "5000", "default_queue_policy": {"max_queue_size": 16}},
    }  # fmt: skip
    with load(copy.path) as before, load(model.path / "3" / "bundle") as served:
        pixels = np.zeros((9, 9, 3), np.uint8)
        assert served.predict(pixels) == before.predict(pixels)


def test_a_feature_extractor_and_tensors(tmp_path: Path) -> None:
    features = write_bundle(tmp_path, Task.FEATURES)
    model = write_python_model(features.path, tmp_path / "models", PythonBackend(input="tensors"))
    config = read_config(model.path / CONFIG)
    assert model.name == "bundle"
    assert config["input"] == [tensor("pixel_values", "TYPE_FP32", 3, 32, 32)]
    assert config["output"] == [tensor("embedding", "TYPE_FP32", 24)]


def test_a_regression_has_all_its_values(tmp_path: Path) -> None:
    regression = write_bundle(tmp_path, problem_type=ProblemType.REGRESSION)
    config = read_config(write_python_model(regression.path, tmp_path / "m", PythonBackend(top_k=1)).path / CONFIG)
    assert [output["dims"] for output in config["output"]] == [["3"]] * 3


def test_a_model_is_replaced_unless_it_was_altered(copy: Bundle, tmp_path: Path) -> None:
    first = write_python_model(copy.path, tmp_path / "models")
    content = {path: path.read_bytes() for path in first.path.rglob("*") if path.is_file()}
    (first.path / "1" / "__pycache__").mkdir()
    (first.path / "1" / "__pycache__" / "model.cpython-311.pyc").touch()  # Python's, as Triton leaves it
    assert write_python_model(copy.path, tmp_path / "models") == first
    assert {path: path.read_bytes() for path in first.path.rglob("*") if path.is_file()} == content
    (first.path / "1" / "model.py").write_text("pass")
    with raises(UsageError, what="name", where=first.path):
        write_python_model(copy.path, tmp_path / "models")


def test_bundles_that_are_refused(copy: Bundle, tmp_path: Path) -> None:
    masked = write_bundle(tmp_path, Task.MASKED_IMAGE_MODELING)
    with raises(UsageError, what="task", found=masked.manifest.task):
        write_python_model(masked.path, tmp_path / "models")
    with raises(UsageError, what="backend", found="torch"):
        write_python_model(copy.path, tmp_path / "models", PythonBackend(backend="torch"))
    with raises(UsageError, what="precision"):
        write_python_model(copy.path, tmp_path / "models", PythonBackend(precision="int8"))
    with (copy.path / "onnx" / "model.onnx").open("ab") as file:
        file.write(b"?")
    with raises(BundleError, where=copy.path / "onnx" / "model.onnx"):
        write_python_model(copy.path, tmp_path / "models")
    assert not list((tmp_path / "models").iterdir())


@pytest.mark.parametrize(
    ("name", "value"),
    [("input", "text"), ("top_k", 0), ("max_batch_size", 0), ("max_delay_ms", -1), ("max_queue", 0), ("instances", 0),
     ("threads", -1), ("max_image_bytes", 0), ("max_image_pixels", True), ("backend", "tf")],
)  # fmt: skip
def test_options_that_are_refused(name: str, value: Any) -> None:
    with raises(UsageError, what=name, found=value):
        PythonBackend(**{name: value})


def test_the_command(copy: Bundle, tmp_path: Path) -> None:
    models = tmp_path / "models"
    made = run("triton", copy.path, models, "--python-backend", "--top-k", 1, "--max-delay", 7, "--json")
    assert (made.code, made.err) == (0, "")
    assert made.json["files"] == [CONFIG, *FILES, "1/bundle/onnx/model.onnx"]
    config = read_config(models / "vit" / CONFIG)
    assert (settings(config)["top_k"], config["dynamic_batching"]["max_queue_delay_microseconds"]) == ("1", "7000")
    for line in (["--top-k", 1], ["--python-backend", "--artifact", "onnx-fp32"]):
        refused = run("triton", copy.path, models, *line)
        assert (refused.code, refused.out) == (2, "")
    assert run("triton", copy.path, models, "--max-batch-size", 2).code == 0
    assert read_config(models / "vit-onnx-fp32" / CONFIG)["max_batch_size"] == 2
