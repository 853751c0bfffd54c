"""Accuracy on labelled images."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from vitdeploy.assess.samples import labelled_files

if TYPE_CHECKING:
    import os

    from vitdeploy.predictor import Predictor


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """Top-1 accuracy with its 95 % Wilson interval; shares are from 0 to 1.

    Attributes:
        correct: images whose best class is their label.
        total: images.
    """

    correct: int
    total: int

    @property
    def value(self) -> float:
        return self.correct / self.total

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson (1927), doi:10.1080/01621459.1927.10502953, at z = 1.96."""
        z2, share = 1.959964**2, self.value
        center = (share + z2 / (2 * self.total)) / (1 + z2 / self.total)
        half = math.sqrt(z2 * (share * (1 - share) + z2 / (4 * self.total)) / self.total) / (1 + z2 / self.total)
        return center - half, center + half

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.value:.2%} ({low:.2%} to {high:.2%}, {self.correct} of {self.total})"

    def to_dict(self) -> dict[str, Any]:
        low, high = self.interval
        return {**dataclasses.asdict(self), "accuracy": self.value, "low": low, "high": high}


def evaluate(predictor: Predictor, data: str | os.PathLike[str], *, batch_size: int = 32) -> Accuracy:
    """Top-1 accuracy of a predictor on a folder of images, one folder a class.

    Args:
        predictor: of a classifier.
        data: the folder; its folders are named like the model's classes.
        batch_size: images that run together.

    Raises:
        InputError: there are no images, or one is not in a folder named like a class.
    """
    pairs = labelled_files(data, predictor.labels)
    correct = 0
    for start in range(0, len(pairs), batch_size):
        paths, labels = zip(*pairs[start : start + batch_size], strict=True)
        best = predictor.logits(predictor.processor(list(paths))).argmax(axis=1)
        correct += int((best == np.array(labels)).sum())
    return Accuracy(correct, len(pairs))
