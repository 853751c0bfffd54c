"""A quantized artifact must be as near to the reference as was asked for, by the cosines of its images' vectors."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Any

import numpy as np

from vitdeploy.assess.data.images import feeds
from vitdeploy.assess.metrics.cosine_bound import too_long
from vitdeploy.assess.metrics.features import Nearness, nearness, shown, vectors
from vitdeploy.bundle.scores import ProblemType
from vitdeploy.errors import CheckFailedError, CheckpointError, UsageError
from vitdeploy.exporting.calibration_images import BATCH, CalibrationImages

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from vitdeploy.exporting.options import AccuracyBound
    from vitdeploy.images.processor import ImageProcessor
    from vitdeploy.runtimes.base import Runtime
    from vitdeploy.system.progress import Progress

# Of the distance 1 - cosine that is allowed, what a search may use up: images that it did not see are farther or nearer
# by chance, by about so much for the 30 of a folder of 120.
SEARCHED = 0.75


@dataclasses.dataclass(frozen=True)
class Farthest:
    """The vectors of an artifact with the lowest 5th percentile, and why its lengths are too far, where they are."""

    nearness: Nearness
    too_long: str | None = None

    @property
    def value(self) -> float:
        return self.nearness.p5_cosine

    def __str__(self) -> str:
        text = f"a 5th percentile of the cosine of {shown(self.value)} ({self.nearness.output})"
        return text if self.too_long is None else f"{text}, but {self.too_long}"


@dataclasses.dataclass(frozen=True, eq=False)
class CosineGoal:
    """Images, and the vectors that the reference gives for them.

    Attributes:
        bound: a MinCosine.
        images: N of them.
        reference: its runtime.
    """

    bound: AccuracyBound
    images: CalibrationImages
    reference: Runtime

    @classmethod
    def open(
        cls,
        bound: AccuracyBound,
        path: str | os.PathLike[str],
        reference: Runtime,
        processor: ImageProcessor,
        labels: Sequence[str],  # noqa: ARG003  (as of `AccuracyGoal`)
        limit: int | None,
        seed: int,
        problem_type: ProblemType,
        progress: Progress,
    ) -> CosineGoal:
        """Open the images, on which the reference runs when an artifact is measured; see `AccuracyGoal.open`.

        Raises:
            UsageError: the logits are not those of a single-label classifier.
            InputError: there are no images.
        """
        if problem_type is not ProblemType.SINGLE_LABEL:
            raise UsageError(
                f"{bound} does not fit a {problem_type} model: the cosine of its values says nothing of each; leave it "
                f"out, and bound the difference of its outputs with --tolerance"
            )
        images = CalibrationImages.open(path, processor, limit, seed, progress)
        return cls(bound, images, reference)

    @functools.cached_property
    def wanted(self) -> Mapping[str, NDArray[Any]]:
        """The reference's vectors (N, D) by name, see `vitdeploy.assess.metrics.features.vectors`.

        Raises:
            CheckpointError: it gives values that are not finite.
        """
        found = _vectors(self.images, self.reference)
        for name, of_one in found.items():
            if not np.isfinite(of_one).all():
                raise CheckpointError(
                    f"the reference gives values of {name} that are not finite for images of "
                    f"{self.images.images.source}; mend the weights, or the numbers of the image processor"
                )
        return found

    @property
    def minimum(self) -> float:
        """The least 5th percentile."""
        return self.bound.limit

    @property
    def aim(self) -> float:
        """The least one with which a search may end."""
        return 1 - SEARCHED * (1 - self.minimum)

    def at(self, positions: Sequence[int]) -> CosineGoal:
        """See `Goal`."""
        return CosineGoal(self.bound, self.images.at(list(positions)), self.reference)

    def measure(self, runtime: Runtime) -> Farthest:
        """See `Goal`."""
        found = nearness(self.wanted, _vectors(self.images, runtime), search=False)
        worst = min(found, key=lambda each: each.p5_cosine)
        return Farthest(worst, next(filter(None, (too_long(each, self.minimum) for each in found)), None))

    def honoured_by(self, found: Farthest) -> bool:
        """See `Goal`."""
        return found.value >= self.aim and found.too_long is None

    def check(self, name: str, found: Farthest) -> dict[str, Any]:
        """See `Goal`."""
        if found.too_long is not None or not found.value >= self.minimum:
            raise CheckFailedError(
                f"{name} does not honour {self}: {found}, though the graph did before its inputs and outputs became "
                f"what was asked for; loosen the bound, or leave out embed_resize and io_dtype; nothing was written"
            )
        return {"bound": str(self.bound), "aim": round(self.aim, 6), **self._record(found)}

    def check_held_out(self, name: str, found: Farthest) -> dict[str, Any]:
        """See `Goal`."""
        if found.too_long is not None or not found.value >= self.minimum:
            raise CheckFailedError(
                f"{name} does not honour {self.bound} on {found.nearness.images} held-out images: "
                f"{found}; ask for more, or give more images; nothing was written"
            )
        return {**self._record(found), "honoured": True}

    def without(self, found: Farthest) -> dict[str, Any]:
        """See `Goal`."""
        return {"p5_cosine_without": round(found.value, 6)}

    def _record(self, found: Farthest) -> dict[str, Any]:
        near = found.nearness
        return {
            "images": near.images,
            "output": near.output,
            "mean_cosine": round(near.mean_cosine, 6),
            "p5_cosine": round(near.p5_cosine, 6),
            "min_cosine": round(near.min_cosine, 6),
            "at_least": self.minimum,
        }

    def __str__(self) -> str:
        return f"{self.bound} on {len(self.images.images)} images"


def _vectors(images: CalibrationImages, runtime: Runtime) -> dict[str, NDArray[Any]]:
    """Of all images, by name."""
    found: dict[str, list[NDArray[Any]]] = {}
    for batch in images.batches(BATCH, runtime.pixels):
        for name, rows in vectors(runtime.run(feeds(runtime.inputs, batch[runtime.pixels]))).items():
            found.setdefault(name, []).append(rows)
    return {name: np.concatenate(parts) for name, parts in found.items()}
