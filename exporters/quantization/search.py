"""Search the way to quantize a graph whose outputs are nearest to the reference's on held-out images."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from vitdeploy.exporters.quantization.smooth_quant import SmoothQuant
from vitdeploy.exporters.quantization.trial import Recipe, Trial

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vitdeploy.exporters.quantization.choice import Closeness
    from vitdeploy.exporters.quantization.schemes.scheme import Scheme

# Best of 0.5, 0.65, 0.75 and 0.85 on four folds of photographs (DINOv2 ViT-S/14). Choosing on 28 images followed
# noise: on one split it took 0.5, with a 5th percentile of 0.9963 on the held-out photographs; 0.65 has 0.9973 there.
STRENGTHS = (0.65,)
# Other images go beyond what was seen. On photographs of other scenes than those of the calibration, a tenth more took
# the 5th percentile of the cosine from 0.9969 to 0.9976; on other crops of the same scenes it cost a little.
MARGIN = 0.1
# A Mul before each MLP's second product takes 2.5 to 3.5 % of the latency (ViT-S, batches of 1 and 8).
MULTIPLY_GAIN = 0.9
# ONNX Runtime runs either scheme equally fast (dynamic: 0.92 to 0.98 of the time of static), but what dynamic ranges
# give for an image depends on its batch, and other engines do not fuse them: they must take away half of the error. No
# time is measured in an export, as two exports of the same model would not be the same.
DYNAMIC_GAIN = 0.5
RULES = (
    f"The least relative error is taken; a Mul before an MLP's second product only where it takes away "
    f"{1 - MULTIPLY_GAIN:.0%} of the error, and dynamic ranges only where they take away {1 - DYNAMIC_GAIN:.0%}."
)


class Search:
    """Candidates one after another, each measured once.

    1. Smoothing: none, or a fixed strength.
    2. The Mul of smoothed MLPs stays where it takes away a tenth of the error.
    3. Another scheme, if its error is less than half.

    Args:
        trial: makes one of a recipe.
        measure: how near it is to the reference.
    """

    def __init__(self, trial: Callable[[Recipe], Trial], measure: Callable[[Trial], Closeness]) -> None:
        self._trial, self._measure = trial, measure
        self._found: dict[Recipe, tuple[Trial, Closeness]] = {}

    def best(
        self,
        scheme: Scheme,
        others: Sequence[Scheme],
        smoothing: Sequence[SmoothQuant | None],
        ranges: str | None,
        margin: float,
    ) -> Recipe:
        """The recipe to take.

        Args:
            scheme: to take first.
            others: to take where they are much better.
            smoothing: what is tried, in the order of the strength.
            ranges: the method.
            margin: see `Recipe`.
        """
        if len(smoothing) == 1 and not others:
            return Recipe(scheme, ranges, smoothing[0], margin)
        best = min((Recipe(scheme, ranges, smooth, margin) for smooth in smoothing), key=self._error)
        if len(smoothing) > 1 and best.smooth is not None and "mlp" in self._of(best)[0].smoothed():
            without = dataclasses.replace(best, smooth=dataclasses.replace(best.smooth, multiply=False))
            if self._error(without) <= self._error(best) / MULTIPLY_GAIN:
                best = without
        for another in others:
            recipe = Recipe(another, None if another.static is None else best.ranges, best.smooth)
            if self._error(recipe) < DYNAMIC_GAIN * self._error(best):
                best = recipe
        return best

    def record(self, chosen: Recipe) -> dict[str, Any]:
        """All that was measured, for the manifest; nothing where there was no choice."""
        if not self._found:
            return {}
        rows = []
        for recipe, (_, closeness) in self._found.items():
            smooth = recipe.smooth
            rows.append(
                {
                    "scheme": recipe.scheme.name,
                    "ranges": recipe.ranges,
                    "smooth_quant": None if smooth is None else smooth.strength,
                    "multiply": None if smooth is None else smooth.multiply,
                    "margin": recipe.margin,
                    "error": rounded(closeness.error),
                    "mean_cosine": None if closeness.mean_cosine is None else round(closeness.mean_cosine, 6),
                    "p5_cosine": None if closeness.p5_cosine is None else round(closeness.p5_cosine, 6),
                    "chosen": recipe == chosen,
                }
            )
        return {"candidates": rows}

    def _of(self, recipe: Recipe) -> tuple[Trial, Closeness]:
        if recipe not in self._found:
            trial = self._trial(recipe)
            self._found[recipe] = trial, self._measure(trial)
        return self._found[recipe]

    def _error(self, recipe: Recipe) -> float:
        return self._of(recipe)[1].error


def rounded(value: float) -> float | str:
    """Three digits; a number that is not finite as text, which JSON has no other word for."""
    return float(f"{value:.3g}") if value == value and abs(value) != float("inf") else str(value)


def smoothing_of(asked: float | str, *, possible: bool) -> tuple[SmoothQuant | None, ...]:
    """What is tried: "off", a strength, or "auto", for a graph that has places to smooth or not."""
    if asked == "off" or (asked == "auto" and not possible):
        return (None,)
    return (None, *map(SmoothQuant, STRENGTHS)) if asked == "auto" else (SmoothQuant(float(asked)),)
