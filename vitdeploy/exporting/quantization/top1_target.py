"""Accuracy target by the top-1 class of each image: its label, or the reference's top-1 class."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from vitdeploy.assess.data.dataset import open_data
from vitdeploy.assess.data.image_set import ImageSet
from vitdeploy.assess.data.images import feeds
from vitdeploy.assess.metrics.accuracy import NOT_FINITE, Accuracy, best_classes
from vitdeploy.assess.metrics.outputs import LOGITS
from vitdeploy.bundle.scores import ProblemType
from vitdeploy.errors import CheckFailedError, CheckpointError, UsageError
from vitdeploy.exporting.options import MaxDrop
from vitdeploy.exporting.quantization.calibration_images import CalibrationImages

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from vitdeploy.exporting.options import AccuracyBound
    from vitdeploy.exporting.quantization.calibration_images import Source
    from vitdeploy.runtimes.base import Runtime


@dataclasses.dataclass(frozen=True, eq=False)
class Top1Target:
    """See `AccuracyTarget`.

    Attributes:
        bound: MaxDrop or MinAgreement.
        images: N images.
        wanted: Class of each image, (N,) int32: its label, or the reference's top-1 class.
        right: True where the reference predicts that class, (N,) bool.
    """

    bound: AccuracyBound
    images: CalibrationImages
    wanted: NDArray[np.int32]
    right: NDArray[np.bool_]

    @classmethod
    def of(
        cls,
        bound: AccuracyBound,
        images: CalibrationImages,
        reference: Runtime,
        problem_type: ProblemType,
        targets: NDArray[np.int32] | None,
        batch_size: int = 1,
    ) -> Top1Target:
        """Run the reference on images; `targets` are their labels, (N,), which MaxDrop needs.

        Raises:
            UsageError: If the model has no logits, or none for an image's class.
            CheckpointError: If the reference's outputs are not finite.
        """
        _check_model(bound, reference, problem_type)
        classes = _finite(_best(images, reference, batch_size), images)
        if targets is None:
            return cls(bound, images, classes, np.ones(len(classes), bool))
        return cls(bound, images, targets, classes == targets)

    @property
    def minimum(self) -> int:
        """Number of images for which an artifact must give that class."""
        # of 1000 images, 0.99 requires 990, not 991 as its binary value would
        return max(int(not isinstance(self.bound, MaxDrop)), int(np.ceil(round(self.share * len(self.right), 6))))

    @property
    def share(self) -> float:
        """Share of images for which an artifact must give that class."""
        limit = self.bound.limit
        return float(self.right.mean()) - limit if isinstance(self.bound, MaxDrop) else limit

    def at(self, positions: Sequence[int]) -> Top1Target:
        chosen = list(positions)
        return Top1Target(self.bound, self.images.at(chosen), self.wanted[chosen], self.right[chosen])

    def measure(self, runtime: Runtime, batch_size: int = 1) -> Accuracy:
        """Count the images for which the artifact gives that class."""
        best = _best(self.images, runtime, batch_size)
        return Accuracy(int((best == self.wanted).sum()), len(best))

    def met_by(self, accuracy: Accuracy) -> bool:
        return accuracy.correct >= self.minimum

    reached_by = met_by

    def check(self, name: str, accuracy: Accuracy) -> dict[str, Any]:
        if not self.reached_by(accuracy):
            raise CheckFailedError(
                f"{name} does not reach {self}: {accuracy}; the float graph did, before its inputs and outputs changed",
                what=name, expected=str(self.bound), found=accuracy,
                hint="loosen the bound, or leave out embed_resize and io_dtype; nothing was written",
            )  # fmt: skip
        return {"bound": str(self.bound), **self._record(accuracy)}

    def check_held_out(self, name: str, accuracy: Accuracy) -> dict[str, Any]:
        """See `AccuracyTarget`; few images fail the bound only if the upper end of their 95 % interval is below it."""
        if accuracy.interval[1] < self.share:
            raise CheckFailedError(
                f"{name} does not reach {self.bound} on {accuracy.total} held-out images: {accuracy}, "
                f"{self.share:.2%} required",
                what=name, expected=str(self.bound), found=accuracy,
                hint="ask for more, or give more images; nothing was written",
            )  # fmt: skip
        return {**self._record(accuracy), "honoured": self.reached_by(accuracy)}

    def record_without(self, accuracy: Accuracy) -> dict[str, Any]:
        return {"correct_without": accuracy.correct}

    def _record(self, accuracy: Accuracy) -> dict[str, Any]:
        low, high = accuracy.interval
        return {
            "images": accuracy.total,
            "correct": accuracy.correct,
            "low": round(low, 4),
            "high": round(high, 4),
            "at_least": self.minimum,
            "reference": int(self.right.sum()),
        }

    def __str__(self) -> str:
        return f"{self.bound}, {self.minimum} of {len(self.wanted)} images"


def open_top1_target(
    bound: AccuracyBound, reference: Runtime, problem_type: ProblemType, labels: Sequence[str], source: Source
) -> Top1Target:
    """Run the reference on the images, which must have labels for MaxDrop.

    Raises:
        UsageError: If the model has no logits, or none for an image's class.
        InputError: If there are no images or no labels.
        CheckpointError: If the reference's outputs are not finite.
    """
    _check_model(bound, reference, problem_type)  # before the images are read
    if isinstance(bound, MaxDrop):
        path, processor, limit, seed, progress = source
        data = open_data(path, labels).subset(limit, seed)
        images = CalibrationImages(ImageSet.of(data), processor, seed, progress)
        return Top1Target.of(bound, images, reference, problem_type, data.targets)
    return Top1Target.of(bound, CalibrationImages.open(*source), reference, problem_type, None)


def _check_model(bound: AccuracyBound, reference: Runtime, problem_type: ProblemType) -> None:
    """Raise UsageError unless the model gives logits with a best class."""
    names = [spec.name for spec in reference.outputs]
    if not any(spec.name == LOGITS and len(spec.shape) == 2 for spec in reference.outputs):
        raise UsageError(
            f"{bound} needs a model that gives {LOGITS} of each image; this one gives {', '.join(names)}",
            what="accuracy", expected=LOGITS, found=names, hint="leave it out, and see vitdeploy debug bisect",
        )  # fmt: skip
    if not problem_type.ranked:
        raise UsageError(
            f"{bound} counts images by their best class, which a {problem_type} model does not have",
            what="accuracy", found=problem_type, hint="leave it out, and bound the difference with --tolerance",
        )  # fmt: skip


def _best(images: CalibrationImages, runtime: Runtime, batch_size: int = 1) -> NDArray[np.int32]:
    """The top-1 class of each image, (N,)."""
    classes = [
        best_classes(runtime.run(feeds(runtime.inputs, batch[runtime.pixels]))[LOGITS], 1)[0][:, 0]
        for batch in images.batches(batch_size, runtime.pixels)
    ]
    return np.concatenate(classes).astype(np.int32, copy=False)


def _finite(classes: NDArray[np.int32], images: CalibrationImages) -> NDArray[np.int32]:
    """The classes; raises CheckpointError if the reference's logits for an image are not finite."""
    for name, best in zip(images.images.names, classes, strict=True):
        if best == NOT_FINITE:
            raise CheckpointError(
                f"the reference's logits for {name!r} of {images.images.source} are not finite",
                what=LOGITS, where=name, hint="check the weights, and the numbers of the image processor",
            )  # fmt: skip
    return classes
