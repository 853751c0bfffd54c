"""Choose how a graph is quantized, by what its variants give on images."""

from __future__ import annotations

import dataclasses
import itertools
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitdeploy.assess.fewest_kept import Fewest, fewest_kept
from vitdeploy.assess.samples import feeds
from vitdeploy.assess.yardstick import Yardstick, effects
from vitdeploy.errors import CheckFailedError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

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
    """

    reference: Runtime
    images: CalibrationImages
    goal: AccuracyGoal | None
    on_step: Callable[[str], None]
    on_progress: Callable[[int, int], None]

    def __call__(self, candidates: Sequence[Candidate], pixels: PixelFormat) -> Choice:
        from vitdeploy.exporters.quantization.choice import Choice

        if len(candidates) == 1 and self.goal is None:
            return Choice(candidates[0].name, (), {})
        yardstick = self._yardstick(pixels)
        chosen = candidates[0]
        record: dict[str, Any] = {}
        if len(candidates) > 1:
            errors = {}
            for candidate in candidates:
                # Of these alone: what harms more elsewhere would hide which is better.
                others = set(candidate.variants.nodes).difference(candidate.differing)
                errors[candidate.name] = yardstick.error(candidate.variants, others)
                self.on_step(f"{candidate.name} differs from the reference by {errors[candidate.name]:.2%}")
            chosen = min(candidates, key=lambda candidate: errors[candidate.name])  # the first of equals
            record["relative_errors"] = {name: _rounded(error) for name, error in errors.items()}
        if self.goal is None:
            return Choice(chosen.name, (), record)
        found, of_layers = self._fewest(self.goal, chosen.variants, yardstick, pixels)
        if not found.enough:
            total = len(chosen.variants.nodes)
            raise CheckFailedError(
                f"int8 or fp8 must honour {self.goal}; the best found has {found.accuracy} with {len(found.kept)} of "
                f"{total} layers in float32, {found.without} with none; allow more, or choose fp16; nothing was written"
            )
        labels = chosen.variants.labels
        record |= {
            "kept_layers": [labels.get(node, node) for node in found.kept],
            "layer_effects": {labels.get(node, node): _rounded(error) for node, error in of_layers.items()},
            "correct_without": found.without.correct,
            "runs": found.runs,
            "minimal": found.minimal,
        }
        return Choice(chosen.name, found.kept, record)

    def _yardstick(self, pixels: PixelFormat) -> Yardstick:
        given: list[np.ndarray] = []
        expected: dict[str, list[np.ndarray]] = {}
        for image in self.images.pixels(self.reference.pixels, pixels):
            given.append(image[pixels])
            outputs = self.reference.run(feeds(self.reference.inputs, image[self.reference.pixels]))
            for name, value in outputs.items():
                expected.setdefault(name, []).append(value)
        return Yardstick(given, {name: np.concatenate(values) for name, values in expected.items()})

    def _fewest(
        self, goal: AccuracyGoal, variants: Variants, yardstick: Yardstick, pixels: PixelFormat
    ) -> tuple[Fewest, dict[str, float]]:
        """The layers to keep, and the effect of each layer, where it was needed."""
        of_layers: dict[str, float] = {}
        count = itertools.count(1)

        def rank() -> list[str]:
            self.on_step(f"measuring how much each of {len(variants.nodes)} layers matters")
            of_layers.update(effects(variants, lambda kept: yardstick.error(variants, kept), self.on_progress))
            return sorted(of_layers, key=lambda node: -of_layers[node])

        def measure(kept: frozenset[str]) -> Accuracy:
            with tempfile.TemporaryDirectory() as scratch:
                path = Path(scratch, "variant.onnx")
                variants.write(kept, path)
                found = goal.measure_file(path, pixels)
            self.on_step(f"run {next(count)}: {len(kept)} of {len(variants.nodes)} layers in float32, {found}")
            return found

        return fewest_kept(rank, measure, goal.honoured_by), of_layers


def _rounded(value: float) -> Any:
    """Three digits; a number that is not finite as text, which JSON has no other word for."""
    return float(f"{value:.3g}") if np.isfinite(value) else str(value)
