"""What a scheme of quantization is: which nodes compute in 8 bits, and how they are written."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Protocol

from vitdeploy.errors import UsageError
from vitdeploy.exporters.graph.precision import name_of
from vitdeploy.exporters.quantization.candidates import weighted_nodes

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    import onnx_ir as ir

    from vitdeploy.exporters.quantization.number_format import NumberFormat, Range


class Scheme(Protocol):
    """One way to compute in 8 bits; its options are the fields of a frozen dataclass.

    Attributes:
        name: as manifests have it.
        target: what is to run the graph, "cpu" or "tensorrt".
        static: the format of activations whose ranges must be known beforehand; None where the graph measures them.
        operators: whose nodes compute in 8 bits, where they have a weight.
        min_opset: that has the operators which are written.
        per_channel: whether each output channel of a weight has its own scale.
        weight: the format of weights, symmetric.
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
            model: in float32.
            nodes: of it, some of `weighted_nodes(model, self.operators)`.
            ranges: of the activations that they take, by name; none where `static` is None.
        """


def quantize(
    model: ir.Model, scheme: Scheme, ranges: Mapping[str, Range], keep: Collection[str] = ()
) -> tuple[str, ...]:
    """Make a graph compute in 8 bits, but for chosen nodes, in place.

    Args:
        model: in float32.
        scheme: how.
        ranges: of activations, by name; see `calibrated_ranges`.
        keep: nodes that stay float32, by the names of their first outputs.

    Returns:
        The nodes that compute in 8 bits, by the names of their first outputs.

    Raises:
        UsageError: there is no node to quantize, or no such node to keep.
    """
    check_kept(model, scheme, keep)
    chosen = [node for node in quantizable(model, scheme) if name_of(node) not in keep]
    names = tuple(map(name_of, chosen))
    scheme.write(model, chosen, ranges)
    return names


def check_kept(model: ir.Model, scheme: Scheme, keep: Collection[str]) -> None:
    """Raise UsageError unless these nodes, which are to stay float32, are ones that the scheme quantizes."""
    unknown = set(keep).difference(map(name_of, quantizable(model, scheme)))
    if unknown:
        raise UsageError(
            f"nodes to keep in float32 must be ones that {scheme.name} quantizes, {', '.join(sorted(unknown))[:80]} "
            f"are not; take the names from vitdeploy debug bisect, on the same model, with the same options"
        )


def quantizable(model: ir.Model, scheme: Scheme) -> list[ir.Node]:
    """The nodes that a scheme quantizes where none is kept, in the order of the graph.

    Raises:
        UsageError: there are none.
    """
    nodes = weighted_nodes(model, scheme.operators)
    if not nodes:
        raise UsageError(
            f"{scheme.name} needs {' or '.join(scheme.operators)} nodes with weights, the graph has none; "
            f"choose another precision"
        )
    return nodes
