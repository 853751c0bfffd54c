"""Choose how a graph is quantized, by what its variants give on images."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from typing import TYPE_CHECKING, Any

import numpy as np

from vitdeploy.assess.difference import LOGITS
from vitdeploy.assess.fewest_kept import fewest_kept
from vitdeploy.assess.samples import feeds
from vitdeploy.assess.yardstick import Yardstick, effects, opened_variant
from vitdeploy.errors import CheckFailedError
from vitdeploy.scores import ProblemType

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from vitdeploy.assess.accuracy import Accuracy
    from vitdeploy.assess.accuracy_goal import AccuracyGoal
    from vitdeploy.assess.calibration_images import CalibrationImages
    from vitdeploy.exporters.quantization.choice import Candidate, Choice
    from vitdeploy.exporters.variants import Variants
    from vitdeploy.runtimes.base import Runtime
    from vitdeploy.specs import PixelFormat


@dataclasses.dataclass(frozen=True)
class Chooser:
    """Takes the candidate that is nearest to the reference, and keeps as few layers in float32 as the goal allows.

    See `vitdeploy.exporters.quantization.choice.Choose`.

    Attributes:
        reference: its runtime.
        images: a few, on which variants are compared with it.
        goal: how accurate the artifact must be; None where that is not said.
        on_step: called with what is being done.
        on_progress: called with the number of layers that are done, and of all.
        problem_type: of the model.
    """

    reference: Runtime
    images: CalibrationImages
    goal: AccuracyGoal | None
    on_step: Callable[[str], None]
    on_progress: Callable[[int, int], None]
    problem_type: ProblemType = ProblemType.SINGLE_LABEL

    def __call__(self, candidates: Sequence[Candidate], pixels: PixelFormat, folder: Path) -> Choice:
        from vitdeploy.exporters.quantization.choice import Choice

        yardstick = functools.cache(lambda: self._yardstick(pixels, folder))  # it is not always needed
        chosen = candidates[0]
        record: dict[str, Any] = {}
        if len(candidates) > 1:
            errors = {}
            for candidate in candidates:
                # Of these alone: what harms more elsewhere would hide which is better.
                others = set(candidate.variants.nodes).difference(candidate.differing)
                errors[candidate.name] = yardstick().error(candidate.variants, others)
                self.on_step(f"{candidate.name}: the reference's outputs but for {errors[candidate.name]:.2%}")
            chosen = min(candidates, key=lambda candidate: errors[candidate.name])  # the first of equals
            record["smooth_quant_errors"] = {name: _rounded(error) for name, error in errors.items()}
        if self.goal is None:
            return Choice(chosen.name, (), record)
        of_layers: dict[str, float] = {}
        variants, labels = chosen.variants, chosen.variants.labels

        def rank() -> list[str]:
            self.on_step(f"measuring how much each of {len(variants.nodes)} layers matters")
            measured = effects(variants, lambda kept: yardstick().error(variants, kept), self.on_progress)
            of_layers.update(measured)
            return sorted(measured, key=lambda node: -measured[node])

        found = fewest_kept(rank, self._measure(self.goal, variants, pixels, folder), self.goal.honoured_by)
        if not found.enough:
            low = [labels.get(node, node) for node in variants.nodes if node not in found.kept]
            raise CheckFailedError(
                f"8 bits must honour {self.goal}; the best that was found has {found.accuracy}, with "
                f"{len(found.kept)} of {len(variants.nodes)} layers in float32 and {_few(low)} in 8 bits; with none in "
                f"float32 it is {found.without}; loosen the bound, or choose fp16; nothing was written"
            )
        record |= {
            "kept_layers": [labels.get(node, node) for node in found.kept],
            "layer_effects": {labels.get(node, node): _rounded(error) for node, error in of_layers.items()},
            "correct_without": found.without.correct,
            "runs": found.runs,
            "minimal": found.minimal,
        }
        return Choice(chosen.name, found.kept, record)

    def _yardstick(self, pixels: PixelFormat, folder: Path) -> Yardstick:
        """On the logits where there are some, else on all outputs."""
        names = [spec.name for spec in self.reference.outputs]
        counting = [LOGITS] if LOGITS in names else names
        given: list[np.ndarray] = []
        expected: dict[str, list[np.ndarray]] = {}
        for image in self.images.pixels(self.reference.pixels, pixels):
            given.append(image[pixels])
            outputs = self.reference.run(feeds(self.reference.inputs, image[self.reference.pixels]))
            for name in counting:
                expected.setdefault(name, []).append(outputs[name])
        return Yardstick(
            given, {name: np.concatenate(values) for name, values in expected.items()}, folder, self.problem_type
        )

    def _measure(
        self, goal: AccuracyGoal, variants: Variants, pixels: PixelFormat, folder: Path
    ) -> Callable[[frozenset[str]], Accuracy]:
        """What counts the right images of the variant that keeps these layers in float32."""
        count = itertools.count(1)

        def measure(kept: frozenset[str]) -> Accuracy:
            with opened_variant(variants, kept, folder, pixels) as runtime:
                found = goal.measure(runtime)
            self.on_step(f"run {next(count)}: {len(kept)} of {len(variants.nodes)} layers in float32, {found}")
            return found

        return measure


def _few(names: Sequence[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _rounded(value: float) -> Any:
    """Three digits; a number that is not finite as text, which JSON has no other word for."""
    return float(f"{value:.3g}") if np.isfinite(value) else str(value)
