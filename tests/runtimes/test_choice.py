"""The choice of the artifact if backend or precision is not given, in Python and by `predict`."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from command_line import run
from faults import copy_of

import vitdeploy
from vitdeploy.assets import default_checkpoint, held_out_images
from vitdeploy.bundle.bundle import Bundle
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
    ],
)
def test_the_choice(
    digits: Bundle, artifacts: str, backend: str | None, precision: str | None, chosen: tuple[str, str]
) -> None:
    (artifact,) = digits.manifest.artifacts
    made = []
    for name in artifacts.split():
        kind, _, of = name.rpartition("-")
        made.append(dataclasses.replace(artifact, format=kind, precision=of))
    manifest = dataclasses.replace(digits.manifest, artifacts=tuple(made))
    assert choose(Bundle(digits.path, manifest), backend, precision) == Choice(*chosen)


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
