"""Integer products with activations quantized at run time, in the pattern that ONNX Runtime fuses."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from vitdeploy.exporters.quantization.number_format import NumberFormat
from vitdeploy.exporters.quantization.weights import Weights


def use_integer_matmul(
    model: ir.Model, nodes: Sequence[ir.Node], weight: NumberFormat, *, per_channel: bool = True
) -> None:
    """Convert MatMul nodes to integer products, in place: DynamicQuantizeLinear, MatMulInteger, and the scales.

    An activation is quantized once for all its nodes. ONNX Runtime fuses this pattern, with the following bias, into
    one operator, MatMulIntegerToFloat.

    Args:
        model: Model in float32.
        nodes: MatMul nodes with a weight.
        weight: Number format of weights, symmetric.
        per_channel: True for a scale per output channel of a weight.
    """
    graph = model.graph
    weights = Weights(graph, weight, per_channel=per_channel)
    quantized: dict[ir.Value, Sequence[ir.Value]] = {}
    for node in nodes:
        source, stored = node.inputs[0], weights.of(node)
        if source is None:
            raise TypeError(f"{node} must take an activation")
        if source not in quantized:
            quantized[source] = _quantized(graph, source)
        values, scale, zero_point = quantized[source]
        result = node.outputs[0]
        product = _node("MatMulInteger", (values, stored.values, zero_point, stored.zero_points), result, "product")
        product.outputs[0].type = ir.TensorType(ir.DataType.INT32)
        cast = _node("Cast", product.outputs, result, "product_float", to=int(ir.DataType.FLOAT))
        scales = _node("Mul", (scale, stored.scales), result, "product_scale")
        scales.outputs[0].shape = stored.scales.shape
        scaled = _node("Mul", (cast.outputs[0], scales.outputs[0]), result, "product_scaled")
        graph.insert_before(node, [product, cast, scales, scaled])
        take_place(graph, node, scaled)
    weights.drop_unused()


def _quantized(graph: ir.Graph, value: ir.Value) -> Sequence[ir.Value]:
    """Integers, scale and zero point."""
    node = ir.node("DynamicQuantizeLinear", [value], num_outputs=3)
    parts = ("quantized", "scale", "zero_point")
    for output, part, dtype in zip(
        node.outputs, parts, (ir.DataType.UINT8, ir.DataType.FLOAT, ir.DataType.UINT8), strict=True
    ):
        output.name, output.type = f"{value.name}_{part}", ir.TensorType(dtype)
        output.shape = value.shape if part == "quantized" else ir.Shape([])
    producer = value.producer()
    if producer is None:  # an input of the graph
        graph.insert_before(graph[0], node)
    else:
        graph.insert_after(producer, node)
    return node.outputs


def _node(op_type: str, inputs: Sequence[ir.Value], result: ir.Value, part: str, **attributes: int) -> ir.Node:
    node = ir.node(op_type, list(inputs), attributes)
    output = node.outputs[0]
    output.name, output.shape, output.type = f"{result.name}_{part}", result.shape, ir.TensorType(ir.DataType.FLOAT)
    return node


def take_place(graph: ir.Graph, old: ir.Node, new: ir.Node) -> None:
    """Replace the result of `old` by that of `new` for all users, under the same name."""
    before, after = old.outputs[0], new.outputs[0]
    for user, index in list(before.uses()):
        user.replace_input_with(index, after)
    for index, value in enumerate(graph.outputs):
        if value is before:
            graph.outputs[index] = after
    name, before.name = before.name, None
    graph.remove(old, safe=True)
    after.name = name
