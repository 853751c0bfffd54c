"""Figures of predictions on labelled images, whichever way the class was predicted."""

from __future__ import annotations

import abc
import collections
import dataclasses
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import numpy as np

from vitdeploy.assess.data.folder_listing import left_out_dict
from vitdeploy.assess.metrics.accuracy import Accuracy
from vitdeploy.assess.metrics.status import Assessment, counted
from vitdeploy.assess.runs.targets import REFERENCE
from vitdeploy.errors import UsageError
from vitdeploy.specs import Precision

if TYPE_CHECKING:
    from numpy.typing import NDArray


class BackendResult(Protocol):
    """The result of one backend."""

    @property
    def artifact(self) -> str: ...

    @property
    def backend(self) -> str: ...

    @property
    def precision(self) -> str: ...

    @property
    def name(self) -> str: ...

    @property
    def details(self) -> dict[str, Any]: ...

    @property
    def skipped(self) -> str | None: ...


R = TypeVar("R", bound=BackendResult)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class LabelledAssessment(Assessment, Generic[R]):
    """Predictions of every backend on a labelled data set.

    Attributes:
        data: Folder or file of the data set.
        labels: Class names, which `targets` and predicted classes index.
        images: Unique names of the N images, with forward slashes.
        targets: Index of each image's label in `labels`, (N,) int32.
        data_sha256: SHA-256 of the name, label and bytes of every image.
        results: One per backend and artifact, skipped ones included.
        settings: Selection of images, label matching, and run settings.
    """

    data: str
    labels: tuple[str, ...]
    images: tuple[str, ...]
    targets: NDArray[np.int32]
    data_sha256: str
    results: tuple[R, ...]
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)

    @abc.abstractmethod
    def best(self, result: R) -> NDArray[np.int32]:
        """The predicted class of each image, (N,), negative without one; UsageError for a skipped result."""

    @property
    def brief(self) -> str:
        """The result in a few words."""
        statuses = ["passed" if result.skipped is None else "skipped" for result in self.results]
        return f"{len(self.images)} images; {counted(statuses, 'backend')}"

    @property
    def status(self) -> str:
        """Outcome, "skipped" if a backend was skipped or none ran; else "passed"."""
        ran = [result.skipped is None for result in self.results]
        return "passed" if ran and all(ran) else "skipped"

    @property
    def reference(self) -> R | None:
        """The reference's result, if it ran; that in float32 if it ran in several precisions."""
        references = [result for result in self.results if result.artifact == REFERENCE and result.skipped is None]
        return min(references, key=lambda result: result.precision != Precision.FP32, default=None)

    def per_class(self, result: R) -> dict[str, Accuracy]:
        """Accuracy by label, for labels with images; a name shared by two classes ends in its index."""
        correct = self.best(result) == self.targets
        accuracies = {}
        for index, name in enumerate(self.class_names):
            members = np.flatnonzero(self.targets == index)
            if len(members):
                wrong = tuple(self.images[image] for image in members[~correct[members]])
                accuracies[name] = Accuracy(len(members) - len(wrong), len(members), wrong)
        return accuracies

    def confusion(self, result: R) -> NDArray[np.int64]:
        """(C, C) counts of images by label (row) and predicted class (column); images with a prediction only."""
        best, classes = self.best(result), len(self.labels)
        finite = best >= 0
        cells = self.targets[finite].astype(np.int64) * classes + best[finite]
        return np.bincount(cells, minlength=classes * classes).reshape(classes, classes)

    def confused(self, result: R) -> list[tuple[str, str, int]]:
        """Confusions as label, predicted class and image count, the most frequent first."""
        pairs = zip(self.targets.tolist(), self.best(result).tolist(), strict=True)
        counts = collections.Counter((label, best) for label, best in pairs if best not in (label, -1))
        ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        names = self.class_names
        return [(names[label], names[best], count) for (label, best), count in ordered]

    def agreement(self, result: R, with_: R) -> Accuracy:
        """Images with the same predicted class in both; two without one do not agree."""
        first, second = self.best(result), self.best(with_)
        return self.accuracy((first == second) & (first >= 0))

    @property
    def class_names(self) -> tuple[str, ...]:
        """`labels` made unique, with the index after a name that two classes share, such as ImageNet's cranes."""
        names = self.labels
        while len(counts := collections.Counter(names)) < len(names):  # a third class may have the name "crane (0)"
            names = tuple(name if counts[name] == 1 else f"{name} ({index})" for index, name in enumerate(names))
        return names

    def accuracy(self, correct: NDArray[np.bool_]) -> Accuracy:
        """The share of images that are `correct`, (N,), with the names of the others."""
        wrong = tuple(self.images[image] for image in np.flatnonzero(~correct))
        return Accuracy(len(correct) - len(wrong), len(correct), wrong)

    def to_dict(self) -> dict[str, Any]:
        return {
            "status": self.status,
            "bundle": self.bundle,
            "processor": self.processor,
            "data": self.data,
            "data_sha256": self.data_sha256,
            "images": len(self.images),
            "labels": list(self.labels),
            "settings": self.settings,
            "left_out": left_out_dict(self.left_out),
            "results": [self._result_dict(result) for result in self.results],
        }

    @abc.abstractmethod
    def figures(self, result: R) -> dict[str, Any]:
        """The figures of a result that ran, as plain values."""

    def _result_dict(self, result: R) -> dict[str, Any]:
        head = {
            "artifact": result.artifact,
            "backend": result.backend,
            "precision": result.precision,
            "status": "passed" if result.skipped is None else "skipped",
            "skipped": result.skipped,
            "details": result.details,
        }
        return head if result.skipped is not None else {**head, **self.figures(result), **self._by_class(result)}

    def _by_class(self, result: R) -> dict[str, Any]:
        per_class = {name: accuracy.to_dict() for name, accuracy in self.per_class(result).items()}
        return {
            "per_class": {name: {key: row[key] for key in row if key != "wrong"} for name, row in per_class.items()},
            "confused": [
                {"label": label, "predicted": best, "images": count} for label, best, count in self.confused(result)
            ],
        }


def check_ran(result: BackendResult) -> None:
    """Raise UsageError for a skipped result, which has no figures."""
    if result.skipped is not None:
        raise UsageError(f"{result.name} was skipped: {result.skipped}", what=result.name, found=result.skipped)
