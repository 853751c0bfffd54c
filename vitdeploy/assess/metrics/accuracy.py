"""Predictions on labelled images, accuracy and calibration (numpy alone)."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from vitdeploy.assess.metrics.shares import wilson

if TYPE_CHECKING:
    from numpy.typing import NDArray

MOST_CLASSES = 5  # that are kept of an image
NOT_FINITE = -1  # for a class, where logits are not finite


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """A share of images that are right, with its 95 % Wilson interval; shares are from 0 to 1.

    Attributes:
        correct: Images that are right, such as those whose best class is their label.
        total: Images, from 1 up.
        wrong: The names of the others, where they are known.
    """

    correct: int
    total: int
    wrong: tuple[str, ...] = ()

    @property
    def value(self) -> float:
        return self.correct / self.total

    @property
    def interval(self) -> tuple[float, float]:
        return wilson(self.correct, self.total)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.value:.2%} ({low:.2%} to {high:.2%}, {self.correct} of {self.total})"

    def to_dict(self) -> dict[str, Any]:
        low, high = self.interval
        return {**dataclasses.asdict(self), "accuracy": self.value, "low": low, "high": high}


@dataclasses.dataclass(frozen=True, eq=False)
class Predictions:
    """Predictions of one backend for every image of a data set.

    Attributes:
        artifact: Such as "onnx-fp32"; "reference" for the torch reference.
        backend: What ran it; "" where no backend of this version does.
        precision: Of the artifact.
        classes: (N, k) int32, the k = min(5, number of classes) best classes of each image, the best first; -1 in a
            row whose logits are not all finite.
        scores: (N,) float32, the softmax of the best class's logit; NaN where the logits are not all finite.
        details: What really ran.
        skipped: Why it could not run, and then `classes` and `scores` are of no image; None where it did.
    """

    artifact: str
    backend: str
    precision: str
    classes: NDArray[np.int32]
    scores: NDArray[np.float32]
    details: dict[str, Any] = dataclasses.field(default_factory=dict)
    skipped: str | None = None

    @property
    def name(self) -> str:
        return f"{self.backend} {self.precision}"

    @property
    def not_finite(self) -> int:
        """Number of images whose logits are not all finite; they count as wrong."""
        return int((self.classes[:, 0] == NOT_FINITE).sum())


def best_classes(logits: NDArray[Any], count: int = MOST_CLASSES) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """The best classes of each image, and the softmax score of the best one.

    Args:
        logits: (N, C) of any floating-point type.
        count: How many classes; all C where there are fewer.

    Returns:
        (N, min(count, C)) int32 and (N,) float32; a row that is not all finite gives -1 and NaN. Of equal logits the
        lower class is the better.
    """
    finite = np.isfinite(logits).all(axis=1)  # (N,)
    values = np.where(finite[:, None], logits, 0).astype(np.float64)  # (N, C)
    classes = np.argsort(-values, axis=1, kind="stable")[:, :count].astype(np.int32)
    scores = 1 / np.exp(values - values.max(axis=1, keepdims=True)).sum(axis=1)
    classes[~finite], scores[~finite] = NOT_FINITE, np.nan
    return classes, scores.astype(np.float32)


@dataclasses.dataclass(frozen=True)
class CalibrationBin:
    """Images whose score is above `low` and at most `high`; their mean score and accuracy, NaN where there are none."""

    low: float
    high: float
    count: int
    score: float
    accuracy: float


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Calibration of scores: Guo et al. (2017), arXiv:1706.04599.

    Attributes:
        ece: The expected calibration error, from 0 to 1: the mean over the images of the difference, in their bin,
            between mean score and accuracy; NaN where no image has finite logits.
        bins: Of equal width, from 0 to 1.
    """

    ece: float
    bins: tuple[CalibrationBin, ...]

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def calibration(scores: NDArray[np.floating[Any]], correct: NDArray[np.bool_], bins: int = 15) -> Calibration:
    """The calibration of scores (N,), from 0 to 1, of images that are `correct` (N,) or not; NaNs are left out."""
    kept = np.isfinite(scores)
    values, hits = scores[kept].astype(np.float64), correct[kept]
    edges = np.linspace(0, 1, bins + 1)
    place = np.clip(np.searchsorted(edges, values, side="left") - 1, 0, bins - 1)  # of scores above the lower edge
    intervals = []
    for index in range(bins):
        inside = place == index
        count = int(inside.sum())
        score, accuracy = (float(of[inside].mean()) if count else math.nan for of in (values, hits))
        intervals.append(CalibrationBin(float(edges[index]), float(edges[index + 1]), count, score, accuracy))
    gaps = sum(interval.count * abs(interval.score - interval.accuracy) for interval in intervals if interval.count)
    return Calibration(gaps / len(values) if len(values) else math.nan, tuple(intervals))
