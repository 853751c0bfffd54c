"""Agreement of a quantized artifact's outputs with the reference's, over images."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Agreement:
    """Agreement of one output with the reference's, on N images.

    Attributes:
        output: Name of the output.
        images: Number of images, N.
        top1_agreement: Share of images with the same top-1 class; None for an output other than `logits`, and for
            logits without a top-1 class.
        mean_cosine: Mean cosine similarity over images; None for a regression's logits, as are the next two.
        p5_cosine: 5th percentile of the cosine similarity.
        min_cosine: Lowest cosine similarity.
        error: L2 norm of the difference over that of the reference's output, over all images; for a single-label
            classifier's logits, after subtracting their mean over the classes.
        relative_error: For logits without a top-1 class (the cosine of a single value is only its sign): L2 norm of the
            difference over that of the reference, over all images; for a regression, whose values have different units,
            that of its worst value. None for other outputs.
        same_neighbours: Number of images with the reference's nearest neighbour, see `features.Nearness`.
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
        """Share of images with the same nearest neighbour."""
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
        """From each image's cosine (None for a regression), equality of its top-1 class, and errors; rounded."""
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
