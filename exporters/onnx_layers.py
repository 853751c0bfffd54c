"""Repeat the first transformer block of a graph, each copy with the weights of its layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

if TYPE_CHECKING:
    from torch import nn


def repeat_first_layer(graph: ir.Graph, layers: nn.ModuleList) -> None:
    """Make a graph of the first of `layers` alone one of all of them, in place.

    All blocks are the same computation with other weights; tracing them one by one would be most of the time that an
    export takes. The block is what the final norm's input is made by, less what the first norm's input is made by.

    Args:
        graph: traced with one layer, its weights under their names in the model, not optimized yet.
        layers: every layer of the model, the first one being the one that was traced.
    """
    final_norm = _consumer(graph, "layernorm.weight")
    first, last = _consumer(graph, "layers.0.layernorm_before.weight").inputs[0], final_norm.inputs[0]
    made_by_layer = _makers(last) - _makers(first)
    block = [node for node in graph if node in made_by_layer]
    x = last
    for index in range(1, len(layers)):
        values = {first: x, **_weights(graph, layers[index], index)}
        copies = [_copy(node, values, prefix=f"layers.{index}.") for node in block]
        graph.insert_before(final_norm, copies)
        x = values[last]
    final_norm.replace_input_with(0, x)


def _weights(graph: ir.Graph, layer: nn.Module, index: int) -> dict[ir.Value | None, ir.Value | None]:
    """The first layer's weights -> those of `layer`, which become initializers."""
    values: dict[ir.Value | None, ir.Value | None] = {}
    for name, parameter in layer.named_parameters():
        tensor = ir.tensor(parameter.detach(), name=f"layers.{index}.{name}")
        old = graph.initializers[f"layers.0.{name}"]
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


def _consumer(graph: ir.Graph, weight: str) -> ir.Node:
    (node,) = graph.initializers[weight].consumers()
    return node


def _makers(value: ir.Value | None) -> set[ir.Node]:
    """The nodes that `value` is made by."""
    found: set[ir.Node] = set()
    values = [value]
    while values:
        node = None if (value := values.pop()) is None else value.producer()
        if node is not None and node not in found:
            found.add(node)
            values.extend(node.inputs)
    return found
