"""The choice of the artifact if backend or precision is not given, in Python and by `predict`."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from command_line import run
from faults import copy_of
from raising import raises

import vitdeploy
from vitdeploy.assess.runs.targets import select
from vitdeploy.assets import default_checkpoint, held_out_images
from vitdeploy.bundle.bundle import Bundle
from vitdeploy.errors import UsageError
from vitdeploy.runtimes.choice import Choice, choose

ONNX, FP16 = "onnxruntime", "fp16"


@pytest.mark.parametrize(
    ("artifacts", "backend", "precision", "chosen"),
    [
        ("onnx-fp32", None, None, (ONNX, "fp32")),
        ("onnx-int8", None, None, (ONNX, "int8")),
        ("tensorrt-fp16", None, None, ("tensorrt", FP16)),
        ("onnx-fp32 onnx-int8", None, None, (ONNX, "fp32", ("onnx-int8",))),
        ("torchscript-fp32 onnx-fp16 onnx-int8", None, None, (ONNX, FP16, ("torchscript-fp32", "onnx-int8"))),
        ("onnx-fp32 tensorrt-fp16", None, FP16, ("tensorrt", FP16)),
        ("tensorrt-fp16 onnx-fp16", None, FP16, (ONNX, FP16, ("tensorrt-fp16",))),
        ("onnx-fp32 tensorrt-fp16 tensorrt-int8", "tensorrt", None, ("tensorrt", FP16, ("tensorrt-int8",))),
        ("onnx-fp16", "onnxruntime-tensorrt", None, ("onnxruntime-tensorrt", FP16)),
        ("onnx-fp16", "torch", None, ("torch", "fp32")),
        ("onnx-fp16", None, "int8", (ONNX, "int8")),  # which is refused when it is opened
        ("onnx-fp16", "torchscript", None, ("torchscript", "fp32")),
        ("onnx-fp16", "tensorflow", None, ("tensorflow", "fp32")),
        ("", None, None, (ONNX, "fp32")),
        ("openvino-int8", None, None, ("openvino", "int8")),
        ("openvino-fp32 onnx-fp32", None, None, (ONNX, "fp32", ("openvino-fp32",))),
        ("onnx-fp32 openvino-fp32", "openvino", None, ("openvino", "fp32")),
        ("onnx-fp32 openvino-int8", "openvino", None, ("openvino", "int8", ("onnx-fp32",))),
        ("onnx-fp32 openvino-int8", "openvino", "fp32", ("openvino", "fp32")),
    ],
)
def test_the_choice(
    digits: Bundle, artifacts: str, backend: str | None, precision: str | None, chosen: tuple[str, str]
) -> None:
    assert choose(bundle_with(digits, artifacts), backend, precision) == Choice(*chosen)


def test_a_backend_runs_its_first_format_of_two_in_a_precision(digits: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = bundle_with(digits, "onnx-fp32 openvino-int8 openvino-fp32 onnx-fp16")
    assert [str(selected) for selected in select(bundle, ["openvino"])] == [
        "openvino-int8 on openvino", "openvino-fp32 on openvino", "onnx-fp16 on openvino"
    ]  # fmt: skip
    assert [str(selected) for selected in select(bundle, ["openvino:fp32", "openvino:fp16"])] == [
        "openvino-fp32 on openvino", "onnx-fp16 on openvino"
    ]  # fmt: skip
    assert [str(selected) for selected in select(bundle)[1:]] == [
        "onnx-fp32 on onnxruntime", "openvino-int8 on openvino", "openvino-fp32 on openvino", "onnx-fp16 on onnxruntime"
    ]  # fmt: skip
    with raises(UsageError, what="precision", found="openvino-bf16"):
        select(bundle, ["openvino:bf16"])


def bundle_with(digits: Bundle, artifacts: str) -> Bundle:
    """The bundle with artifacts of these names in its manifest."""
    (artifact,) = digits.manifest.artifacts
    made = []
    for name in artifacts.split():
        kind, _, of = name.rpartition("-")
        made.append(dataclasses.replace(artifact, format=kind, precision=of))
    return Bundle(digits.path, dataclasses.replace(digits.manifest, artifacts=tuple(made)))


def test_the_only_artifact_is_taken_and_of_several_it_is_told_which(digits: Bundle, tmp_path: Path) -> None:
    image = next(iter(sorted((held_out_images() / "3").iterdir())))
    checkpoint = default_checkpoint()
    only = vitdeploy.export(checkpoint, output=tmp_path / "only", precision=FP16)
    predicted = run("predict", only.path, image)
    assert (predicted.code, predicted.err) == (0, "")
    assert predicted.out.startswith(f"{only.path} on onnxruntime fp16\n")
    assert "also in the bundle" not in predicted.out
    both = copy_of(digits, tmp_path / "both")
    vitdeploy.export(checkpoint, output=both.path, precision=FP16)
    predicted = run("predict", both.path, image)
    assert predicted.out.startswith(f"{both.path} on onnxruntime fp32\n")
    assert predicted.out.endswith("also in the bundle: onnx-fp16 (--backend, --precision)\n")
    assert "also" not in run("predict", both.path, image, "--precision", FP16).out
    found = run("predict", both.path, image, "--json").json
    assert (found["backend"], found["precision"]) == (ONNX, "fp32")
    with vitdeploy.load(only.path) as predictor:
        assert (predictor.details["backend"], predictor.details["precision"]) == (ONNX, FP16)
