"""Which nodes of a graph can compute in 8 bits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

from vitdeploy.exporters.precision import on_data_path

if TYPE_CHECKING:
    from collections.abc import Collection


def weighted_nodes(model: ir.Model, operators: Collection[str]) -> list[ir.Node]:
    """The nodes of these operators that multiply an activation by a float32 weight, in the order of the graph.

    Products of two activations, as in attention, are none of them.
    """
    return [node for node in on_data_path(model) if node.op_type in operators and _has_weight(node)]


def label_of(node: ir.Node) -> str:
    """What a node is called after its weight: "layers.0.mlp.fc1" of "layers.0.mlp.fc1.weight.transposed"."""
    weight = node.inputs[1] if len(node.inputs) > 1 else None
    return str(node.outputs[0].name) if weight is None else str(weight.name).partition(".weight")[0]


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
