"""Default bounds of a quantized artifact's outputs: cosine, relative error, neighbours and classes."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Protocol

from vitdeploy.assess.metrics.outputs import DEFAULT_TOLERANCES, Difference, least_cosine
from vitdeploy.assess.metrics.shares import wilson
from vitdeploy.errors import CheckFailedError

if TYPE_CHECKING:
    from vitdeploy.assess.metrics.agreement import Agreement


class Near(Protocol):
    """Measurements of one output over N images, as in `Agreement` and `Nearness`."""

    @property
    def output(self) -> str: ...

    @property
    def images(self) -> int: ...

    @property
    def mean_cosine(self) -> float | None: ...

    @property
    def p5_cosine(self) -> float | None: ...

    @property
    def error(self) -> float: ...

    @property
    def same_neighbours(self) -> int | None: ...


@dataclasses.dataclass(frozen=True)
class CosineBound:
    """Smallest cosine similarity of an image's output with the reference's, and related bounds.

    The largest difference of a value cannot judge 8 bits: in trained ViTs a few values are tens of times as large as
    the rest, and an error of one step there says nothing about the vector that users compare.

    Attributes:
        mean: Smallest mean over images.
        p5: Smallest 5th percentile over images.
        relative_error: Largest error over all images, see `relative_error`, because a cosine ignores a constant factor;
            it also applies to logits without a top-1 class, whose cosine is meaningless. For vectors of unchanged
            length it is sqrt(2 (1 - mean)), which is two thirds of the bound here.
        neighbours: Smallest share of images with the reference's nearest neighbour, 0 to 1; violated if even the upper
            end of the measured share's 95 % Wilson interval is lower.
        classes: The same for images with the reference's top-1 class.
    """

    mean: float
    p5: float
    relative_error: float
    neighbours: float = 0.0
    classes: float = 0.0

    @classmethod
    def of_tolerance(cls, tolerance: float) -> CosineBound:
        """The mean that corresponds to a tolerance for the largest difference, see `least_cosine`; any percentile."""
        return cls(least_cosine(tolerance), -1, tolerance)

    def why_not(self, near: Near) -> str | None:
        """The bound that an output violates, as text; None if it meets all."""
        mean, p5 = _or_nan(near.mean_cosine), _or_nan(near.p5_cosine)
        if not (mean >= self.mean and p5 >= self.p5):
            return (
                f"{near.output} has a mean cosine of {mean:.4f} (at least {self.mean:g} required) and a "
                f"5th percentile of {p5:.4f} (at least {self.p5:g} required)"
            )
        if not near.error <= self.relative_error:
            return f"{near.output} differs by {near.error:.3g} of its length (at most {self.relative_error:g} allowed)"
        if near.same_neighbours is not None and wilson(near.same_neighbours, near.images)[1] < self.neighbours:
            return (
                f"the nearest neighbour by {near.output} is the same for {near.same_neighbours} images (at least "
                f"{self.neighbours:.0%} required)"
            )
        return None

    def resembles(self, difference: Difference) -> bool:
        """True if a whole output is finite and has the mean cosine; its vectors are judged more strictly.

        This covers outputs outside the vectors, such as patch tokens, which may be noise although the class token is
        right.
        """
        return difference.finite and _or_nan(difference.mean_cosine) >= self.mean

    def check(self, name: str, agreement: Agreement, *, held_out: bool) -> None:
        """Raise CheckFailedError if an output of the named artifact violates the bound."""
        images = f"{agreement.images} {'held-out' if held_out else 'calibration'} images"
        if agreement.relative_error is not None:
            self._check_error(name, agreement.output, agreement.relative_error, images)
        else:
            far = self.why_not(agreement) or self._other_classes(agreement)
            if far is not None:
                raise _too_far(name, agreement.output, f"{far} on {images}", agreement)

    def _other_classes(self, agreement: Agreement) -> str | None:
        share = agreement.top1_agreement
        if share is None or wilson(round(share * agreement.images), agreement.images)[1] >= self.classes:
            return None
        least = f"at least {self.classes:.0%} required"
        return f"the best class of {agreement.output} is the reference's for {share:.0%} ({least})"

    def check_difference(self, name: str, difference: Difference, error: float, *, of_values: bool) -> None:
        """As `check`, on a few images: the farthest one replaces the 5th percentile, and neighbours are not compared.

        `error` is the output's `relative_error`; `of_values` is True for logits without a top-1 class.
        """
        images = f"{difference.count} images"
        mean, lowest = _or_nan(difference.mean_cosine), _or_nan(difference.min_cosine)
        if of_values:
            self._check_error(name, difference.output, difference.max_relative, images)
        elif not error <= self.relative_error:
            self._check_error(name, difference.output, error, images)
        elif not (mean >= self.mean and lowest >= self.p5):
            far = (
                f"{difference.output} has a mean cosine of {mean:.4f} (at least {self.mean:g} required) and a lowest "
                f"one of {lowest:.4f} (at least {self.p5:g} required) on {images}"
            )
            raise _too_far(name, difference.output, far, difference, "give --calibration-data, or ")

    def _check_error(self, name: str, output: str, error: float, images: str) -> None:
        if not error <= self.relative_error:
            allowed = f"(at most {self.relative_error:g} allowed) on {images}"
            raise _too_far(name, output, f"{output} differs by {error:.3g} of its size {allowed}", error)


def _too_far(artifact: str, output: str, far: str, found: object, first: str = "") -> CheckFailedError:
    return CheckFailedError(
        f"{artifact} is too far from the reference, so nothing was written: {far}",
        what=output, where=artifact, found=found,
        hint=f"{first}keep layers in float32 (vitdeploy debug bisect finds them, --keep-fp32), or give --tolerance to "
        f"accept it",
    )  # fmt: skip


def _or_nan(cosine: float | None) -> float:
    """NaN, which meets no bound, for None."""
    return math.nan if cosine is None else cosine


def error_of_cosine(cosine: float) -> float:
    """L2 norm of the difference of two unit vectors with this cosine."""
    return math.sqrt(max(2 * (1 - cosine), 0.0))


def too_long(near: Near, least_p5: float) -> str | None:
    """Check the lengths of vectors, which a cosine ignores; None if they are near enough.

    The error over all images is at most the part explained by the mean cosine plus the part from lengths; the latter
    must not exceed the error of the smallest allowed 5th percentile of the cosine.
    """
    allowed = error_of_cosine(_or_nan(near.mean_cosine)) + error_of_cosine(least_p5)
    return None if near.error <= allowed else f"{near.output} differs by {near.error:.3g} of its length"


# Measured on a trained ViT-S with outliers and photographs: vitdeploy's int8 0.999 and 0.997; other tools 0.994 and
# 0.978 (NNCF), 0.978 and 0.933 (ONNX Runtime, static), the latter with a fourth of the nearest neighbours lost. 0.99
# and 0.97 lie between: ten times the usual distance. E4M3 keeps 4 bits of each value; its error is about twice that of
# int8, its distance 1 - cosine four times. int8 keeps 84 to 90 % of nearest neighbours there; among photographs that
# are all alike, or with random weights, rounding decides, so half of them are required; and half of the top-1 classes,
# of which int8 keeps 95 % and more in trained classifiers.
COSINE_BOUNDS = {
    "int8": CosineBound(0.99, 0.97, DEFAULT_TOLERANCES["int8"], 0.5, 0.5),
    "fp8": CosineBound(0.96, 0.88, DEFAULT_TOLERANCES["fp8"], 0.5, 0.5),
}

# At other image sizes, and on synthetic images, activations exceed the ranges of photographs, which is not a fault; an
# output with little relation to the reference is. Measured on a trained ViT-S at other sizes: 0.998 for int8.
LOOSE_BOUND = CosineBound(0.7, 0.3, 1.0)
