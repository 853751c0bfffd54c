"""Agreement of a quantized artifact's outputs with the reference's, over images."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Agreement:
    """One output of an artifact beside the reference's, on N images.

    Attributes:
        output: Its name.
        images: N.
        top1_agreement: The share of images with the same best class; None for an output that is not `logits`, and for
            logits of which none is the best class.
        mean_cosine: The mean of the images' cosine similarities; None, as the next two, for a regression's logits.
        p5_cosine: Their 5th percentile.
        min_cosine: The lowest of them.
        error: The length of the difference over the length of the reference's output, of all images together; of the
            logits of a single-label classifier less their mean over the classes.
        relative_error: Of logits of which none is the best class (a single value's cosine is that of its sign): the
            length of the difference over that of the reference's values, of all images together; of a regression, whose
            values have units of their own, that of its worst value. None for other outputs.
        same_neighbours: How many images have the reference's nearest neighbour among them, see `features.Nearness`.
    """

    output: str
    images: int
    top1_agreement: float | None
    mean_cosine: float | None
    p5_cosine: float | None
    min_cosine: float | None
    error: float
    relative_error: float | None = None
    same_neighbours: int | None = None

    @property
    def neighbour_agreement(self) -> float | None:
        """The share of images with the same nearest neighbour."""
        return None if self.same_neighbours is None else round(self.same_neighbours / self.images, 6)

    def to_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "neighbour_agreement": self.neighbour_agreement}

    @classmethod
    def of(
        cls,
        output: str,
        cosines: Sequence[float | None],
        same: Sequence[float] | None,
        error: float,
        of_values: float | None = None,
    ) -> Agreement:
        """From each image's cosine (a regression has none), whether its best class is the same, and errors; rounded."""
        known = [cosine for cosine in cosines if cosine is not None]
        return cls(
            output,
            len(cosines),
            top1_agreement=None if same is None else round(float(np.mean(same)), 6),
            mean_cosine=round(float(np.mean(known)), 6) if known else None,
            p5_cosine=round(float(np.percentile(known, 5)), 6) if known else None,
            min_cosine=round(min(known), 6) if known else None,
            error=float(f"{error:.3g}"),
            relative_error=None if of_values is None else float(f"{of_values:.3g}"),
        )
