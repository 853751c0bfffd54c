"""Differences of outputs, relative error and tolerances (numpy only)."""

from __future__ import annotations

import dataclasses
import decimal
import math
import numbers
import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from vitdeploy.bundle.scores import ProblemType
from vitdeploy.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vitdeploy.bundle.manifest import Artifact

# Largest difference relative to the output's largest value. float32: two summation orders of ViT-B's 24 matrix products
# differ by about 1e-6 (measured: 2e-7 to 3e-6 for tiny to base); 1e-4 leaves room for other processors. Half types
# round every tensor to 11 and 8 bits, to 5e-4 and 4e-3 of its values; the sum over the layers of ViT-tiny and ViT-B is
# 6e-4 to 2e-3 and 1.1e-2 to 1.3e-2; five times that allows for more layers, and for outliers. 8 bits round only the
# factors of products, but to 1/255 of a range, or to 4 bits of each value (E4M3). Measured in models of 0.4 M to 86 M
# parameters, trained and random: int8 5e-3 to 5.8e-2, fp8 1.7e-2 to 1.1e-1; 3.5 times that allows for others. Top-1
# agreement is measured as well, and so is the cosine: `least_cosine`.
DEFAULT_TOLERANCES = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 6e-2, "int8": 0.2, "fp8": 0.4}
LOGITS = "logits"
_FLOAT16_OUTPUT = 1e-3  # rounding to 11 bits, twice


@dataclasses.dataclass(frozen=True)
class Difference:
    """Comparison of one output with the reference's.

    The values of a regression have different units, so each is compared by itself: the figures of its logits are those
    of the worst value. They have no cosine, which the value with the largest unit would dominate.

    Attributes:
        output: Name of the output.
        count: Number of images compared.
        finite: True if every value is finite.
        max_abs: Largest absolute difference.
        mean_abs: Mean absolute difference.
        max_relative: `max_abs` over the largest absolute value of the reference.
        min_cosine: Lowest cosine similarity over images; None for a regression's logits.
        top1_agreement: Share of images (or patches, for per-patch logits) with the same top-1 class, 0 to 1; None for
            an output other than `logits`, and for logits without a top-1 class.
        mean_relative: `mean_abs` over the mean absolute value of the reference.
        mean_cosine: Mean cosine similarity over images; None for a regression's logits.
        psnr_db: Peak signal-to-noise ratio, in decibels: largest absolute value of the reference over the root mean
            square of the difference; None if nothing differs, or a value is not finite.
    """

    output: str
    count: int
    finite: bool
    max_abs: float
    mean_abs: float
    max_relative: float
    min_cosine: float | None
    top1_agreement: float | None
    mean_relative: float
    mean_cosine: float | None
    psnr_db: float | None

    @property
    def required_tolerance(self) -> float:
        """Smallest tolerance, to two digits, that would have passed."""
        if not self.finite:
            return math.inf
        nearest = float(f"{self.max_relative:.1e}")
        if nearest >= self.max_relative:
            return nearest
        context = decimal.Context(prec=2, rounding=decimal.ROUND_CEILING)
        return float(context.create_decimal_from_float(self.max_relative))

    def within(self, tolerance: float) -> bool:
        """True if the output is finite and differs by at most `tolerance` of the reference's largest value."""
        return self.finite and self.max_relative <= tolerance

    def to_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "required_tolerance": self.required_tolerance}


@dataclasses.dataclass
class RelativeError:
    """L2 norm of the difference over that of the reference's values, over all added images.

    It is 1 / sqrt(SQNR), the signal-to-quantization-noise ratio.

    Args:
        by_output: True for a separate error per output, of which the largest counts; see `has_own_scales`.
    """

    by_output: bool
    _different: Any = 0.0
    _whole: Any = 0.0

    def add(self, reference: np.ndarray, candidate: np.ndarray) -> None:
        """Add images: (N, ...) each; (N, outputs) if by output."""
        axis = 0 if self.by_output else None
        want, got = reference.astype(np.float64), candidate.astype(np.float64)
        with np.errstate(invalid="ignore", over="ignore"):  # of non-finite values
            self._whole = self._whole + np.square(want).sum(axis=axis)
            self._different = self._different + np.square(got - want).sum(axis=axis)

    @property
    def value(self) -> float:
        """The error, 0 or more; infinite for non-finite values, or for a difference from an all-zero reference."""
        different, whole = np.atleast_1d(self._different), np.atleast_1d(self._whole)
        if not (np.isfinite(different).all() and np.isfinite(whole).all()):
            return math.inf
        return max(math.sqrt(_share(a, b)) for a, b in zip(different.tolist(), whole.tolist(), strict=True))


def relative_error(reference: np.ndarray, candidate: np.ndarray, *, of_classes: bool = False) -> float:
    """`RelativeError` of images (N, ...) over all values; unlike a cosine, it detects a constant factor.

    With `of_classes`, the values are a single-label classifier's logits; see `centred`.
    """
    error = RelativeError(by_output=False)
    error.add(*(centred(array) if of_classes else array for array in (reference, candidate)))
    return error.value


def centred(logits: np.ndarray) -> np.ndarray:
    """Logits (..., classes) less their mean: a constant added to all changes no class, but dominates a cosine."""
    with np.errstate(invalid="ignore"):  # of non-finite values
        shifted: np.ndarray = logits.astype(np.float64) - logits.astype(np.float64).mean(axis=-1, keepdims=True)
    return shifted


def check_tolerance(tolerance: object) -> None:
    """Raise UsageError unless it is None, for the default, or a finite number from 0 up."""
    right = isinstance(tolerance, numbers.Real) and not isinstance(tolerance, bool)
    if tolerance is not None and not (right and 0 <= tolerance <= sys.float_info.max):  # type: ignore[operator]
        raise UsageError(
            f"tolerance takes a finite number from 0 up, got {tolerance!r:.80}", what="tolerance", found=tolerance
        )


def default_tolerance(artifact: Artifact) -> float:
    """Default tolerance, relative to each output's largest value; UsageError for a precision without one."""
    if artifact.precision not in DEFAULT_TOLERANCES:
        raise UsageError(f"{artifact.precision} has no default tolerance", what="tolerance", hint="give one")
    half = any(spec.dtype == "float16" for spec in artifact.outputs)
    return max(DEFAULT_TOLERANCES[artifact.precision], half * _FLOAT16_OUTPUT)


def least_cosine(tolerance: float) -> float:
    """Cosine of two vectors of equal length whose difference has `tolerance` times that length.

    Values that are rounded many times differ at random: the relative L2 norm of the difference is about as large as the
    largest difference relative to the largest value (0.063 and 0.058 for ViT-B in int8), so one tolerance serves both.
    """
    return 1 - tolerance**2 / 2


def has_own_scales(name: str, problem_type: ProblemType) -> bool:
    """True if each value of that output has its own unit, as a regression's logits do (an age, a weight)."""
    return name == LOGITS and problem_type is ProblemType.REGRESSION


def compare_outputs(
    reference: Mapping[str, np.ndarray],
    candidate: Mapping[str, np.ndarray],
    *,
    problem_type: ProblemType = ProblemType.SINGLE_LABEL,
) -> tuple[Difference, ...]:
    """Compare every output of two runs on the same images.

    Args:
        reference: Arrays (N, ...) by name.
        candidate: Arrays of the same names and shapes.
        problem_type: The model's problem type, which defines the meaning of its `logits`.

    Raises:
        UsageError: If names or shapes differ, or there is nothing to compare.
    """
    if set(reference) != set(candidate) or not reference:
        raise UsageError(
            f"outputs are {', '.join(candidate) or 'none'}, not {', '.join(reference) or 'one or more'}",
            what="outputs", expected=tuple(reference), found=tuple(candidate),
        )  # fmt: skip
    return tuple(_compare_output(name, reference[name], candidate[name], problem_type) for name in reference)


def _compare_output(name: str, reference: np.ndarray, candidate: np.ndarray, problem_type: ProblemType) -> Difference:
    if reference.shape != candidate.shape:
        raise UsageError(
            f"output {name} has shape {candidate.shape}, the reference's {reference.shape}",
            what=name, expected=reference.shape, found=candidate.shape,
        )  # fmt: skip
    if reference.size == 0:
        raise UsageError(f"output {name} of shape {reference.shape} is empty", what=name, found=reference.shape)
    if not has_own_scales(name, problem_type):
        ranked = name == LOGITS and problem_type.ranked
        return _difference(name, reference, candidate, of_classes=ranked)
    columns = [slice(column, column + 1) for column in range(reference.shape[1])]
    values = [_difference(name, reference[:, column], candidate[:, column], of_classes=False) for column in columns]
    worst = max(values, key=lambda difference: (not difference.finite, difference.max_relative))
    return dataclasses.replace(worst, min_cosine=None, mean_cosine=None)


def _difference(name: str, reference: np.ndarray, candidate: np.ndarray, *, of_classes: bool) -> Difference:
    count = len(reference)
    a, b = (array.reshape(count, -1).astype(np.float64) for array in (reference, candidate))
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        agreement = 0.0 if of_classes else None
        return Difference(name, count, False, math.inf, math.inf, math.inf, -1.0, agreement, math.inf, -1.0, None)
    absolute = np.abs(a - b)
    max_abs = float(absolute.max())
    scale = float(np.abs(a).max())
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        cosine = np.where(norms > 0, (a * b).sum(axis=1) / norms, np.where((a == b).all(axis=1), 1.0, 0.0))
    return Difference(
        output=name,
        count=count,
        finite=True,
        max_abs=max_abs,
        mean_abs=float(absolute.mean()),
        max_relative=_share(max_abs, scale),
        min_cosine=float(min(cosine.min(), 1.0)),
        top1_agreement=float((reference.argmax(-1) == candidate.argmax(-1)).mean()) if of_classes else None,
        mean_relative=_share(float(absolute.mean()), float(np.abs(a).mean())),
        mean_cosine=float(min(cosine.mean(), 1.0)),
        psnr_db=20 * math.log10(scale / math.sqrt(np.square(absolute).mean())) if scale and max_abs else None,
    )


def _share(value: float, scale: float) -> float:
    return value / scale if scale else (math.inf if value else 0.0)
