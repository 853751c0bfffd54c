"""Which scheme a target gets."""

from __future__ import annotations

from typing import Any

import click
import pytest

from vitdeploy.cli.export import export as export_command
from vitdeploy.errors import UsageError
from vitdeploy.exporters import EXPORTERS, quantization_target
from vitdeploy.exporters.quantization.ranges.methods import METHODS
from vitdeploy.exporters.quantization.schemes.lookup import SCHEMES, find_scheme
from vitdeploy.specs import Precision


@pytest.mark.parametrize(
    ("precision", "target", "name", "calibrated", "found"),
    [
        ("int8", None, None, False, "dynamic"),
        ("int8", None, None, True, "static"),
        ("int8", "cpu", "dynamic", True, "dynamic"),
        ("int8", "tensorrt", None, True, "static-symmetric"),
        ("fp8", None, None, True, "static-e4m3"),
        ("fp8", "tensorrt", None, True, "static-e4m3"),
    ],
)
def test_the_target_and_the_images_decide(
    precision: str, target: str | None, name: str | None, calibrated: bool, found: str
) -> None:
    scheme = find_scheme(Precision(precision), target, name, calibrated=calibrated, wanted_images=512)
    assert scheme.name == found
    assert scheme.target == (target or ("tensorrt" if precision == "fp8" else "cpu"))


def test_the_format_decides_the_target() -> None:
    for precision in ("int8", "fp8"):
        known = [target for of, target in SCHEMES if of == precision]
        assert EXPORTERS["onnx"].quantized_for[precision] == tuple(known)
        for engine in ("tensorrt", "tensorrt-rtx"):
            assert quantization_target([engine], precision, None) == "tensorrt"
            assert quantization_target(["onnx", engine], precision, None) == "tensorrt", "one ONNX artifact for both"
    assert quantization_target(["onnx"], "int8", None) == "cpu"
    assert quantization_target(["onnx"], "int8", "tensorrt") == "tensorrt"
    assert quantization_target(["onnx", "tensorrt"], "fp16", None) is None
    with pytest.raises(UsageError, match="target for tensorrt in int8 must be tensorrt, got 'cpu'"):
        quantization_target(["onnx", "tensorrt"], "int8", "cpu")


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"precision": Precision.FP8, "target": "cpu"}, "target for fp8 must be tensorrt, got 'cpu'"),
        ({"target": "gpu"}, "target for int8 must be cpu or tensorrt, got 'gpu'"),
        ({"name": "best"}, "scheme for int8 on cpu must be static or dynamic, got 'best'"),
        ({"name": "dynamic", "target": "tensorrt"}, "scheme for int8 on tensorrt must be static-symmetric"),
        ({"name": "static"}, r"int8 for cpu \(static\) needs images .* some 512 images like those to come"),
        ({"target": "tensorrt"}, r"int8 for tensorrt \(static-symmetric\) needs images .*--calibration-data"),
        ({"precision": Precision.FP8}, r"fp8 for tensorrt \(static-e4m3\) needs images"),
    ],
    ids=str,
)
def test_what_there_is_not(options: dict[str, Any], problem: str) -> None:
    arguments = {"precision": Precision.INT8, "target": None, "name": None, "calibrated": False, "wanted_images": 512}
    with pytest.raises(UsageError, match=problem):
        find_scheme(**arguments | options)


def test_the_command_line_knows_every_target_scheme_and_method() -> None:
    choices = {parameter.name: parameter.type for parameter in export_command.params}
    of_cpu = {scheme.name for scheme in SCHEMES[Precision.INT8, "cpu"]}
    for name, want in (
        ("target", {target for _, target in SCHEMES}),
        ("scheme", of_cpu),
        ("calibration", {"auto", *METHODS}),
    ):
        found = choices[name]
        assert isinstance(found, click.Choice)
        assert set(found.choices) == want
