"""The run of one backend of a classifier over the images of an evaluation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from vitdeploy.assess.evaluate.open_run import OpenRun
from vitdeploy.assess.metrics.accuracy import MOST_CLASSES, NOT_FINITE, Predictions, best_classes
from vitdeploy.assess.metrics.outputs import LOGITS
from vitdeploy.runtimes.fit import check_classes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vitdeploy.assess.data.loader import Prepared
    from vitdeploy.assess.runs.open_runtimes import OpenRuntimes
    from vitdeploy.assess.runs.targets import Selected
    from vitdeploy.runtimes.base import Runtime


class BackendRun(OpenRun):
    """A backend and its results so far; one that cannot run has a reason and no results.

    Args:
        selected: Artifact and backend to run.
        runtimes: Runtimes of its bundle.
        labels: The model's class names.
        count: Number of images.

    Raises:
        BundleError: If a file was altered, or the artifact does not fit the processor or the labels.
        UsageError: If the backend has no such precision.
    """

    def __init__(self, selected: Selected, runtimes: OpenRuntimes, labels: Sequence[str], count: int) -> None:
        self._labels, self._problem_type = labels, runtimes.bundle.read_config().problem_type
        self._classes = np.full((count, min(MOST_CLASSES, len(labels))), NOT_FINITE, np.int32)
        self._scores = np.full(count, np.nan, np.float32)
        super().__init__(selected, runtimes)

    def _prepare(self, runtime: Runtime) -> None:
        names = [spec.name for spec in runtime.outputs]
        if LOGITS in names:
            super()._prepare(runtime)
            check_classes(self._runtimes.bundle, self._labels, runtime)
        else:
            self._skip(f"it gives {', '.join(names)}, and no logits")

    def run(self, images: Sequence[Prepared], first: int) -> dict[str, Any]:
        """Run images, of which `first` is the first position; store the results, and return them as plain values."""
        logits = self.rows(images, lambda outputs: outputs[LOGITS])
        if logits is None:
            return {"skipped": self.skipped}
        classes, scores = best_classes(logits, problem_type=self._problem_type)
        self._keep(first, classes, scores)
        return {"classes": classes.tolist(), "scores": [score if score == score else None for score in scores.tolist()]}

    def restore(self, entry: Mapping[str, Any], first: int, count: int) -> None:
        """Restore results of an earlier `run` on `count` images; KeyError, TypeError or ValueError if malformed."""
        if self.skipped is not None or "skipped" in entry:
            if entry["skipped"] != self.skipped or self.skipped is None:
                raise ValueError(f"{self.selected} is skipped now for another reason, or was not")
            return
        classes = np.array(entry["classes"])  # (count, k)
        scores = np.array([np.nan if score is None else score for score in entry["scores"]])  # (count,)
        if classes.dtype.kind != "i" or classes.shape != (count, self._classes.shape[1]):
            raise ValueError(f"expected indices of the {self._classes.shape[1]} best classes of {count} images")
        if classes.min() < NOT_FINITE or classes.max() >= len(self._labels):
            raise ValueError(f"expected classes below {len(self._labels)}, got {classes.min()} to {classes.max()}")
        if scores.dtype.kind != "f" or scores.shape != (count,) or (scores < 0).any() or (scores > 1).any():
            raise ValueError(f"expected scores from 0 to 1 of {count} images")
        if ((classes == NOT_FINITE) != np.isnan(scores)[:, None]).any():
            raise ValueError("expected a score of every image with a class, and of no other")
        self._keep(first, classes, scores)

    def predictions(self) -> Predictions:
        """Predictions for all images."""
        kept = slice(0, 0) if self.skipped is not None else slice(None)
        artifact, backend, precision = self.selected
        return Predictions(
            artifact, backend, precision, self._classes[kept], self._scores[kept], self._details, self.skipped
        )

    def _keep(self, first: int, classes: np.ndarray, scores: np.ndarray) -> None:
        self._classes[first : first + len(classes)] = classes
        self._scores[first : first + len(scores)] = scores
