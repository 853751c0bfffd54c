"""How accurate a quantized artifact must be: as often right, or of the same opinion as the reference."""

from __future__ import annotations

import dataclasses
import numbers
from typing import TYPE_CHECKING, Any

import numpy as np

from vitdeploy.assess.accuracy import NOT_FINITE, Accuracy, best_classes
from vitdeploy.assess.calibration_images import CalibrationImages
from vitdeploy.assess.dataset import open_data
from vitdeploy.assess.difference import LOGITS
from vitdeploy.assess.image_set import ImageSet
from vitdeploy.assess.samples import feeds
from vitdeploy.errors import CheckFailedError, CheckpointError, UsageError
from vitdeploy.scores import ProblemType

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from vitdeploy.processor import ImageProcessor
    from vitdeploy.runtimes.base import Runtime


@dataclasses.dataclass(frozen=True)
class Bound:
    """What is allowed.

    Attributes:
        max_drop: of the top-1 accuracy on labelled images, against the reference's, in points (percent), from 0 up; or
            None.
        min_agreement: the least share of images, from 0 to 1, of which the best class is the reference's; or None.
    """

    max_drop: float | None = None
    min_agreement: float | None = None

    def __post_init__(self) -> None:
        given = [value for value in (self.max_drop, self.min_agreement) if value is not None]
        if len(given) != 1:
            raise UsageError(
                f"an accuracy bound must be one of max_drop and min_agreement, got {self.max_drop} and "
                f"{self.min_agreement}; give one"
            )
        if self.max_drop is not None and not (_is_number(self.max_drop) and 0 <= self.max_drop < 100):
            raise UsageError(f"max_drop must be points of accuracy from 0 up to 100, got {self.max_drop!r:.80}")
        if self.min_agreement is not None and not (_is_number(self.min_agreement) and 0 < self.min_agreement <= 1):
            raise UsageError(
                f"min_agreement must be a share above 0 and up to 1, such as 0.99, got {self.min_agreement!r:.80}"
            )

    def __str__(self) -> str:
        return f"max_drop {self.max_drop:g}" if self.max_drop is not None else f"min_agreement {self.min_agreement:g}"


@dataclasses.dataclass(frozen=True, eq=False)
class AccuracyGoal:
    """Images, what is to be said of each, and of how many of them.

    Attributes:
        bound: what was asked for.
        images: N of them.
        wanted: (N,) int32, the class of each: its label, or what the reference says.
        minimum: the least number of images of which it is to be said.
        reference: how many the reference is right of.
    """

    bound: Bound
    images: CalibrationImages
    wanted: NDArray[np.int32]
    minimum: int
    reference: int

    @classmethod
    def open(
        cls,
        bound: Bound,
        path: str | os.PathLike[str],
        reference: Runtime,
        processor: ImageProcessor,
        labels: Sequence[str],
        limit: int | None,
        seed: int,
        problem_type: ProblemType,
        on_progress: Callable[[int, int], None],
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
            on_progress: called with the number of images that are done, and of all.

        Raises:
            UsageError: the model gives no logits of an image, or none of them is the image's class.
            InputError: there are no images, or they have no labels.
            CheckpointError: the reference gives values that are not finite.
        """
        if not any(spec.name == LOGITS and len(spec.shape) == 2 for spec in reference.outputs):
            names = ", ".join(spec.name for spec in reference.outputs)
            raise UsageError(
                f"{bound} is of a model that gives {LOGITS} of each image, got {names}; leave it out, and see "
                f"vitdeploy compare --bisect"
            )
        if problem_type is not ProblemType.SINGLE_LABEL:
            raise UsageError(
                f"{bound} counts images by their best class, which a {problem_type} model does not have; leave it out, "
                f"and bound the difference of its outputs with --tolerance"
            )
        if bound.max_drop is None:
            images = CalibrationImages.open(path, processor, limit, seed, on_progress)
            wanted = _finite(_best(images, reference), images)
            # of 1000 images, 0.99 asks for 990, not for 991, as 0.99 in binary would
            minimum = max(1, int(np.ceil(round((bound.min_agreement or 0) * len(wanted), 6))))
            return cls(bound, images, wanted, minimum, len(wanted))
        data = open_data(path, labels).subset(limit, seed)
        images = CalibrationImages(ImageSet.of(data), processor, seed, on_progress)
        right = int((_finite(_best(images, reference), images) == data.targets).sum())
        minimum = max(0, int(np.ceil(round(right - bound.max_drop * len(data) / 100, 6))))
        return cls(bound, images, data.targets, minimum, right)

    def measure(self, runtime: Runtime) -> Accuracy:
        """Of how many images an artifact says what is wanted."""
        found = _best(self.images, runtime)
        return Accuracy(int((found == self.wanted).sum()), len(found))

    def honoured_by(self, found: Accuracy) -> bool:
        """Whether that is enough."""
        return found.correct >= self.minimum

    def check(self, name: str, found: Accuracy) -> dict[str, Any]:
        """The record of an artifact that is accurate enough, for the manifest.

        Raises:
            CheckFailedError: it is not.
        """
        if not self.honoured_by(found):
            raise CheckFailedError(
                f"{name} must honour {self}, has {found}, though the graph did before its inputs and outputs became "
                f"what was asked for; loosen the bound, or leave out embed_resize and io_dtype; nothing was written"
            )
        low, high = found.interval
        return {
            "bound": str(self.bound),
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


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)
