"""8-bit number formats, and the mapping of values to them."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

# Scale of a tensor of zeros, or nearly so: 1/scale must be a float32.
_SMALLEST_SCALE = float(np.finfo(np.float32).tiny)


@dataclasses.dataclass(frozen=True)
class Range:
    """Range of a tensor's representable values; values outside are clipped."""

    lowest: float
    highest: float

    @property
    def magnitude(self) -> float:
        return max(abs(self.lowest), abs(self.highest))


@dataclasses.dataclass(frozen=True)
class NumberFormat:
    """8-bit numbers q that represent (q - zero point) * scale.

    Attributes:
        dtype: ONNX type of q.
        symmetric: True if the zero point is always 0.
    """

    dtype: ir.DataType
    lowest: float
    highest: float
    symmetric: bool

    def scale_of(self, values: Range) -> tuple[np.float32, int]:
        """Scale and zero point that represent a range, and 0 exactly.

        Padding and the zeros of softmax must stay 0, so a range without 0 is extended to it (Jacob et al. 2018,
        arXiv:1712.05877, section 2.1).
        """
        if self.symmetric:
            return np.float32(max(values.magnitude / self.highest, _SMALLEST_SCALE)), 0
        low, high = min(values.lowest, 0.0), max(values.highest, 0.0)
        scale = np.float32(max((high - low) / (self.highest - self.lowest), _SMALLEST_SCALE))
        return scale, int(np.clip(np.rint(self.lowest - low / scale), self.lowest, self.highest))

    def quantized(self, values: NDArray[np.floating], scale: NDArray[np.float32] | np.float32) -> NDArray[np.generic]:
        """The nearest q for float32 values, with a zero point of 0; halves round to even, as in ONNX."""
        scaled = np.clip(values / scale, self.lowest, self.highest)
        if not self.dtype.is_floating_point():
            scaled = np.rint(scaled)
        return np.asarray(scaled.astype(self.dtype.numpy()))

    def rounded(self, values: NDArray[np.floating], of: Range) -> NDArray[np.float64]:
        """Values after quantization with a range's scale and dequantization."""
        scale, zero_point = self.scale_of(of)
        q = np.clip(values / scale + zero_point, self.lowest, self.highest)
        kept = q.astype(self.dtype.numpy()).astype(np.float64) if self.dtype.is_floating_point() else np.rint(q)
        return np.asarray((kept - zero_point) * np.float64(scale))


UINT8 = NumberFormat(ir.DataType.UINT8, 0, 255, symmetric=False)
# 127 scales both signs; -128 is QuantizeLinear's result for values out of range.
INT8 = NumberFormat(ir.DataType.INT8, -128, 127, symmetric=True)
# For weights if the sum of two products must fit 16 bits: x86 without VNNI.
INT7 = NumberFormat(ir.DataType.INT8, -64, 64, symmetric=True)
FP8 = NumberFormat(ir.DataType.FLOAT8E4M3FN, -448, 448, symmetric=True)  # Micikevicius et al. 2022, arXiv:2209.05433
