"""Shared by the int8 schemes for ONNX Runtime on a CPU: the nodes that they quantize, and the format of weights."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from vitdeploy.exporters.quantization.number_format import INT7, INT8, NumberFormat


@dataclasses.dataclass(frozen=True)
class CpuInt8:
    """Products with weights are of integers.

    Those of attention, whose factors both would have to be measured, stay float32; so do the patch projection and the
    head, which are 1 % of the work, and Gelu, LayerNorm and softmax.

    Attributes:
        per_channel: Whether each output channel of a weight has its own scale.
        reduce_range: 7 bits for weights, for x86 processors without VNNI: there two products are added in 16 bits, and
            what exceeds these is lost.
    """

    target: ClassVar[str] = "cpu"
    operators: ClassVar[tuple[str, ...]] = ("MatMul",)

    per_channel: bool = True
    reduce_range: bool = False

    @property
    def weight(self) -> NumberFormat:
        return INT7 if self.reduce_range else INT8
