"""How near the outputs of a quantized artifact must be to the reference's where nobody says how near."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Protocol

from vitdeploy.assess.difference import DEFAULT_TOLERANCES, least_cosine
from vitdeploy.assess.statistics import wilson
from vitdeploy.errors import CheckFailedError

if TYPE_CHECKING:
    from vitdeploy.assess.calibration_images import Agreement
    from vitdeploy.assess.difference import Difference


class Near(Protocol):
    """What was measured of one output of N images, as `Agreement` and `Nearness` hold it."""

    @property
    def output(self) -> str: ...

    @property
    def images(self) -> int: ...

    @property
    def mean_cosine(self) -> float: ...

    @property
    def p5_cosine(self) -> float: ...

    @property
    def same_neighbours(self) -> int | None: ...


@dataclasses.dataclass(frozen=True)
class CosineBound:
    """The least cosine similarity of an image's output with the reference's.

    The largest difference of a value is no judge of 8 bits: in trained ViTs a few values are tens of times as large as
    the rest, and one that is a step off tells nothing of the vector that users compare.

    Attributes:
        mean: of all images.
        p5: of the 5th percentile over images.
        relative_error: the largest relative error of logits of which none is the best class, which have no cosine that
            means something; see `Agreement`.
        neighbours: the least share of images whose nearest neighbour is the reference's, from 0 to 1; it is not kept
            where even the upper end of the 95 % Wilson interval of the measured share is lower.
    """

    mean: float
    p5: float
    relative_error: float
    neighbours: float = 0.0

    @classmethod
    def of_tolerance(cls, tolerance: float) -> CosineBound:
        """The mean that one tolerance for the largest difference amounts to, see `least_cosine`, and any percentile."""
        return cls(least_cosine(tolerance), -1, tolerance)

    def why_not(self, found: Near) -> str | None:
        """How far an output is, where that is farther; None where it is near enough."""
        if not (found.mean_cosine >= self.mean and found.p5_cosine >= self.p5):
            return (
                f"{found.output} has a mean cosine of {found.mean_cosine:.4f} (at least {self.mean:g} required) and a "
                f"5th percentile of {found.p5_cosine:.4f} (at least {self.p5:g} required)"
            )
        if found.same_neighbours is not None and wilson(found.same_neighbours, found.images)[1] < self.neighbours:
            return (
                f"the nearest neighbour by {found.output} is the same for {found.same_neighbours} images (at least "
                f"{self.neighbours:.0%} required)"
            )
        return None

    def check(self, name: str, found: Agreement, *, held_out: bool) -> None:
        """Raise CheckFailedError where an output of the artifact of that name is farther."""
        images = f"{found.images} {'held-out' if held_out else 'calibration'} images"
        if found.relative_error is not None:
            self._check_error(name, found.output, found.relative_error, images)
        else:
            far = self.why_not(found)
            if far is not None:
                raise CheckFailedError(
                    f"{name} is too far from the reference: {far} on {images}; {_ADVICE}; nothing was written"
                )

    def check_difference(self, name: str, found: Difference, *, of_values: bool) -> None:
        """The same on a few images, of which the farthest stands for the 5th percentile; neighbours need more images.

        Args:
            name: the artifact's.
            found: one of its outputs.
            of_values: whether the output is logits of which none is the best class.
        """
        images = f"{found.count} images"
        if of_values:
            self._check_error(name, found.output, found.max_relative, images)
        elif not (found.mean_cosine >= self.mean and found.min_cosine >= self.p5):
            raise CheckFailedError(
                f"{name} is too far from the reference: {found.output} has a mean cosine of {found.mean_cosine:.4f} "
                f"(at least {self.mean:g} required) and a lowest one of {found.min_cosine:.4f} (at least {self.p5:g} "
                f"required) on {images}; give --calibration-data, or {_ADVICE}; nothing was written"
            )

    def _check_error(self, name: str, output: str, error: float, images: str) -> None:
        if not error <= self.relative_error:
            raise CheckFailedError(
                f"{name} is too far from the reference: {output} differs by {error:.3g} of its size (at most "
                f"{self.relative_error:g} allowed) on {images}; {_ADVICE}; nothing was written"
            )


_ADVICE = (
    "keep layers in float32 (vitdeploy compare --bisect finds them, --keep-fp32), or give --tolerance to accept it"
)

# What was seen on a trained ViT-S with outliers and photographs: int8 as it is made here 0.999 and 0.997; the peers'
# tools 0.994 and 0.978 (NNCF), 0.978 and 0.933 (ONNX Runtime, static), the latter with a fourth of the nearest
# neighbours lost. 0.99 and 0.97 is between: ten times as far as what is usual. E4M3 keeps 4 bits of each value; its
# error is about twice that of int8, its distance 1 - cosine four times. Of nearest neighbours, int8 keeps 84 to 90 %
# there; among photographs that are all alike, or with random weights, rounding decides, so half of them are required.
COSINE_BOUNDS = {
    "int8": CosineBound(0.99, 0.97, DEFAULT_TOLERANCES["int8"], 0.5),
    "fp8": CosineBound(0.96, 0.88, DEFAULT_TOLERANCES["fp8"], 0.5),
}
