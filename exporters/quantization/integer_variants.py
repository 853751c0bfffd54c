"""A graph with MatMulInteger, and chosen products of it in float32."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from vitdeploy.exporters.graph.initializers import CORRECTED
from vitdeploy.exporters.graph.onnx_file import write_onnx
from vitdeploy.exporters.quantization.schemes.integer_matmul import take_place


def integer_products(graph: ir.Graph) -> dict[str, ir.Node]:
    """The last node of each product of integers, by its output's name: that of the MatMul which it was made from.

    A product is MatMulInteger on what DynamicQuantizeLinear gives, a Cast, and a Mul with the scales, as
    `use_integer_matmul` and onnxruntime.quantization write it.
    """
    found = {}
    for node in graph:
        product = _product(node)
        if product is not None and _measured(product) is not None:
            found[str(node.outputs[0].name)] = node
    return found


def write_integer_variant(
    model: ir.Model, weights: Mapping[tuple[str, int], ir.Value], kept: Collection[str], path: Path
) -> None:
    """Write the graph with these products in float32.

    Args:
        model: the quantized graph; it stays as it is.
        weights: in float32, by the names of nodes and the positions of inputs: of the products 1.
    """
    twin = model.clone()
    for name, node in integer_products(twin.graph).items():
        product = _product(node)
        if name in kept and product is not None:
            plain = ir.node("MatMul", [_measured(product), registered(weights[name, 1], twin.graph)])
            plain.outputs[0].type, plain.outputs[0].shape = node.outputs[0].type, node.outputs[0].shape
            twin.graph.insert_before(node, plain)
            take_place(twin.graph, node, plain)
            restore_bias(plain, weights, twin.graph)
    RemoveUnusedNodesPass()(twin)
    write_onnx(twin, path)


def registered(weight: ir.Value, graph: ir.Graph) -> ir.Value:
    """A weight of another graph in this one."""
    name = str(weight.name)
    if name not in graph.initializers:
        graph.register_initializer(
            ir.Value(name=name, const_value=weight.const_value, shape=weight.shape, type=weight.type)
        )
    return graph.initializers[name]


def restore_bias(product: ir.Node, weights: Mapping[tuple[str, int], ir.Value], graph: ir.Graph) -> None:
    """Give the Add behind a product the bias that it has in float32, where it was corrected for rounded weights."""
    for add, _ in list(product.outputs[0].uses()):
        for index, value in enumerate(add.inputs):
            if value is not None and value.is_initializer() and str(value.name).rstrip("_").endswith(CORRECTED):
                original = weights.get((str(add.outputs[0].name), index))
                if original is not None:
                    add.replace_input_with(index, registered(original, graph))


def _product(node: ir.Node) -> ir.Node | None:
    """The MatMulInteger whose result a Mul scales."""
    cast = node.inputs[0].producer() if node.op_type == "Mul" and node.inputs[0] is not None else None
    source = cast.inputs[0] if cast is not None and cast.op_type == "Cast" else None
    product = None if source is None else source.producer()
    return product if product is not None and product.op_type == "MatMulInteger" else None


def _measured(product: ir.Node) -> ir.Value | None:
    """The float32 value of the first factor, from DynamicQuantizeLinear."""
    source = product.inputs[0]
    quantize = None if source is None else source.producer()
    return quantize.inputs[0] if quantize is not None and quantize.op_type == "DynamicQuantizeLinear" else None
