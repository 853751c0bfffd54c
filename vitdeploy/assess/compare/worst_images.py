"""The images on which an artifact differs most from the reference (numpy only)."""

from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from vitdeploy.assess.metrics.accuracy import best_classes
from vitdeploy.predictor import Prediction

if TYPE_CHECKING:
    from collections.abc import Sequence

MOST_KEPT = 6


@dataclasses.dataclass(frozen=True)
class WorstImage:
    """An image, with the top-1 classes of reference and artifact.

    Attributes:
        position: Zero-based position among the images.
        image: Path of its file; "" without a file.
        distance: Largest logit difference, over the largest of all the reference's logits; infinite if one is not
            finite.
        reference: Top-1 class and its softmax score; index -1 if any logit is not finite.
        artifact: The same of the artifact.
    """

    position: int
    image: str
    distance: float
    reference: Prediction
    artifact: Prediction


def most_different_images(
    reference: np.ndarray, candidate: np.ndarray, sources: Sequence[Any], labels: Sequence[str]
) -> tuple[WorstImage, ...]:
    """The images whose logits (N, classes) differ most, the largest difference first; without those that are equal.

    `sources` are the N given images. Classes beyond `labels` are named by index.
    """
    a, b = reference.astype(np.float64), candidate.astype(np.float64)
    finite = np.isfinite(a).all(axis=1) & np.isfinite(b).all(axis=1)  # (N,)
    distance = np.full(len(a), np.inf)
    distance[finite] = np.abs(a[finite] - b[finite]).max(axis=1) / (np.abs(a[finite]).max(initial=0.0) or 1.0)
    order = np.argsort(-distance, kind="stable")[:MOST_KEPT].tolist()
    best_a, best_b = (best_classes(logits[order], 1) for logits in (a, b))

    def prediction(best: tuple[np.ndarray, np.ndarray], row: int) -> Prediction:
        index = int(best[0][row, 0])
        name = "not finite" if index < 0 else labels[index] if index < len(labels) else str(index)
        return Prediction(name, index, float(best[1][row]))

    return tuple(
        WorstImage(
            position,
            _path(sources[position]),
            float(distance[position]),
            prediction(best_a, row),
            prediction(best_b, row),
        )
        for row, position in enumerate(order)
        if distance[position] > 0
    )


def _path(source: object) -> str:
    return str(os.fspath(source)) if isinstance(source, (str, os.PathLike)) else ""
