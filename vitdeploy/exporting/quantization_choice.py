"""Choose how a graph is quantized, by what its variants give on images."""

from __future__ import annotations

import dataclasses
import itertools
from typing import TYPE_CHECKING, Any

import numpy as np

from vitdeploy.assess.data.images import feeds
from vitdeploy.assess.debug.quantization_error import VariantErrors, opened_variant, sensitivities
from vitdeploy.assess.debug.search import search_by_sensitivity
from vitdeploy.assess.metrics.outputs import LOGITS
from vitdeploy.bundle.scores import ProblemType
from vitdeploy.errors import CheckFailedError
from vitdeploy.exporting.calibration_images import BATCH, CalibrationImages

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from vitdeploy.assess.debug.search import Measure
    from vitdeploy.exporters.graph.variants import Variants
    from vitdeploy.exporters.quantization.choice import Closeness, KeptNodes
    from vitdeploy.exporting.accuracy_bound import Goal
    from vitdeploy.specs import PixelFormat
    from vitdeploy.system.progress import Progress


@dataclasses.dataclass(frozen=True)
class Chooser:
    """Measures how near candidates are to the reference, and keeps as few layers in float32 as the goal allows.

    See `vitdeploy.exporters.quantization.choice.Choose`.

    Attributes:
        images: a few that no range was measured on, on which variants are compared with the float32 graph, which gives
            what the reference does and takes a fourth of its time.
        goal: how accurate the artifact must be; None where that is not said.
        progress: told each step, and how far it has come.
        problem_type: of the model.
    """

    images: CalibrationImages
    goal: Goal | None
    progress: Progress
    problem_type: ProblemType = ProblemType.SINGLE_LABEL
    _yardsticks: dict[PixelFormat, VariantErrors] = dataclasses.field(default_factory=dict, init=False)

    @property
    def bounded(self) -> bool:
        return self.goal is not None

    def closeness(
        self, name: str, variants: Variants, pixels: PixelFormat, folder: Path, *, one_by_one: bool
    ) -> Closeness:
        """See `vitdeploy.exporters.quantization.choice.Choose`."""
        found = self._yardstick(variants, pixels, folder).closeness(variants, (), one_by_one=one_by_one)
        cosine = "" if found.mean_cosine is None else f", mean cosine {found.mean_cosine:.5f}"
        self.progress.step(f"{name}: relative error {found.error:.2%}{cosine}")
        return found

    def kept(self, variants: Variants, pixels: PixelFormat, folder: Path) -> KeptNodes:
        """See `vitdeploy.exporters.quantization.choice.Choose`."""
        from vitdeploy.exporters.quantization.choice import KeptNodes

        if self.goal is None:
            return KeptNodes((), {})
        labels = variants.labels
        of_layers: dict[str, float] = {}

        def rank() -> list[str]:
            self.progress.step(f"measuring how much each of {len(variants.nodes)} layers matters")
            yardstick = self._yardstick(variants, pixels, folder)
            measured = sensitivities(variants, lambda kept: yardstick.error(variants, kept), self.progress)
            of_layers.update(measured)
            return sorted(measured, key=lambda node: -measured[node])

        found = search_by_sensitivity(rank, self._measure(self.goal, variants, pixels, folder), self.goal.honoured_by)
        if not found.enough:
            low = [labels.get(node, node) for node in variants.nodes if node not in found.kept]
            raise CheckFailedError(
                f"8 bits must honour {self.goal}; the best that was found has {found.accuracy}, with "
                f"{len(found.kept)} of {len(variants.nodes)} layers in float32 and {_few(low)} in 8 bits; with none in "
                f"float32 it is {found.without}; loosen the bound, or choose fp16; nothing was written"
            )
        record = {
            "kept_layers": [labels.get(node, node) for node in found.kept],
            "layer_effects": {labels.get(node, node): _rounded(error) for node, error in of_layers.items()},
            **self.goal.without(found.without),
            "runs": found.runs,
            "minimal": found.minimal,
        }
        return KeptNodes(found.kept, record)

    def _yardstick(self, variants: Variants, pixels: PixelFormat, folder: Path) -> VariantErrors:
        """On the logits where there are some, else on all outputs; the float32 graph runs once for each format."""
        if pixels not in self._yardsticks:
            given = [images[pixels] for images in self.images.batches(BATCH, pixels)]
            with opened_variant(variants, variants.nodes, folder) as runtime:
                names = [spec.name for spec in runtime.outputs]
                counting = [LOGITS] if LOGITS in names else names
                found = [runtime.run(feeds(runtime.inputs, images)) for images in given]
            expected = {name: np.concatenate([outputs[name] for outputs in found]) for name in counting}
            self._yardsticks[pixels] = VariantErrors(given, expected, folder, self.problem_type)
        return self._yardsticks[pixels]

    def _measure(
        self, goal: Goal, variants: Variants, pixels: PixelFormat, folder: Path
    ) -> Callable[[frozenset[str]], Measure]:
        """What measures the variant that keeps these layers in float32."""
        count = itertools.count(1)

        def measure(kept: frozenset[str]) -> Measure:
            with opened_variant(variants, kept, folder, pixels) as runtime:
                found: Measure = goal.measure(runtime)
            self.progress.step(f"run {next(count)}: {len(kept)} of {len(variants.nodes)} layers in float32, {found}")
            return found

        return measure


def _few(names: Sequence[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _rounded(value: float) -> Any:
    """Three digits; a number that is not finite as text, which JSON has no other word for."""
    return float(f"{value:.3g}") if np.isfinite(value) else str(value)
