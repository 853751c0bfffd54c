"""int8 for ONNX Runtime on a CPU with calibrated ranges: QuantizeLinear and DequantizeLinear, U8S8."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, ClassVar

from vitdeploy.exporters.quantization.number_format import UINT8, NumberFormat, Range
from vitdeploy.exporters.quantization.schemes.cpu_int8 import CpuInt8
from vitdeploy.exporters.quantization.schemes.qdq import insert_qdq

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import onnx_ir as ir


@dataclasses.dataclass(frozen=True)
class StaticInt8(CpuInt8):
    """Unsigned activations and signed weights, for which x86 processors have an instruction.

    Results stay float32: ONNX Runtime then fuses a product to one operator, MatMulIntegerToFloat, and neither biases
    nor residual sums are rounded.
    """

    name: ClassVar[str] = "static"
    static: ClassVar[NumberFormat | None] = UINT8
    min_opset: ClassVar[int] = 13

    def write(self, model: ir.Model, nodes: Sequence[ir.Node], ranges: Mapping[str, Range]) -> None:
        """See `Scheme`."""
        insert_qdq(model, nodes, ranges, UINT8, self.weight, per_channel=self.per_channel)
