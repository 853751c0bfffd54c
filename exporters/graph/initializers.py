"""Initializers of a graph: new ones, parts of their names, and the layer names derived from them."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

# Suffixes of weights computed from another one.
TRANSPOSED = ".transposed"
SMOOTHED = ".smoothed"
CORRECTED = ".corrected"
# Cosines and sines of rotary positions: "rotary.cos" and "rotary.sin", constants or not.
ROTARY = "rotary."


def register(graph: ir.Graph, name: str, tensor: ir.TensorProtocol) -> ir.Value:
    """Add an initializer."""
    shape = ir.Shape(tensor.shape.numpy())
    value = ir.Value(name=name, const_value=tensor, shape=shape, type=ir.TensorType(tensor.dtype))
    graph.register_initializer(value)
    return value


def labels_of(nodes: Iterable[ir.Node]) -> dict[str, str]:
    """Map nodes, by their first output's name, to the module of their weights.

    A product with "layers.0.mlp.fc1.weight.transposed" is "layers.0.mlp.fc1", and so is the Add of its bias. Nodes
    without such a weight are omitted.
    """
    labels: dict[str, str] = {}
    for node in nodes:
        weight = node.inputs[1] if len(node.inputs) > 1 else None
        name = ""
        if weight is not None and weight.is_initializer():
            name = str(weight.name).split(SMOOTHED)[0].removesuffix(TRANSPOSED)
        given = [value for value in node.inputs if value is not None]
        if name.endswith(".weight"):
            labels[str(node.outputs[0].name)] = name.removesuffix(".weight")
        elif node.op_type == "Add" and any(value.is_initializer() for value in given):
            product = next((value for value in given if value.name in labels), None)
            if product is not None:
                labels[str(node.outputs[0].name)] = labels[str(product.name)]
    return labels
