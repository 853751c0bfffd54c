"""Ranges laid onto 8 bits, by hand and as ONNX Runtime's own operators do it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from small_graphs import graph_of

from vitdeploy.exporters.quantization.number_format import FP8, INT7, INT8, UINT8, NumberFormat, Range

VALUES = np.concatenate([np.linspace(-3, 3, 1001), [0.5, -0.5, 1.5, 100.0, -100.0]]).astype(np.float32)


@pytest.mark.parametrize(
    ("number_format", "values", "scale", "zero_point"),
    [
        (UINT8, Range(-1.0, 1.55), 0.01, 100),
        (UINT8, Range(0.0, 2.55), 0.01, 0),
        (UINT8, Range(1.0, 2.55), 0.01, 0),  # extended to 0
        (UINT8, Range(-2.55, -1.0), 0.01, 255),
        (INT8, Range(-1.27, 0.5), 0.01, 0),
        (INT7, Range(-0.64, 0.5), 0.01, 0),
        (FP8, Range(-1.0, 4.48), 0.01, 0),
    ],
)
def test_scale_and_zero_point(number_format: NumberFormat, values: Range, scale: float, zero_point: int) -> None:
    found, at = number_format.scale_of(values)
    assert (found.dtype.name, at) == ("float32", zero_point)
    assert found == pytest.approx(scale, rel=1e-6)  # a float32
    assert number_format.rounded(np.zeros(1), values) == 0


@pytest.mark.parametrize("number_format", [UINT8, INT8, FP8])
def test_nothing_but_zeros_has_a_scale_that_can_be_divided_by(number_format: NumberFormat) -> None:
    scale, zero_point = number_format.scale_of(Range(0.0, 0.0))
    assert np.isfinite(np.float32(1) / scale)
    assert zero_point == 0


@pytest.mark.parametrize("number_format", [UINT8, INT8, FP8], ids=["uint8", "int8", "fp8"])
@pytest.mark.parametrize("values", [Range(-2.0, 3.0), Range(0.0, 1.0)], ids=str)
def test_values_are_rounded_as_onnxruntime_does(number_format: NumberFormat, values: Range) -> None:
    scale, zero_point = number_format.scale_of(values)
    found = number_format.rounded(VALUES, values)
    want = _round_trip(VALUES, scale, zero_point, number_format.dtype)
    # dividing in float32 and in float64 may part where a value lies between two numbers
    apart = np.abs(found - want) > 1e-6
    assert apart.mean() < 0.01
    assert np.abs(found - want).max() <= 1.001 * (scale if number_format is not FP8 else 32 * scale)


def test_the_largest_value_of_a_range_is_kept() -> None:
    for number_format in (UINT8, INT8, FP8):
        assert number_format.rounded(np.array([7.0]), Range(-5.0, 7.0)) == pytest.approx(7, abs=12 / 255)


def _round_trip(values: np.ndarray, scale: np.float32, zero_point: int, dtype: ir.DataType) -> np.ndarray:
    text = "g (float[n] x) => (float[n] y) { q = QuantizeLinear(x, scale, zero) y = DequantizeLinear(q, scale, zero) }"
    model = ir.to_proto(graph_of(text, scale=np.array(scale), zero=np.array(zero_point, dtype.numpy())))
    (found,) = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(
        None, {"x": values}
    )
    return np.asarray(found)
