"""Which nodes of a graph can compute in 8 bits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

from vitdeploy.exporters.graph.precision import name_of, on_data_path
from vitdeploy.exporters.graph.weight_names import SMOOTHED, TRANSPOSED

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping


def weighted_nodes(model: ir.Model, operators: Collection[str]) -> list[ir.Node]:
    """The nodes of these operators that multiply an activation by a float32 weight, in the order of the graph.

    Products of two activations, as in attention, are none of them.
    """
    return [node for node in on_data_path(model) if node.op_type in operators and _has_weight(node)]


def labels_of(nodes: Iterable[ir.Node]) -> dict[str, str]:
    """What nodes are called after their weights, by their own names; those whose weights have names that tell.

    It is "layers.0.mlp.fc1" of "layers.0.mlp.fc1.weight.transposed", and of an Add of its bias to what it gives.
    """
    found: dict[str, str] = {}
    for node in nodes:
        label = _label(node)
        if label is None and node.op_type == "Add":
            label = _label_of_biased(node, found)
        if label is not None:
            found[name_of(node)] = label
    return found


def _label_of_biased(add: ir.Node, labels: Mapping[str, str]) -> str | None:
    """That of the product to which an initializer is added."""
    given = [value for value in add.inputs if value is not None]
    if not any(value.is_initializer() for value in given):
        return None
    return next((labels[str(value.name)] for value in given if value.name in labels), None)


def _label(node: ir.Node) -> str | None:
    weight = node.inputs[1] if len(node.inputs) > 1 else None
    if weight is None or not weight.is_initializer():
        return None
    name = str(weight.name).split(SMOOTHED)[0].removesuffix(TRANSPOSED)
    return name.removesuffix(".weight") if name.endswith(".weight") else None


def _has_weight(node: ir.Node) -> bool:
    activation, weight = node.inputs[:2]
    return (
        activation is not None
        and weight is not None
        and not activation.is_initializer()
        and activation.dtype in (None, ir.DataType.FLOAT)
        and weight.const_value is not None
        and weight.is_initializer()
        and weight.dtype == ir.DataType.FLOAT
        and len(weight.const_value.shape) > 1
    )
