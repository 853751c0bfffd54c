"""int8 for TensorRT: symmetric QuantizeLinear and DequantizeLinear, S8S8."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, ClassVar

from vitdeploy.exporters.quantization.number_format import INT8, NumberFormat, Range
from vitdeploy.exporters.quantization.schemes.qdq import insert_qdq

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import onnx_ir as ir


@dataclasses.dataclass(frozen=True)
class TensorRTInt8:
    """Signed activations and weights with zero points of 0, before every product with a weight, as TensorRT fuses them.

    TensorRT supports no other zero point, and no integer bias: "Working with Quantized Types" in its documentation.
    LayerNorm, Gelu, softmax, attention's products of activations and the classifier stay float32.

    Attributes:
        per_channel: True for a scale per output channel of a weight.
        quantize_patches: True to quantize convolutions: the patch projection, which processes the image itself, and the
            head of masked image modeling.
    """

    name: ClassVar[str] = "static-symmetric"
    target: ClassVar[str] = "tensorrt"
    static: ClassVar[NumberFormat | None] = INT8
    min_opset: ClassVar[int] = 13

    per_channel: bool = True
    quantize_patches: bool = True

    @property
    def operators(self) -> tuple[str, ...]:
        return ("MatMul", "Conv") if self.quantize_patches else ("MatMul",)

    @property
    def weight(self) -> NumberFormat:
        return INT8

    def write(self, model: ir.Model, nodes: Sequence[ir.Node], ranges: Mapping[str, Range]) -> None:
        """See `Scheme`."""
        insert_qdq(model, nodes, ranges, INT8, self.weight, per_channel=self.per_channel)
