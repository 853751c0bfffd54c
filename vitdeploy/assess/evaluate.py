"""Accuracy on labelled images, of every backend in one pass."""

from __future__ import annotations

import collections
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitdeploy.assess.accuracy import Accuracy, Calibration, Predictions, calibration
from vitdeploy.assess.samples import labelled_files
from vitdeploy.errors import UsageError
from vitdeploy.predictor import batch_size_for

if TYPE_CHECKING:
    import os

    from numpy.typing import NDArray

    from vitdeploy.predictor import Predictor

REFERENCE = "reference"


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
    """What every backend made of a labelled data set.

    Attributes:
        bundle: the folder.
        data: the folder or file of the data set.
        labels: the model's class names, in the order of the logits.
        images: the names of the N images, each its own, with forward slashes.
        targets: (N,) int32, the index of each image's label among `labels`.
        data_sha256: of the names, labels and bytes of every image.
        results: one a backend and artifact, also of those that were skipped.
        settings: how the images were chosen and their labels matched, and what they ran with.
    """

    bundle: str
    data: str
    labels: tuple[str, ...]
    images: tuple[str, ...]
    targets: NDArray[np.int32]
    data_sha256: str
    results: tuple[Predictions, ...]
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def status(self) -> str:
        """The outcome: "skipped" if a backend was, or none ran; else "passed"."""
        ran = [result.skipped is None for result in self.results]
        return "passed" if ran and all(ran) else "skipped"

    @property
    def reference(self) -> Predictions | None:
        """The reference's predictions, where it ran."""
        found = [result for result in self.results if result.artifact == REFERENCE and result.skipped is None]
        return found[0] if found else None

    def top1(self, result: Predictions) -> Accuracy:
        """Images whose best class is their label."""
        return self._accuracy(self._best(result) == self.targets)

    def top5(self, result: Predictions) -> Accuracy:
        """Images whose label is among the five best classes."""
        self._best(result)
        return self._accuracy((result.classes == self.targets[:, None]).any(axis=1))

    def per_class(self, result: Predictions) -> dict[str, Accuracy]:
        """Top-1 accuracy on the images of each label that has any; a name that two classes have ends in its index."""
        correct = self._best(result) == self.targets
        found = {}
        for index, name in enumerate(self.class_names):
            members = np.flatnonzero(self.targets == index)
            if len(members):
                wrong = tuple(self.images[image] for image in members[~correct[members]])
                found[name] = Accuracy(len(members) - len(wrong), len(members), wrong)
        return found

    def confusion(self, result: Predictions) -> NDArray[np.int64]:
        """(C, C): how many images of the row's label have the column's class for their best.

        Images whose logits are not all finite are in no column.
        """
        best, classes = self._best(result), len(self.labels)
        finite = best >= 0
        cells = self.targets[finite].astype(np.int64) * classes + best[finite]
        return np.bincount(cells, minlength=classes * classes).reshape(classes, classes)

    def confused(self, result: Predictions) -> list[tuple[str, str, int]]:
        """Label, best class and how many images, where the two differ; the most frequent first."""
        pairs = zip(self.targets.tolist(), self._best(result).tolist(), strict=True)
        counts = collections.Counter((label, best) for label, best in pairs if best not in (label, -1))
        ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        names = self.class_names
        return [(names[label], names[best], count) for (label, best), count in ordered]

    def calibration(self, result: Predictions) -> Calibration:
        """In 15 bins of equal width."""
        return calibration(result.scores, self._best(result) == self.targets)

    def agreement(self, result: Predictions, with_: Predictions) -> Accuracy:
        """Images of which both make the same best class; two that are not finite do not agree."""
        first, second = self._best(result), self._best(with_)
        return self._accuracy((first == second) & (first >= 0))

    @property
    def class_names(self) -> tuple[str, ...]:
        """`labels`, with its index behind a name that two classes have, as ImageNet's cranes."""
        counts = collections.Counter(self.labels)
        return tuple(name if counts[name] == 1 else f"{name} ({index})" for index, name in enumerate(self.labels))

    def to_dict(self) -> dict[str, Any]:
        return {
            "status": self.status,
            "bundle": self.bundle,
            "data": self.data,
            "data_sha256": self.data_sha256,
            "images": len(self.images),
            "labels": list(self.labels),
            "settings": self.settings,
            "results": [self._result_dict(result) for result in self.results],
        }

    def _result_dict(self, result: Predictions) -> dict[str, Any]:
        head = {
            "artifact": result.artifact,
            "backend": result.backend,
            "precision": result.precision,
            "status": "passed" if result.skipped is None else "skipped",
            "skipped": result.skipped,
            "details": result.details,
        }
        if result.skipped is not None:
            return head
        per_class = {name: accuracy.to_dict() for name, accuracy in self.per_class(result).items()}
        reference = self.reference
        return {
            **head,
            "top1": self.top1(result).to_dict(),
            "top5": self.top5(result).to_dict(),
            "agreement": None if reference is None else self.agreement(result, reference).to_dict(),
            "not_finite": result.not_finite,
            "calibration": self.calibration(result).to_dict(),
            "per_class": {name: {key: row[key] for key in row if key != "wrong"} for name, row in per_class.items()},
            "confused": [
                {"label": label, "predicted": best, "images": count} for label, best, count in self.confused(result)
            ],
        }

    def _best(self, result: Predictions) -> NDArray[np.int32]:
        if result.skipped is not None:
            raise UsageError(f"a backend must have run to be assessed, {result.name} was skipped: {result.skipped}")
        return result.classes[:, 0]

    def _accuracy(self, correct: NDArray[np.bool_]) -> Accuracy:
        wrong = tuple(self.images[image] for image in np.flatnonzero(~correct))
        return Accuracy(len(correct) - len(wrong), len(correct), wrong)


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
