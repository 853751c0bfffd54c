"""A graph with QuantizeLinear and DequantizeLinear around its nodes, and chosen nodes of it without."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from vitdeploy.errors import UsageError
from vitdeploy.exporters.onnx_file import write_onnx
from vitdeploy.exporters.precision import name_of
from vitdeploy.exporters.variants import Variants

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path


def quantized_variants(path: Path, float_path: Path) -> Variants:
    """Variants of a quantized graph: a node that is kept takes what it took before the graph was quantized.

    1. A node computes in integers where one of its inputs comes from DequantizeLinear.
    2. Kept, it takes what was quantized; of a weight, that of the float32 graph's node of the same name.
    3. What is quantized for others stays so; an output of the graph is not quantized where its node is kept.

    Args:
        path: the quantized graph, in the form of onnxruntime.quantization's QDQ.
        float_path: the graph that it was made from.

    Raises:
        UsageError: a node that computes in integers, or a weight of it, is not in the float32 graph.
    """
    model, original = ir.load(path), ir.load(float_path)
    weights = {
        (name_of(node), index): value
        for node in original.graph
        for index, value in enumerate(node.inputs)
        if value is not None and value.is_initializer()
    }
    nodes = [node for node in model.graph if any(_quantized(value) is not None for value in node.inputs)]
    computing = [node for node in nodes if node.op_type not in ("QuantizeLinear", "DequantizeLinear")]
    known = set(map(name_of, original.graph))
    for node in computing:
        name = _original_name(node)
        if name not in known or any((name, index) not in weights for index in _quantized_weights(node)):
            raise UsageError(
                f"{path.name} must be made from {float_path.name}, which has no {node.op_type} {name} with these "
                f"weights; quantize that graph"
            )
    return Variants(tuple(map(_original_name, computing)), functools.partial(_write, model, weights))


def _write(model: ir.Model, weights: dict[tuple[str, int], ir.Value], kept: Collection[str], path: Path) -> None:
    twin = model.clone()
    graph = twin.graph
    for node in list(graph):
        name = _original_name(node)
        if name not in kept:
            continue
        for index, value in enumerate(node.inputs):
            source = _quantized(value)
            if source is None:
                continue
            if index in _quantized_weights(node):
                source = _registered(weights[name, index], graph)
            node.replace_input_with(index, source)
        _give_unquantized(node, graph)
    RemoveUnusedNodesPass()(twin)
    write_onnx(twin, path)


def _quantized(value: ir.Value | None) -> ir.Value | None:
    """What was quantized, where `value` comes from DequantizeLinear: a value in float32, or a weight in integers."""
    node = None if value is None else value.producer()
    if node is None or node.op_type != "DequantizeLinear":
        return None
    source = node.inputs[0]
    quantize = None if source is None else source.producer()
    return source if quantize is None or quantize.op_type != "QuantizeLinear" else quantize.inputs[0]


def _quantized_weights(node: ir.Node) -> list[int]:
    """The positions of inputs that are weights in integers."""
    sources = enumerate(map(_quantized, node.inputs))
    return [index for index, source in sources if source is not None and source.is_initializer()]


def _original_name(node: ir.Node) -> str:
    """The name of its first output, before that was quantized, where it is one of the graph's."""
    return str(_final(node).name)


def _final(node: ir.Node) -> ir.Value:
    """What the graph gives of a node's first output, quantized or not; or that output."""
    output = node.outputs[0]
    for quantize, _ in output.uses():
        for dequantize, _ in quantize.outputs[0].uses() if quantize.op_type == "QuantizeLinear" else ():
            if dequantize.op_type == "DequantizeLinear" and dequantize.outputs[0].is_graph_output():
                return dequantize.outputs[0]
    return output


def _give_unquantized(node: ir.Node, graph: ir.Graph) -> None:
    """Make the node's own output the graph's, where the graph gives it quantized."""
    output, final = node.outputs[0], _final(node)
    if final is output:
        return
    for user, index in list(final.uses()):
        user.replace_input_with(index, output)
    output.name, final.name = final.name, None
    output.shape, output.type = final.shape, final.type
    graph.outputs[list(graph.outputs).index(final)] = output


def _registered(weight: ir.Value, graph: ir.Graph) -> ir.Value:
    """A weight of another graph in this one."""
    name = str(weight.name)
    if name not in graph.initializers:
        graph.register_initializer(
            ir.Value(name=name, const_value=weight.const_value, shape=weight.shape, type=weight.type)
        )
    return graph.initializers[name]
