"""Predictions on labelled images, accuracy and calibration (numpy only)."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from vitdeploy.assess.metrics.shares import wilson
from vitdeploy.bundle.scores import ProblemType

if TYPE_CHECKING:
    from numpy.typing import NDArray

MOST_CLASSES = 5  # classes kept per image
NOT_FINITE = -1  # class index for non-finite logits


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """Share of correct images, with its 95 % Wilson interval; shares are from 0 to 1.

    Attributes:
        correct: Number of correct images, for example with their label as top-1 class.
        total: Number of images, at least 1.
        wrong: Names of the others, if known.
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
        artifact: Name, such as "onnx-fp32"; "reference" for the torch reference.
        backend: Backend that ran it; "" if no backend of this version runs it.
        precision: Precision of the artifact.
        classes: Top-k classes of each image, best first, (N, k) int32, k = min(5, number of classes); -1 in a row with
            non-finite logits.
        scores: Score of the top-1 class (softmax, or sigmoid of a pairwise head), (N,) float32; NaN for non-finite
            logits.
        details: Engine, device and settings that ran.
        skipped: Reason why it could not run, with empty `classes` and `scores`; None if it ran.
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
        """Number of images with non-finite logits; they count as wrong."""
        return int((self.classes[:, 0] == NOT_FINITE).sum())


def best_classes(
    logits: NDArray[Any], count: int = MOST_CLASSES, problem_type: ProblemType = ProblemType.SINGLE_LABEL
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Top classes of each image, and the score of the top-1 class.

    Args:
        logits: Array (N, C) of any floating-point type.
        count: Number of classes; all C if there are fewer.
        problem_type: A ranked one: the score is the softmax, or the sigmoid of a pairwise head.

    Returns:
        (N, min(count, C)) int32 and (N,) float32; -1 and NaN for a row with non-finite logits. Among equal logits, the
        lower class comes first.
    """
    finite = np.isfinite(logits).all(axis=1)  # (N,)
    values = np.where(finite[:, None], logits, 0).astype(np.float64)  # (N, C)
    classes = np.argsort(-values, axis=1, kind="stable")[:, :count].astype(np.int32)
    best = values.max(axis=1, keepdims=True)  # (N, 1)
    if problem_type is ProblemType.PAIRWISE:
        scores = problem_type.scores(best)[:, 0]
    else:
        scores = 1 / np.exp(values - best).sum(axis=1)
    classes[~finite], scores[~finite] = NOT_FINITE, np.nan
    return classes, scores.astype(np.float32)


@dataclasses.dataclass(frozen=True)
class CalibrationBin:
    """Images with a score above `low` and at most `high`: their mean score and accuracy, NaN without images."""

    low: float
    high: float
    count: int
    score: float
    accuracy: float


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Calibration of scores: Guo et al. (2017), arXiv:1706.04599.

    Attributes:
        ece: Expected calibration error, 0 to 1: mean over images of the difference between mean score and accuracy in
            their bin; NaN if no image has finite logits.
        bins: Bins of equal width, from 0 to 1.
    """

    ece: float
    bins: tuple[CalibrationBin, ...]

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def calibration(scores: NDArray[np.floating[Any]], correct: NDArray[np.bool_], bins: int = 15) -> Calibration:
    """Calibration of scores (N,), 0 to 1, of images that are `correct` (N,) or not; NaNs are ignored."""
    kept = np.isfinite(scores)
    values, hits = scores[kept].astype(np.float64), correct[kept]
    edges = np.linspace(0, 1, bins + 1)
    place = np.clip(np.searchsorted(edges, values, side="left") - 1, 0, bins - 1)  # scores above the lower edge
    intervals = []
    for index in range(bins):
        inside = place == index
        count = int(inside.sum())
        score, accuracy = (float(of[inside].mean()) if count else math.nan for of in (values, hits))
        intervals.append(CalibrationBin(float(edges[index]), float(edges[index + 1]), count, score, accuracy))
    gaps = sum(interval.count * abs(interval.score - interval.accuracy) for interval in intervals if interval.count)
    return Calibration(gaps / len(values) if len(values) else math.nan, tuple(intervals))
