"""Assign each node of a graph to a part of the vision transformer."""

from __future__ import annotations

import collections
import re
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Sequence

_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")
CONVERSIONS = frozenset({"Cast", "QuantizeLinear", "DequantizeLinear"})
_RESULTS = CONVERSIONS | {"Identity"}  # may give a layer's value to an output
_EMBEDDINGS = -1  # before the first layer; the head is one more than the last layer


class Node(Protocol):
    """A node with ONNX's operator names, such as an `onnx.NodeProto`."""

    @property
    def op_type(self) -> str: ...
    @property
    def input(self) -> Sequence[str]: ...
    @property
    def output(self) -> Sequence[str]: ...
    @property
    def attribute(self) -> Any: ...


N = TypeVar("N", bound=Node)


def nodes_by_part(nodes: Sequence[N], inputs: set[str]) -> dict[str, list[N]]:
    """The nodes of each part: "embeddings", "layers.0" ..., "head"; all in "graph" if no name refers to a layer.

    1. A layer begins with the nodes whose weights or results are named after it, and includes their descendants up to
       the next layer. Equal weights are stored once, under the first name, so a node that descends from several layers
       belongs to the latest.
    2. The last layer ends with the sum of its two branches; the head follows. It includes nodes after another layer
       that lead to no later one, such as dense features.
    3. A type conversion, and a node computed from weights and sizes only, belongs to the part that uses it, if only one
       does.

    Args:
        nodes: In topological order.
        inputs: Names of the graph's inputs.
    """
    maker = {name: index for index, node in enumerate(nodes) for name in node.output if name}
    taken = [[*node.input, *_captured(node)] for node in nodes]
    sources = [[maker[name] for name in names if name in maker] for names in taken]
    users: list[list[int]] = [[] for _ in nodes]
    for index, made_from in enumerate(sources):
        for source in made_from:
            users[source].append(index)
    named = [_layer_in([*node.output, *(name for name in node.input if name not in maker)]) for node in nodes]
    stages: list[int] = []
    computed: list[bool] = []  # from the graph's inputs
    for node, names, layer, made_from in zip(nodes, taken, named, sources, strict=True):
        stages.append(max([layer, *(stages[source] for source in made_from)]))
        from_values = any(computed[source] for source in made_from) or not inputs.isdisjoint(names)
        computed.append(from_values and node.op_type != "Shape")
    last = max(stages, default=_EMBEDDINGS)
    if last == _EMBEDDINGS:
        return {"graph": list(nodes)}
    _split_off_head(nodes, sources, users, named, computed, stages)
    _split_off_maps(nodes, sources, users, named, last, stages)
    for index in reversed(range(len(nodes))):
        if nodes[index].op_type in CONVERSIONS or not computed[index]:
            using = {stages[user] for user in users[index]}
            stages[index] = using.pop() if len(using) == 1 else stages[index]
    parts = collections.defaultdict(list)
    for stage, node in sorted(zip(stages, nodes, strict=True), key=lambda pair: pair[0]):
        parts["embeddings" if stage == _EMBEDDINGS else "head" if stage > last else f"layers.{stage}"].append(node)
    return dict(parts)


def _split_off_head(
    nodes: Sequence[Node],
    sources: list[list[int]],
    users: list[list[int]],
    named: list[int],
    computed: list[bool],
    stages: list[int],
) -> None:
    """Increment in place the stage of nodes after the last layer."""
    last = max(stages)
    within = [layer == last for layer in named]  # in the last layer, or leading to a node in it
    for index in reversed(range(len(nodes))):
        within[index] = within[index] or any(within[user] for user in users[index])
    for index, node in enumerate(nodes):
        if stages[index] == last and not within[index]:
            # conversions follow the named nodes, and are not in the layer yet
            branches = [_converted(source, nodes, sources) for source in sources[index] if computed[source]]
            sums = node.op_type == "Add" and len(branches) == 2
            if not sums or max(stages[branch] for branch in branches) > last:
                stages[index] = last + 1


def _split_off_maps(
    nodes: Sequence[Node],
    sources: list[list[int]],
    users: list[list[int]],
    named: list[int],
    last: int,
    stages: list[int],
) -> None:
    """Set in place the head's stage for nodes before the last layer that lead to no layer."""
    within = [layer != _EMBEDDINGS for layer in named]
    for index in reversed(range(len(nodes))):
        within[index] = within[index] or any(within[user] for user in users[index])
    for index, node in enumerate(nodes):
        follows = any(stages[source] > last for source in sources[index])
        if stages[index] < last and not within[index] and (follows or node.op_type not in _RESULTS):
            stages[index] = last + 1


def _captured(node: Node) -> set[str]:
    """Values that a node's subgraphs capture from the outer graph."""
    captured: set[str] = set()
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            local = {name for inner in graph.node for name in inner.output} | {value.name for value in graph.input}
            used = {name for inner in graph.node for name in (*inner.input, *_captured(inner))}
            captured |= (used | {value.name for value in graph.output}) - local
    return captured


def _converted(index: int, nodes: Sequence[Node], sources: list[list[int]]) -> int:
    """The node whose result is converted by the chain of conversions ending here."""
    while nodes[index].op_type in CONVERSIONS and sources[index]:
        index = sources[index][0]
    return index


def _layer_in(names: Sequence[str]) -> int:
    """The highest layer among `names`, or the number for none."""
    return max((int(match[1]) for name in names if (match := _LAYER.search(name))), default=_EMBEDDINGS)
