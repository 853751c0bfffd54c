"""8-bit weights with a scale per output channel."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vitdeploy.exporters.graph.initializers import register
from vitdeploy.exporters.quantization.number_format import NumberFormat


class QuantizedWeight(NamedTuple):
    """Three initializers: 8-bit numbers, a scale per output channel (or one), zero points."""

    values: ir.Value
    scales: ir.Value
    zero_points: ir.Value
    axis: int


@dataclasses.dataclass(frozen=True)
class Weights:
    """The 8-bit weights of a graph, each quantized once for all its nodes.

    Attributes:
        graph: Graph for the new initializers.
        number_format: Symmetric number format.
        per_channel: True for a scale per output channel.
    """

    graph: ir.Graph
    number_format: NumberFormat
    per_channel: bool
    _made: dict[tuple[ir.Value, int], QuantizedWeight] = dataclasses.field(default_factory=dict, init=False)

    def of(self, node: ir.Node) -> QuantizedWeight:
        """The quantized weight of a node, its second input."""
        weight = node.inputs[1]
        if weight is None or weight.const_value is None:
            raise TypeError(f"the second input of {node} must be a weight")
        key = weight, output_axis(node, len(weight.const_value.shape))
        if key not in self._made:
            self._made[key] = self._quantized(*key, weight.const_value)
        return self._made[key]

    def drop_unused(self) -> None:
        """Drop weights that are no longer used in float32."""
        for weight, _ in self._made:
            if not weight.uses() and weight.name in self.graph.initializers:
                del self.graph.initializers[str(weight.name)]

    def _quantized(self, weight: ir.Value, axis: int, tensor: ir.TensorProtocol) -> QuantizedWeight:
        values, number_format = tensor.numpy(), self.number_format
        scales, along = column_scales(values, axis, number_format, per_channel=self.per_channel)

        def content() -> ir.TensorProtocol:  # when it is written, so that no second copy of all weights is in memory
            return ir.Tensor(number_format.quantized(tensor.numpy(), scales.reshape(along)), dtype=number_format.dtype)

        lazy = ir.LazyTensor(content, number_format.dtype, ir.Shape(values.shape))
        zeros = np.zeros(scales.shape, number_format.dtype.numpy())
        suffix = "" if f"{weight.name}_scale" not in self.graph.initializers else f"_axis{axis}"
        return QuantizedWeight(
            register(self.graph, f"{weight.name}_quantized{suffix}", lazy),
            register(self.graph, f"{weight.name}_scale{suffix}", ir.Tensor(scales)),
            register(self.graph, f"{weight.name}_zero_point{suffix}", ir.Tensor(zeros, dtype=number_format.dtype)),
            axis,
        )


def column_scales(
    values: NDArray[np.float32], axis: int, number_format: NumberFormat, *, per_channel: bool
) -> tuple[NDArray[np.float32], list[int]]:
    """The scale of each output channel of a weight, or of the whole, and its shape for multiplication."""
    others = tuple(index for index in range(values.ndim) if index != axis)
    largest = np.abs(values).max(axis=others if per_channel else None)
    scales = np.maximum(largest / number_format.highest, np.finfo(np.float32).tiny).astype(np.float32)
    along = [1] * values.ndim
    if per_channel:
        along[axis] = -1
    return scales, along


def rounded_matrix(
    values: NDArray[np.float32], number_format: NumberFormat, *, per_channel: bool
) -> NDArray[np.float32]:
    """Weights (C, D), quantized and dequantized; the D columns are output channels."""
    scales, along = column_scales(values, 1, number_format, per_channel=per_channel)
    scale = scales.reshape(along)
    return np.asarray(number_format.quantized(values, scale).astype(np.float32) * scale)


def output_axis(node: ir.Node, rank: int) -> int:
    """The output axis of a weight: columns for MatMul, rows for transposed weights."""
    if node.op_type == "MatMul":
        return rank - 1
    transposed = node.attributes.get("transB")
    return 1 if node.op_type == "Gemm" and (transposed is None or not transposed.as_int()) else 0
