"""The run of one backend over the images of an evaluation."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import numpy as np

from vitdeploy.assess.metrics.accuracy import MOST_CLASSES, NOT_FINITE, Predictions, best_classes
from vitdeploy.assess.metrics.outputs import LOGITS
from vitdeploy.errors import UnavailableError
from vitdeploy.predictor import batch_size_for, check_classes, check_fit

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vitdeploy.assess.data.loader import Prepared
    from vitdeploy.assess.runs.open_runtimes import OpenRuntimes
    from vitdeploy.assess.runs.targets import Selected
    from vitdeploy.runtimes.base import Runtime
    from vitdeploy.specs import PixelFormat

# Options of a backend that takes turns: spinning idle threads would take cores from image decoding and from the next
# backend.
BESIDE_OTHERS: dict[str, dict[str, Any]] = {"onnxruntime": {"allow_spinning": False}}


class BackendRun:
    """A backend and its results so far; one that cannot run has a reason and no results.

    Args:
        selected: Artifact and backend to run.
        runtimes: Runtimes of its bundle.
        labels: The model's class names.
        count: Number of images.

    Attributes:
        runtime: The open runtime; None if the backend is skipped.
        skipped: Reason for skipping it, if any.

    Raises:
        BundleError: If a file was altered, or the artifact does not fit the processor or the labels.
        UsageError: If the backend has no such precision.
    """

    def __init__(self, selected: Selected, runtimes: OpenRuntimes, labels: Sequence[str], count: int) -> None:
        self.selected = selected
        self.runtime: Runtime | None = None
        self.skipped: str | None = None
        self._runtimes, self._stack = runtimes, contextlib.ExitStack()
        self._details: dict[str, Any] = {}
        self._class_count = len(labels)
        self._classes = np.full((count, min(MOST_CLASSES, len(labels))), NOT_FINITE, np.int32)
        self._scores = np.full(count, np.nan, np.float32)
        try:
            self.runtime = self._stack.enter_context(runtimes.open(selected))
        except UnavailableError as exc:
            self._skip(str(exc))
            return
        self._details = self.runtime.details
        names = [spec.name for spec in self.runtime.outputs]
        try:
            if LOGITS in names:
                check_fit(runtimes.bundle, runtimes.processor, self.runtime)
                check_classes(runtimes.bundle, labels, self.runtime)
            else:
                self._skip(f"it gives {', '.join(names)}, and no logits")
        except BaseException:
            self.close()
            raise

    @property
    def details(self) -> dict[str, Any]:
        """Details of the runtime, or the reason for skipping it."""
        return {"skipped": self.skipped} if self.skipped is not None else self._details

    @property
    def pixels(self) -> PixelFormat | None:
        """Pixel format of the runtime."""
        return None if self.runtime is None else self.runtime.pixels

    def run(self, images: Sequence[Prepared], first: int) -> dict[str, Any]:
        """Run images, of which `first` is the first position; store the results, and return them as plain values."""
        if self.runtime is None:
            return {"skipped": self.skipped}
        size = batch_size_for(self._runtimes.processor, self.runtime, len(images))
        pixels = [image.pixels[self.runtime.pixels] for image in images]
        try:
            logits = [
                self.runtime.run({"pixel_values": np.concatenate(pixels[start : start + size])})[LOGITS]
                for start in range(0, len(pixels), size)
            ]
        except UnavailableError as exc:  # for example out of memory
            self._skip(str(exc))
            return {"skipped": self.skipped}
        classes, scores = best_classes(np.concatenate(logits))
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
        if classes.min() < NOT_FINITE or classes.max() >= self._class_count:
            raise ValueError(f"expected classes below {self._class_count}, got {classes.min()} to {classes.max()}")
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

    def close(self) -> None:
        """Release the runtime."""
        self.runtime = None
        self._stack.close()

    def _keep(self, first: int, classes: np.ndarray, scores: np.ndarray) -> None:
        self._classes[first : first + len(classes)] = classes
        self._scores[first : first + len(scores)] = scores

    def _skip(self, reason: str) -> None:
        self.skipped = reason
        self.close()
        self._runtimes.drop(self.selected)
