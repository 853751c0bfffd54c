"""Quantization schemes: which nodes compute in 8 bits, and how they are written."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import ClassVar, Protocol

import onnx_ir as ir

from vitdeploy.errors import UsageError
from vitdeploy.exporters.graph.precision import check_kept, name_of, on_data_path
from vitdeploy.exporters.quantization.number_format import NumberFormat, Range


class Scheme(Protocol):
    """One way to compute in 8 bits; its options are the fields of a frozen dataclass.

    Attributes:
        target: Runtime that the graph is built for, "cpu" or "tensorrt".
        static: Number format of activations with fixed ranges; None where the graph measures them as it runs.
        operators: Types of the nodes that compute in 8 bits, where they have a weight.
        min_opset: The first that has the operators which are written.
        per_channel: Whether each output channel of a weight has its own scale.
        weight: Number format of weights, symmetric.
    """

    name: ClassVar[str]
    target: ClassVar[str]
    static: ClassVar[NumberFormat | None]
    min_opset: ClassVar[int]

    @property
    def operators(self) -> Sequence[str]: ...

    @property
    def per_channel(self) -> bool: ...

    @property
    def weight(self) -> NumberFormat: ...

    def write(self, model: ir.Model, nodes: Sequence[ir.Node], ranges: Mapping[str, Range]) -> None:
        """Make `nodes` compute in 8 bits, in place.

        Args:
            model: In float32.
            nodes: Some of `weighted_nodes(model, self.operators)`.
            ranges: Of the activations that they take, by name; not used where `static` is None.
        """


def quantizable(model: ir.Model, scheme: Scheme, keep: Collection[str] = ()) -> list[ir.Node]:
    """The nodes that a scheme quantizes, in the order of the graph.

    Args:
        model: In float32.
        keep: Nodes that stay in float32, by the names of their first outputs.

    Raises:
        UsageError: If the graph has no node to quantize, or no such node to keep.
    """
    nodes = weighted_nodes(model, scheme.operators)
    if not nodes:
        operators = " or ".join(scheme.operators)
        raise UsageError(
            f"the graph has no {operators} nodes with weights, which {scheme.name} quantizes",
            what="precision", expected=scheme.operators, found=(), hint="choose another precision",
        )  # fmt: skip
    check_kept(keep, nodes, f"{scheme.name} does not quantize the nodes {{}}, which keep_fp32 names")
    return [node for node in nodes if name_of(node) not in keep]


def weighted_nodes(model: ir.Model, operators: Collection[str]) -> list[ir.Node]:
    """The nodes of these operators that multiply an activation by a float32 weight, in the order of the graph.

    Products of two activations, as in attention, are none of them.
    """
    return [node for node in on_data_path(model) if node.op_type in operators and _has_weight(node)]


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
