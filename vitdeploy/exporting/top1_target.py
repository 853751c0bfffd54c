"""A quantized artifact must be as often right, or of the same opinion as the reference, as was asked for."""

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
from vitdeploy.exporting.calibration_images import CalibrationImages
from vitdeploy.exporting.options import MaxDrop

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from vitdeploy.exporting.options import AccuracyBound
    from vitdeploy.images.processor import ImageProcessor
    from vitdeploy.runtimes.base import Runtime
    from vitdeploy.system.progress import Progress


@dataclasses.dataclass(frozen=True, eq=False)
class AccuracyGoal:
    """Images, what is to be said of each, and of how many of them.

    Attributes:
        bound: a MaxDrop or a MinAgreement.
        images: N of them.
        wanted: (N,) int32, the class of each: its label, or what the reference says.
        right: (N,) whether the reference says so.
    """

    bound: AccuracyBound
    images: CalibrationImages
    wanted: NDArray[np.int32]
    right: NDArray[np.bool_]

    @property
    def reference(self) -> int:
        """Of how many images the reference says what is wanted."""
        return int(self.right.sum())

    @property
    def minimum(self) -> int:
        """Of how many images it is to be said at least."""
        # of 1000 images, 0.99 asks for 990, not for 991, as 0.99 in binary would
        return max(not isinstance(self.bound, MaxDrop), int(np.ceil(round(self._share * len(self.right), 6))))

    @property
    def _share(self) -> float:
        """The same as a share of the images."""
        limit = self.bound.limit
        return self.reference / len(self.right) - limit if isinstance(self.bound, MaxDrop) else limit

    def at(self, positions: Sequence[int]) -> AccuracyGoal:
        """See `Goal`."""
        chosen = list(positions)
        return AccuracyGoal(self.bound, self.images.at(chosen), self.wanted[chosen], self.right[chosen])

    @classmethod
    def open(
        cls,
        bound: AccuracyBound,
        path: str | os.PathLike[str],
        reference: Runtime,
        processor: ImageProcessor,
        labels: Sequence[str],
        limit: int | None,
        seed: int,
        problem_type: ProblemType,
        progress: Progress,
    ) -> AccuracyGoal:
        """Run the reference on the images.

        Args:
            bound: what is asked for.
            path: images as `open_images` takes them; for `max_drop` labelled ones, as `open_data` does.
            reference: its runtime.
            processor: of the bundle.
            labels: the model's class names.
            limit: how many images, at most; None for all.
            seed: which ones.
            problem_type: of the model.
            progress: told how far it has come.

        Raises:
            UsageError: the model gives no logits of an image, or none of them is the image's class.
            InputError: there are no images, or they have no labels.
            CheckpointError: the reference gives values that are not finite.
        """
        if not any(spec.name == LOGITS and len(spec.shape) == 2 for spec in reference.outputs):
            names = ", ".join(spec.name for spec in reference.outputs)
            raise UsageError(
                f"{bound} is of a model that gives {LOGITS} of each image, got {names}; leave it out, and see "
                f"vitdeploy debug bisect"
            )
        if problem_type is not ProblemType.SINGLE_LABEL:
            raise UsageError(
                f"{bound} counts images by their best class, which a {problem_type} model does not have; leave it out, "
                f"and bound the difference of its outputs with --tolerance"
            )
        if not isinstance(bound, MaxDrop):
            images = CalibrationImages.open(path, processor, limit, seed, progress)
            wanted = _finite(_best(images, reference), images)
            return cls(bound, images, wanted, np.ones(len(wanted), bool))
        data = open_data(path, labels).subset(limit, seed)
        images = CalibrationImages(ImageSet.of(data), processor, seed, progress)
        return cls(bound, images, data.targets, _finite(_best(images, reference), images) == data.targets)

    def measure(self, runtime: Runtime) -> Accuracy:
        """Of how many images an artifact says what is wanted."""
        found = _best(self.images, runtime)
        return Accuracy(int((found == self.wanted).sum()), len(found))

    def honoured_by(self, found: Accuracy) -> bool:
        """Whether that is enough."""
        return found.correct >= self.minimum

    def check(self, name: str, found: Accuracy) -> dict[str, Any]:
        """See `Goal`."""
        if not self.honoured_by(found):
            raise CheckFailedError(
                f"{name} does not honour {self}: {found}, though the graph did before its inputs and outputs became "
                f"what was asked for; loosen the bound, or leave out embed_resize and io_dtype; nothing was written"
            )
        return {"bound": str(self.bound), **self._record(found)}

    def check_held_out(self, name: str, found: Accuracy) -> dict[str, Any]:
        """See `Goal`; few images tell a share but roughly, so that the bound holds unless they contradict it.

        They do where so many are wrong that even the upper end of the share's 95 % interval is too low.
        """
        if found.interval[1] < self._share:
            raise CheckFailedError(
                f"{name} does not honour {self.bound} on {found.total} held-out images: {found}, "
                f"{self._share:.2%} required; ask for more, or give more images; nothing was written"
            )
        return {**self._record(found), "honoured": self.honoured_by(found)}

    def without(self, found: Accuracy) -> dict[str, Any]:
        """See `Goal`."""
        return {"correct_without": found.correct}

    def _record(self, found: Accuracy) -> dict[str, Any]:
        low, high = found.interval
        return {
            "images": found.total,
            "correct": found.correct,
            "low": round(low, 4),
            "high": round(high, 4),
            "at_least": self.minimum,
            "reference": self.reference,
        }

    def __str__(self) -> str:
        return f"{self.bound}, {self.minimum} of {len(self.wanted)} images"


def _best(images: CalibrationImages, runtime: Runtime) -> NDArray[np.int32]:
    """(N,) the best class of each image."""
    found = [
        best_classes(runtime.run(feeds(runtime.inputs, image[runtime.pixels]))[LOGITS], 1)[0][0, 0]
        for image in images.pixels(runtime.pixels)
    ]
    return np.array(found, np.int32)


def _finite(classes: NDArray[np.int32], images: CalibrationImages) -> NDArray[np.int32]:
    """What the reference says, where it says something of every image."""
    for name, best in zip(images.images.names, classes, strict=True):
        if best == NOT_FINITE:
            raise CheckpointError(
                f"the reference must give finite logits, gives others for {name!r} of {images.images.source}; mend the "
                f"weights, or the numbers of the image processor"
            )
    return classes
