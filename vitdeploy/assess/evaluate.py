"""Accuracy on labelled images."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitdeploy.assess.samples import labelled_files
from vitdeploy.errors import UsageError
from vitdeploy.predictor import batch_size_for

if TYPE_CHECKING:
    import os

    from vitdeploy.predictor import Predictor


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """Top-1 accuracy with its 95 % Wilson interval; shares are from 0 to 1.

    Attributes:
        correct: images whose best class is their label.
        total: images.
        wrong: the other images, as paths below the folder of images, where they are known.
    """

    correct: int
    total: int
    wrong: tuple[str, ...] = ()

    @property
    def value(self) -> float:
        return self.correct / self.total

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson (1927), doi:10.1080/01621459.1927.10502953, at z = 1.96."""
        z2, share = 1.959964**2, self.value
        center = (share + z2 / (2 * self.total)) / (1 + z2 / self.total)
        half = math.sqrt(z2 * (share * (1 - share) + z2 / (4 * self.total)) / self.total) / (1 + z2 / self.total)
        return max(center - half, 0.0), min(center + half, 1.0)  # at 0 and 1 exact, but for rounding

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.value:.2%} ({low:.2%} to {high:.2%}, {self.correct} of {self.total})"

    def to_dict(self) -> dict[str, Any]:
        low, high = self.interval
        return {**dataclasses.asdict(self), "accuracy": self.value, "low": low, "high": high}


def evaluate(predictor: Predictor, data: str | os.PathLike[str], *, batch_size: int = 32) -> Accuracy:
    """Top-1 accuracy of a predictor on a folder of images, one folder a class.

    An image whose logits are not all finite counts as wrong.

    Args:
        predictor: of a classifier.
        data: the folder; its folders are named like the model's classes.
        batch_size: images that run together, from 1 up.

    Raises:
        UsageError: the model is no classifier, or the batch size is below 1.
        InputError: there are no images, one cannot be read, or one is not in a folder named like a class.
    """
    if not predictor.labels:
        raise UsageError("evaluate needs a model with classes, this one has none; export it as image-classification")
    if batch_size < 1:
        raise UsageError(f"batch_size must be at least 1, got {batch_size}")
    pairs = labelled_files(data, predictor.labels)
    wrong: list[Path] = []
    batch_size = batch_size_for(predictor.processor, predictor.runtime, batch_size)
    for start in range(0, len(pairs), batch_size):
        paths, labels = zip(*pairs[start : start + batch_size], strict=True)
        logits = predictor.logits(predictor.processor(list(paths), pixels=predictor.runtime.pixels))  # (N, num_labels)
        correct = (logits.argmax(axis=1) == np.array(labels)) & np.isfinite(logits).all(axis=1)  # (N,)
        wrong.extend(path for path, hit in zip(paths, correct, strict=True) if not hit)
    names = tuple(path.relative_to(Path(data)).as_posix() for path in wrong)
    return Accuracy(len(pairs) - len(wrong), len(pairs), names)
