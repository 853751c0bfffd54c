"""Summary of a graph in any format."""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Mapping

T = TypeVar("T")

_LAYER = re.compile(r"layers\.(\d+)")


@dataclasses.dataclass(frozen=True)
class GraphSummary:
    """The content of an artifact's graph.

    Attributes:
        versions: Format versions, such as the opset.
        node_types: Number of nodes by type, the most frequent first.
        weights: Number of constant tensors.
        weight_bytes: Their size by element type, the largest first.
        duplicates: Number of constants in the graph's file that equal an earlier one.
        duplicate_bytes: Size of the duplicates.
        layers: Number of nodes by part ("embeddings", "layers.0" ..., "head") and by element type of the result, or of
            a product's factors; without nodes that compute shapes, indices or masks.
    """

    versions: dict[str, int | str]
    node_types: dict[str, int]
    weights: int
    weight_bytes: dict[str, int]
    duplicates: int
    duplicate_bytes: int
    layers: dict[str, dict[str, int]]

    @property
    def nodes(self) -> int:
        """Number of nodes."""
        return sum(self.node_types.values())

    def to_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "nodes": self.nodes}


def most_first(counts: Mapping[str, int]) -> dict[str, int]:
    """Largest first; equal counts by name."""
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def merge_layers(parts: Mapping[str, T]) -> dict[str, T]:
    """Merge consecutive layers of equal value: "layers.0", "layers.1" -> "layers 0-1"; a single one is "layer 0"."""
    merged: list[tuple[str, list[int], T]] = []
    for name, value in parts.items():
        match = _LAYER.fullmatch(name)
        if not match:
            merged.append((name, [], value))
        elif merged and merged[-1][1][-1:] == [int(match[1]) - 1] and merged[-1][2] == value:
            merged[-1][1].append(int(match[1]))
        else:
            merged.append((name, [int(match[1])], value))
    return {_label(name, numbers): value for name, numbers, value in merged}


def _label(name: str, numbers: list[int]) -> str:
    if not numbers:
        return name
    return f"layer {numbers[0]}" if len(numbers) == 1 else f"layers {numbers[0]}-{numbers[-1]}"
