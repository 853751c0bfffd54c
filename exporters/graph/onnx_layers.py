"""Repeat the first transformer block of a graph with the weights of every layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import nn


def repeat_first_layer(
    graph: ir.Graph, layers: nn.ModuleList, first: ir.Value, results: Sequence[ir.Value], prefix: str
) -> list[tuple[ir.Value, ...]]:
    """Extend a graph of the first layer to all `layers`, in place.

    All blocks do the same computation with different weights; tracing each would dominate the export time. A block is
    all nodes between its input or weights and its results.

    Args:
        graph: Graph traced with one layer, not yet optimized.
        layers: All layers of the model; the first one was traced.
        first: Input of the block.
        results: Results of the block: the next block's input, and other requested outputs of every layer.
        prefix: Name prefix of the first layer's weights in the graph, with a placeholder: "layers.{}.".

    Returns:
        Results of each layer.
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


def name_layer(graph: ir.Graph, first: ir.Value, last: ir.Value, old: str, new: str) -> None:
    """Name a layer's weights and values after another number, in place.

    Args:
        graph: The graph.
        first: Input of the layer.
        last: Result of the layer.
        old: Prefix of its weights' names, "layers.1.".
        new: The new prefix, of its values too.
    """
    for value in list(graph.initializers.values()):
        if value.name is not None and value.name.startswith(old):
            value.name = f"{new}{value.name.removeprefix(old)}"
    for node in _between(graph, {first}, (last,)):
        for value in node.outputs:
            value.name = f"{new}{value.name}"


def repeat_nodes(graph: ir.Graph, first: ir.Value, result: ir.Value, other: ir.Value, prefix: str) -> ir.Value:
    """Append the nodes from `first` to `result` once more, from another value; the copy's result.

    New values have the traced names with the prefix.
    """
    values = {first: other}
    graph.extend([_copy(node, values, prefix) for node in _between(graph, {first}, (result,))])
    return values[result]


def _weights(graph: ir.Graph, layer: nn.Module, prefix: str, index: int) -> dict[ir.Value, ir.Value]:
    """Map the first layer's weights to those of `layer`, added as initializers."""
    values: dict[ir.Value, ir.Value] = {}
    for name, parameter in layer.named_parameters():
        tensor = ir.tensor(parameter.detach(), name=f"{prefix.format(index)}{name}")
        old = graph.initializers[f"{prefix.format(0)}{name}"]
        value = ir.Value(name=tensor.name, const_value=tensor, shape=old.shape, type=old.type)
        graph.register_initializer(value)
        values[old] = value
    return values


def _copy(node: ir.Node, values: dict[ir.Value, ir.Value], prefix: str) -> ir.Node:
    """A copy of `node` with inputs mapped by `values`; its outputs are added to `values`."""
    outputs = [ir.Value(name=f"{prefix}{old.name}", shape=old.shape, type=old.type) for old in node.outputs]
    inputs = [None if value is None else values.get(value, value) for value in node.inputs]
    values.update(zip(node.outputs, outputs, strict=True))
    attributes = node.attributes.values()
    return ir.Node(node.domain, node.op_type, inputs, attributes, outputs=outputs, version=node.version)


def _between(graph: ir.Graph, sources: set[ir.Value], results: Iterable[ir.Value]) -> list[ir.Node]:
    """The nodes from `sources` to `results`, in order."""
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
