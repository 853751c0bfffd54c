"""Accuracy target by the cosine similarity of each image's vector with the reference's."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Any

import numpy as np

from vitdeploy.assess.data.images import feeds
from vitdeploy.assess.metrics.cosine_bound import too_long
from vitdeploy.assess.metrics.features import Nearness, TokenVector, cosines, nearness, shown, vectors
from vitdeploy.bundle.scores import ProblemType
from vitdeploy.errors import CheckFailedError, CheckpointError, UsageError
from vitdeploy.exporting.quantization.calibration_images import BATCH, CalibrationImages

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from vitdeploy.exporting.options import AccuracyBound
    from vitdeploy.exporting.quantization.calibration_images import Source
    from vitdeploy.runtimes.base import Runtime

# Fraction of the allowed distance, 1 - cosine, that a search may use: images outside the search are farther or nearer
# by chance, by about the remaining fraction for the 30 held-out images of a folder of 120.
SEARCHED = 0.75


@dataclasses.dataclass(frozen=True)
class LowestCosine:
    """The output with the lowest 5th percentile of the cosine.

    Attributes:
        too_long: How vector lengths differ too much; None if they do not.
        cosines: Cosine similarity of each image, (N,).
    """

    nearness: Nearness
    too_long: str | None = None
    cosines: NDArray[np.float64] = dataclasses.field(default_factory=lambda: np.empty(0), compare=False, repr=False)

    @property
    def value(self) -> float:
        return self.nearness.p5_cosine

    def __str__(self) -> str:
        text = f"a 5th percentile of the cosine of {shown(self.value)} ({self.nearness.output})"
        return text if self.too_long is None else f"{text}, but {self.too_long}"


@dataclasses.dataclass(frozen=True, eq=False)
class CosineTarget:
    """See `AccuracyTarget`.

    Attributes:
        bound: The lowest cosine allowed.
        images: N images.
        token: The vector of `last_hidden_state`.
    """

    bound: AccuracyBound
    images: CalibrationImages
    reference: Runtime
    token: TokenVector

    @functools.cached_property
    def wanted(self) -> Mapping[str, NDArray[Any]]:
        """The reference's vectors (N, D) by name, see `vitdeploy.assess.metrics.features.vectors`.

        Raises:
            CheckpointError: If the reference's outputs are not finite.
        """
        rows_of = self._vectors(self.reference)
        for name, of_one in rows_of.items():
            if not np.isfinite(of_one).all():
                raise CheckpointError(
                    f"the reference's {name} is not finite for images of {self.images.images.source}",
                    what=name, where=self.images.images.source,
                    hint="check the weights, and the numbers of the image processor",
                )  # fmt: skip
        return rows_of

    @property
    def minimum(self) -> float:
        return self.bound.limit

    @property
    def aim(self) -> float:
        """The lowest 5th percentile at which a search may end."""
        return 1 - SEARCHED * (1 - self.minimum)

    def at(self, positions: Sequence[int]) -> CosineTarget:
        return CosineTarget(self.bound, self.images.at(list(positions)), self.reference, self.token)

    def measure(self, runtime: Runtime, batch_size: int = BATCH) -> LowestCosine:
        given = self._vectors(runtime, batch_size)
        nearest = nearness(self.wanted, given, search=False)
        worst = min(nearest, key=lambda near: near.p5_cosine)
        problem = next(filter(None, (too_long(near, self.minimum) for near in nearest)), None)
        return LowestCosine(worst, problem, cosines(self.wanted[worst.output], given[worst.output]))

    def reached_by(self, accuracy: LowestCosine) -> bool:
        return accuracy.value >= self.aim and accuracy.too_long is None

    def met_by(self, accuracy: LowestCosine) -> bool:
        return accuracy.value >= self.minimum and accuracy.too_long is None

    def check(self, name: str, accuracy: LowestCosine) -> dict[str, Any]:
        if not self.met_by(accuracy):
            raise CheckFailedError(
                f"{name} does not reach {self}: {accuracy}; the float graph did, before its inputs and outputs changed",
                what=name, expected=str(self.bound), found=accuracy,
                hint="loosen the bound, or leave out embed_resize and io_dtype; nothing was written",
            )  # fmt: skip
        return {"bound": str(self.bound), "aim": round(self.aim, 6), **self._record(accuracy)}

    def check_held_out(self, name: str, accuracy: LowestCosine) -> dict[str, Any]:
        if not self.met_by(accuracy):
            raise CheckFailedError(
                f"{name} does not reach {self.bound} on {accuracy.nearness.images} held-out images: {accuracy}",
                what=name, expected=str(self.bound), found=accuracy,
                hint="ask for more, or give more images; nothing was written",
            )  # fmt: skip
        return {**self._record(accuracy), "honoured": True}

    def record_without(self, accuracy: LowestCosine) -> dict[str, Any]:
        return {"p5_cosine_without": round(accuracy.value, 6)}

    def _record(self, accuracy: LowestCosine) -> dict[str, Any]:
        near = accuracy.nearness
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

    def _vectors(self, runtime: Runtime, batch_size: int = BATCH) -> dict[str, NDArray[Any]]:
        """The vectors of all images, (N, D), by name."""
        rows_of: dict[str, list[NDArray[Any]]] = {}
        for batch in self.images.batches(batch_size, runtime.pixels):
            outputs = runtime.run(feeds(runtime.inputs, batch[runtime.pixels]))
            for name, rows in vectors(outputs, self.token).items():
                rows_of.setdefault(name, []).append(rows)
        return {name: np.concatenate(parts) for name, parts in rows_of.items()}


def open_cosine_target(
    bound: AccuracyBound, reference: Runtime, token: TokenVector, problem_type: ProblemType, source: Source
) -> CosineTarget:
    """Open the images; the reference runs on them at the first measurement.

    Raises:
        UsageError: If the model has logits but is not a single-label classifier.
        InputError: If there are no images.
    """
    check_cosine(bound, problem_type)
    return CosineTarget(bound, CalibrationImages.open(*source), reference, token)


def check_cosine(bound: AccuracyBound, problem_type: ProblemType) -> None:
    """Raise UsageError if the model has logits but is not a single-label classifier."""
    if problem_type is not ProblemType.SINGLE_LABEL:
        raise UsageError(
            f"{bound} does not fit a {problem_type} model: the cosine of its values says nothing about each of them",
            what="accuracy", found=problem_type, hint="leave it out, and bound the difference with --tolerance",
        )  # fmt: skip
