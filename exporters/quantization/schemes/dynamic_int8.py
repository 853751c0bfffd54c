"""int8 for ONNX Runtime on a CPU without images: ranges are measured at run time."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, ClassVar

from vitdeploy.exporters.quantization.schemes.cpu_int8 import CpuInt8
from vitdeploy.exporters.quantization.schemes.integer_matmul import use_integer_matmul

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import onnx_ir as ir

    from vitdeploy.exporters.quantization.number_format import NumberFormat, Range


@dataclasses.dataclass(frozen=True)
class DynamicInt8(CpuInt8):
    """Unsigned activations with the range of the current batch, and signed weights.

    The whole batch has one range, so an image's result depends slightly on the other images.
    """

    name: ClassVar[str] = "dynamic"
    static: ClassVar[NumberFormat | None] = None
    min_opset: ClassVar[int] = 11

    def write(self, model: ir.Model, nodes: Sequence[ir.Node], ranges: Mapping[str, Range]) -> None:  # noqa: ARG002
        """See `Scheme`."""
        use_integer_matmul(model, nodes, self.weight, per_channel=self.per_channel)
