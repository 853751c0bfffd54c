"""Common base of the int8 schemes for ONNX Runtime on a CPU: quantized nodes and the weight format."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from vitdeploy.exporters.quantization.number_format import INT7, INT8, NumberFormat


@dataclasses.dataclass(frozen=True)
class CpuInt8:
    """Products with weights use integers.

    Attention's products stay float32, because both factors would need measured ranges; so do the patch projection and
    the head, which are 1 % of the work, and Gelu, LayerNorm and softmax.

    Attributes:
        per_channel: True for a scale per output channel of a weight.
        reduce_range: 7-bit weights, for x86 processors without VNNI, which add two products in 16 bits with saturation.
    """

    target: ClassVar[str] = "cpu"
    operators: ClassVar[tuple[str, ...]] = ("MatMul",)

    per_channel: bool = True
    reduce_range: bool = False

    @property
    def weight(self) -> NumberFormat:
        return INT7 if self.reduce_range else INT8
