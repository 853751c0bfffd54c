"""Graphs to choose from, and which of their nodes stay in float32: decided by whoever can measure them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path

    from vitdeploy.exporters.variants import Variants
    from vitdeploy.specs import PixelFormat


class Candidate(NamedTuple):
    """A way to quantize a graph.

    Attributes:
        name: of it, such as "smooth_quant 0.5".
        variants: with nodes of it in float32.
        differing: the nodes in which the candidates differ, by the names of their first outputs.
    """

    name: str
    variants: Variants
    differing: Collection[str]


class Choice(NamedTuple):
    """What was chosen.

    Attributes:
        candidate: its name.
        kept: the nodes that stay in float32, by the names of their first outputs.
        record: what was measured, for the manifest.
    """

    candidate: str
    kept: Collection[str]
    record: Mapping[str, Any]


class Choose(Protocol):
    """Choose one of several candidates, or of one alone which of its nodes stay in float32.

    Args:
        candidates: in the order in which they are to be taken where none is better.
        pixels: what their graphs take.
        folder: where graphs may lie meanwhile.

    Raises:
        CheckFailedError: none of them is accurate enough.
    """

    def __call__(self, candidates: Sequence[Candidate], pixels: PixelFormat, folder: Path) -> Choice: ...
