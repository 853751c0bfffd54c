"""Repeat the first transformer block of a graph, each copy with the weights of its layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn


def repeat_first_layer(
    graph: ir.Graph, layers: nn.ModuleList, first: ir.Value, results: Sequence[ir.Value], prefix: str
) -> list[tuple[ir.Value, ...]]:
    """Make a graph of the first of `layers` alone one of all of them, in place.

    All blocks are the same computation with other weights; tracing them one by one would be most of the time that an
    export takes. The block is every node between its input, or its weights, and its results.

    Args:
        graph: traced with one layer, not optimized yet.
        layers: every layer of the model, the first one being the one that was traced.
        first: what goes into the block.
        results: what comes out of it: the next block's input, and whatever else is wanted of every layer.
        prefix: of the first layer's weights in the graph, with a placeholder for the layer: "layers.{}.".

    Returns:
        The results of each layer.
    """
    last = results[0]
    weights = {value for name, value in graph.initializers.items() if name.startswith(prefix.format(0))}
    layer_nodes = _made_from({first, *weights})
    made_by_layer = {node for result in results for node in _makers(result)} & layer_nodes
    block = [node for node in graph if node in made_by_layer]
    users = [(node, index) for node, index in last.uses() if node not in made_by_layer]
    outputs, x = [tuple(results)], last
    anchor = block[-1]
    for index in range(1, len(layers)):
        values = {first: x, **_weights(graph, layers[index], prefix, index)}
        copies = [_copy(node, values, prefix=prefix.format(index)) for node in block]
        graph.insert_after(anchor, copies)
        anchor, x = copies[-1], _required(values[last])
        outputs.append(tuple(_required(values[result]) for result in results))
    for node, position in users:
        node.replace_input_with(position, x)
    return outputs


def _weights(graph: ir.Graph, layer: nn.Module, prefix: str, index: int) -> dict[ir.Value | None, ir.Value | None]:
    """The first layer's weights -> those of `layer`, which become initializers."""
    values: dict[ir.Value | None, ir.Value | None] = {}
    for name, parameter in layer.named_parameters():
        tensor = ir.tensor(parameter.detach(), name=f"{prefix.format(index)}{name}")
        old = graph.initializers[f"{prefix.format(0)}{name}"]
        value = ir.Value(name=tensor.name, const_value=tensor, shape=old.shape, type=old.type)
        graph.register_initializer(value)
        values[old] = value
    return values


def _copy(node: ir.Node, values: dict[ir.Value | None, ir.Value | None], prefix: str) -> ir.Node:
    """A copy of `node` on the inputs that `values` maps its own to; its outputs are added to `values`."""
    outputs = [ir.Value(name=f"{prefix}{old.name}", shape=old.shape, type=old.type) for old in node.outputs]
    inputs = [values.get(value, value) for value in node.inputs]
    values.update(zip(node.outputs, outputs, strict=True))
    attributes = node.attributes.values()
    return ir.Node(node.domain, node.op_type, inputs, attributes, outputs=outputs, version=node.version)


def _required(value: ir.Value | None) -> ir.Value:
    if value is None:
        raise TypeError("a layer's result must be a value")
    return value


def _makers(value: ir.Value | None) -> set[ir.Node]:
    """The nodes that `value` is made by."""
    makers: set[ir.Node] = set()
    values = [value]
    while values:
        node = None if (value := values.pop()) is None else value.producer()
        if node is not None and node not in makers:
            makers.add(node)
            values.extend(node.inputs)
    return makers


def _made_from(sources: set[ir.Value]) -> set[ir.Node]:
    """The nodes that work on `sources`, or on what is made of them."""
    nodes: set[ir.Node] = set()
    values = list(sources)
    while values:
        for node, _ in values.pop().uses():
            if node not in nodes:
                nodes.add(node)
                values.extend(node.outputs)
    return nodes
