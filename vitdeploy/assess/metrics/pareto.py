"""Accuracy against latency: the settings that no other one beats in both."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from vitdeploy.assess.metrics.accuracy import Accuracy

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Quality:
    """How right a setting's outputs are, on N images.

    Attributes:
        images: Number of images.
        top1: Images whose top-1 class is their label; None without labels.
        agreement: Images with the reference's top-1 class; None without classes or without the reference.
        mean_cosine: Mean cosine similarity of the vectors with the reference's, the lowest of the outputs; None without
            the reference. See `vitdeploy.assess.metrics.features`.
    """

    images: int
    top1: Accuracy | None = None
    agreement: Accuracy | None = None
    mean_cosine: float | None = None

    @property
    def value(self) -> float:
        """The measure that settings are compared by: top-1 accuracy, or without labels the mean cosine."""
        if self.top1 is not None:
            return self.top1.value
        return -1.0 if self.mean_cosine is None else self.mean_cosine

    def __str__(self) -> str:
        """Such as "98.20% top-1, 99.10% agree" or "cosine 0.99812"."""
        if self.top1 is None:
            return f"cosine {self.value:.5f}"
        agreement = "" if self.agreement is None else f", {self.agreement.value:.2%} agree"
        return f"{self.top1.value:.2%} top-1{agreement}"

    def to_dict(self) -> dict[str, Any]:
        shares = {"top1": self.top1, "agreement": self.agreement}
        return {
            "images": self.images,
            **{name: None if share is None else share.value for name, share in shares.items()},
            "mean_cosine": self.mean_cosine,
        }


def pareto_front(points: Sequence[tuple[float, float]]) -> tuple[bool, ...]:
    """True for each (time, quality) that no other point beats: less time and no less quality, or the reverse.

    Equal points are all in the front, or none is.
    """
    return tuple(
        not any(other != point and other[0] <= point[0] and other[1] >= point[1] for other in points)
        for point in points
    )
