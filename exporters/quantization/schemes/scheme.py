"""Quantization scheme: the nodes that compute in 8 bits, and their operators."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import ClassVar, Protocol

import onnx_ir as ir

from vitdeploy.errors import UsageError
from vitdeploy.exporters.graph.precision import check_kept, name_of, on_data_path
from vitdeploy.exporters.quantization.number_format import NumberFormat, Range


class Scheme(Protocol):
    """One quantization scheme; its options are the fields of a frozen dataclass.

    Attributes:
        target: Runtime that the graph is built for, "cpu" or "tensorrt".
        static: Number format of activations with fixed ranges; None if the graph measures them at run time.
        operators: Types of nodes that compute in 8 bits if they have a weight.
        min_opset: First opset with all written operators.
        per_channel: True for a scale per output channel of a weight.
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
        """Convert `nodes` to 8 bits, in place.

        Args:
            model: Model in float32.
            nodes: Some of `weighted_nodes(model, self.operators)`.
            ranges: Ranges of their activations, by name; unused if `static` is None.
        """


def quantizable(model: ir.Model, scheme: Scheme, keep: Collection[str] = ()) -> list[ir.Node]:
    """The nodes that a scheme quantizes, in graph order.

    Args:
        model: Model in float32.
        keep: Nodes that stay in float32, named by their first outputs.

    Raises:
        UsageError: If the graph has no node to quantize, or a node to keep does not exist.
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
    """The nodes of these operators that multiply an activation by a float32 weight, in graph order.

    Products of two activations, as in attention, are excluded.
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
