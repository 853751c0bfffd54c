"""fp8 for TensorRT: E4M3 between QuantizeLinear and DequantizeLinear."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, ClassVar

from vitdeploy.exporters.quantization.number_format import FP8
from vitdeploy.exporters.quantization.schemes.qdq import insert_qdq

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import onnx_ir as ir

    from vitdeploy.exporters.quantization.number_format import NumberFormat, Range


@dataclasses.dataclass(frozen=True)
class TensorRTFp8:
    """Activations and weights in E4M3, scaled to a maximum of 448, before MatMul nodes with a weight.

    The patch projection, the head and everything that `TensorRTInt8` leaves in float32 stay float32.

    Attributes:
        per_channel: True for a scale per output channel of a weight.
    """

    name: ClassVar[str] = "static-e4m3"
    target: ClassVar[str] = "tensorrt"
    static: ClassVar[NumberFormat | None] = FP8
    operators: ClassVar[tuple[str, ...]] = ("MatMul",)
    min_opset: ClassVar[int] = 21  # TensorRT supports its QuantizeLinear with this type

    per_channel: bool = True

    @property
    def weight(self) -> NumberFormat:
        return FP8

    def write(self, model: ir.Model, nodes: Sequence[ir.Node], ranges: Mapping[str, Range]) -> None:
        """See `Scheme`."""
        insert_qdq(model, nodes, ranges, FP8, self.weight, per_channel=self.per_channel)
