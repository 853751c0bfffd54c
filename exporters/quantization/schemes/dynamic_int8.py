"""int8 for ONNX Runtime on a CPU without any images: ranges are measured while the graph runs."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, ClassVar

from vitdeploy.exporters.quantization.number_format import INT7, INT8
from vitdeploy.exporters.quantization.schemes.integer_matmul import use_integer_matmul

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import onnx_ir as ir

    from vitdeploy.exporters.quantization.number_format import NumberFormat, Range


@dataclasses.dataclass(frozen=True)
class DynamicInt8:
    """Unsigned activations whose range is that of the batch at hand, and signed weights.

    1. Products with weights are of integers. Those of attention, whose factors both would have to be measured, stay
       float32; so do the patch projection and the head, which are 1 % of the work, and Gelu, LayerNorm and softmax.
    2. The range is one for the whole batch: what an image gives depends a little on the images beside it.

    Attributes:
        per_channel: whether each output channel of a weight has its own scale.
        reduce_range: 7 bits for weights, for x86 processors without VNNI: there two products are added in 16 bits, and
            what exceeds these is lost.
    """

    name: ClassVar[str] = "dynamic"
    target: ClassVar[str] = "cpu"
    static: ClassVar[NumberFormat | None] = None
    min_opset: ClassVar[int] = 11

    per_channel: bool = True
    reduce_range: bool = False

    @property
    def operators(self) -> tuple[str, ...]:
        return ("MatMul",)

    @property
    def weight(self) -> NumberFormat:
        return INT7 if self.reduce_range else INT8

    def write(self, model: ir.Model, nodes: Sequence[ir.Node], ranges: Mapping[str, Range]) -> None:  # noqa: ARG002
        """See `Scheme`."""
        use_integer_matmul(model, nodes, self.weight, per_channel=self.per_channel)
