"""Repeat the first transformer block of a graph, each copy with the weights of its layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import nn


def repeat_first_layer(
    graph: ir.Graph, layers: nn.ModuleList, first: ir.Value, results: Sequence[ir.Value], prefix: str
) -> list[tuple[ir.Value, ...]]:
    """Make a graph of the first of `layers` alone one of all of them, in place.

    All blocks are the same computation with other weights; tracing them one by one would be most of the time that an
    export takes. The block is every node between its input, or its weights, and its results.

    Args:
        graph: Traced with one layer, not optimized yet.
        layers: Every layer of the model, the first one being the one that was traced.
        first: What goes into the block.
        results: What comes out of it: the next block's input, and whatever else is wanted of every layer.
        prefix: Of the first layer's weights in the graph, with a placeholder for the layer: "layers.{}.".

    Returns:
        The results of each layer.
    """
    last = results[0]
    weights = {value for name, value in graph.initializers.items() if name.startswith(prefix.format(0))}
    block = _between(graph, {first, *weights}, results)
    users = [(node, index) for node, index in last.uses() if node not in block]
    outputs, x = [tuple(results)], last
    anchor = block[-1]
    for index in range(1, len(layers)):
        values = {first: x} | _weights(graph, layers[index], prefix, index)
        copies = [_copy(node, values, prefix=prefix.format(index)) for node in block]
        graph.insert_after(anchor, copies)
        anchor, x = copies[-1], values[last]
        outputs.append(tuple(values[result] for result in results))
    for node, position in users:
        node.replace_input_with(position, x)
    return outputs


def _weights(graph: ir.Graph, layer: nn.Module, prefix: str, index: int) -> dict[ir.Value, ir.Value]:
    """The first layer's weights -> those of `layer`, which become initializers."""
    values: dict[ir.Value, ir.Value] = {}
    for name, parameter in layer.named_parameters():
        tensor = ir.tensor(parameter.detach(), name=f"{prefix.format(index)}{name}")
        old = graph.initializers[f"{prefix.format(0)}{name}"]
        value = ir.Value(name=tensor.name, const_value=tensor, shape=old.shape, type=old.type)
        graph.register_initializer(value)
        values[old] = value
    return values


def _copy(node: ir.Node, values: dict[ir.Value, ir.Value], prefix: str) -> ir.Node:
    """A copy of `node` on the inputs that `values` maps its own to; its outputs are added to `values`."""
    outputs = [ir.Value(name=f"{prefix}{old.name}", shape=old.shape, type=old.type) for old in node.outputs]
    inputs = [None if value is None else values.get(value, value) for value in node.inputs]
    values.update(zip(node.outputs, outputs, strict=True))
    attributes = node.attributes.values()
    return ir.Node(node.domain, node.op_type, inputs, attributes, outputs=outputs, version=node.version)


def _between(graph: ir.Graph, sources: set[ir.Value], results: Iterable[ir.Value]) -> list[ir.Node]:
    """The nodes that work on `sources`, or on what is made of them, and that `results` are made by, in order."""
    reached: set[ir.Value | None] = {*sources}
    below = []
    for node in graph:
        if not reached.isdisjoint(node.inputs):
            below.append(node)
            reached.update(node.outputs)
    needed: set[ir.Value | None] = {*results}
    between = []
    for node in reversed(below):
        if not needed.isdisjoint(node.outputs):
            between.append(node)
            needed.update(node.inputs)
    return between[::-1]
