"""The quantization scheme of a precision and a target."""

from __future__ import annotations

from typing import Any

import click
import pytest
from raising import raises

from vitdeploy.cli.export import export as export_command
from vitdeploy.errors import UsageError
from vitdeploy.exporters import EXPORTERS, quantization_target
from vitdeploy.exporters.quantization.ranges.methods import METHODS
from vitdeploy.exporters.quantization.schemes.lookup import SCHEMES, scheme_for
from vitdeploy.specs import ExportSpec, Precision


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
    spec = ExportSpec(Precision(precision), target=target, scheme=name)
    scheme = scheme_for(spec, calibrated=calibrated)
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
    with raises(UsageError, what="target", found="cpu"):
        quantization_target(["onnx", "tensorrt"], "int8", "cpu")


@pytest.mark.parametrize(
    ("options", "what", "found"),
    [
        ({"precision": Precision.FP8, "target": "cpu"}, "target", "cpu"),
        ({"target": "gpu"}, "target", "gpu"),
        ({"scheme": "best"}, "scheme", "best"),
        ({"scheme": "dynamic", "target": "tensorrt"}, "scheme", "dynamic"),
        ({"scheme": "static"}, "calibration_data", None),
        ({"target": "tensorrt"}, "calibration_data", None),
        ({"precision": Precision.FP8}, "calibration_data", None),
        ({"scheme": "dynamic", "calibration": "mse"}, "calibration", "mse"),
    ],
    ids=str,
)
def test_what_there_is_not(options: dict[str, Any], what: str, found: str | None) -> None:
    with raises(UsageError, what=what, found=found):
        scheme_for(ExportSpec(**{"precision": Precision.INT8, **options}), calibrated=False)


def test_weights_of_7_bits_are_for_a_cpu() -> None:
    with raises(UsageError, what="reduce_range", found="tensorrt"):
        scheme_for(ExportSpec(Precision.FP8, reduce_range=True), calibrated=True)


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
