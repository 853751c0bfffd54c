"""Measured by whoever can run graphs: how near one is to the reference, and which of its nodes stay in float32."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

    from vitdeploy.exporters.graph.variants import Variants
    from vitdeploy.specs import PixelFormat


class Closeness(NamedTuple):
    """How near a graph's outputs are to the reference's, on images that no range was measured on; of the worst output.

    Attributes:
        error: the length of the difference over that of what is expected, of all images together; from 0 up.
        mean_cosine: the mean of the images' cosine similarities; None, as the next, for the logits of a regression.
        p5_cosine: their 5th percentile.
    """

    error: float
    mean_cosine: float | None
    p5_cosine: float | None


class KeptNodes(NamedTuple):
    """What stays in float32.

    Attributes:
        nodes: by the names of their first outputs.
        record: what was measured, for the manifest.
    """

    nodes: Collection[str]
    record: Mapping[str, Any]


class Choose(Protocol):
    """Measures what candidates of a quantized graph give.

    Attributes:
        bounded: whether nodes are to stay in float32 until the graph is accurate enough.
    """

    @property
    def bounded(self) -> bool: ...

    def closeness(
        self, name: str, variants: Variants, pixels: PixelFormat, folder: Path, *, one_by_one: bool
    ) -> Closeness:
        """Measure the variant with nothing more in float32.

        Args:
            name: of the candidate, for people.
            variants: of its graph.
            pixels: what it takes.
            folder: where it may lie meanwhile.
            one_by_one: whether images must not be in one batch, because it quantizes a batch by one range.
        """

    def kept(self, variants: Variants, pixels: PixelFormat, folder: Path) -> KeptNodes:
        """As few nodes as make it accurate enough.

        Raises:
            CheckFailedError: none do.
        """
