"""Choose the quantization candidate with outputs nearest to the float32 graph's, on held-out images."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from vitdeploy.assess.data.images import feeds
from vitdeploy.assess.debug.quantization_error import VariantErrors, opened_variant
from vitdeploy.assess.metrics.outputs import LOGITS
from vitdeploy.exporting.quantization.calibration_images import BATCH

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from vitdeploy.assess.debug.quantization_error import Closeness
    from vitdeploy.bundle.scores import ProblemType
    from vitdeploy.exporters.graph.onnx_graph import TracedGraph
    from vitdeploy.exporters.graph.variants import Variants
    from vitdeploy.exporters.quantization.candidate import Activations, Candidate
    from vitdeploy.exporters.quantization.schemes.scheme import Scheme
    from vitdeploy.exporters.quantization.smooth_quant import SmoothQuant
    from vitdeploy.exporting.quantization.calibration_images import CalibrationImages
    from vitdeploy.specs import PixelFormat
    from vitdeploy.system.progress import Progress

# Best of 0.5, 0.65, 0.75 and 0.85 on four folds of photographs (DINOv2 ViT-S/14). Choosing on 28 images followed
# noise: on one split it took 0.5, with a 5th percentile of 0.9963 on the held-out photographs; 0.65 has 0.9973 there.
STRENGTHS = (0.65,)
# Other images exceed the measured ranges. On photographs of other scenes than the calibration's, a margin of a tenth
# took the 5th percentile of the cosine from 0.9969 to 0.9976; on other crops of the same scenes it cost a little.
MARGIN = 0.1
# A Mul before each MLP's second product takes 2.5 to 3.5 % of the latency (ViT-S, batches of 1 and 8).
MULTIPLY_GAIN = 0.9
# ONNX Runtime runs either scheme equally fast (dynamic: 0.92 to 0.98 of the time of static). With dynamic ranges the
# output for an image depends on its batch, and other engines do not fuse them: they must halve the error. No time is
# measured in an export, so that two exports of the same model are identical.
DYNAMIC_GAIN = 0.5
RULES = (
    f"The least relative error is taken; a Mul before an MLP's second product only where it takes away "
    f"{1 - MULTIPLY_GAIN:.0%} of the error, and dynamic ranges only where they take away {1 - DYNAMIC_GAIN:.0%}."
)


@dataclasses.dataclass(eq=False)
class ChoiceImages:
    """A few images outside the range measurement, and the error of quantized graphs on them.

    The error is measured on the logits, or on all outputs of a model without logits. The float32 graph is run once: it
    gives the reference's outputs in a quarter of the time.

    Attributes:
        pixels: Input format of the graphs.
        folder: Temporary folder for the graphs' files.
    """

    images: CalibrationImages
    pixels: PixelFormat
    folder: Path
    problem_type: ProblemType
    _errors: VariantErrors | None = dataclasses.field(default=None, init=False)

    def errors(self, variants: Variants) -> VariantErrors:
        """Measures the error of variants; their float32 graph runs at the first call."""
        if self._errors is None:
            given = [images[self.pixels] for images in self.images.batches(BATCH, self.pixels)]
            with opened_variant(variants, variants.nodes, self.folder) as runtime:
                names = [spec.name for spec in runtime.outputs]
                counting = [LOGITS] if LOGITS in names else names
                runs = [runtime.run(feeds(runtime.inputs, images)) for images in given]
            expected = {name: np.concatenate([outputs[name] for outputs in runs]) for name in counting}
            self._errors = VariantErrors(given, expected, self.folder, self.problem_type)
        return self._errors


@dataclasses.dataclass(frozen=True, eq=False)
class CandidateSearch:
    """Search the candidates in order; each is measured once.

    1. Smoothing: none, or a fixed strength.
    2. The Mul of smoothed MLPs stays if it reduces the error by a tenth.
    3. Another scheme, if its error is less than half.

    Attributes:
        traced: The float32 graph, with shapes.
        activations: Activation ranges, measured on images outside `images`.
    """

    traced: TracedGraph
    activations: Activations
    images: ChoiceImages
    progress: Progress
    _closeness: dict[Candidate, Closeness] = dataclasses.field(default_factory=dict, init=False)

    def best(self, first: Candidate, smoothing: Sequence[SmoothQuant | None], others: Sequence[Scheme]) -> Candidate:
        """The best candidate.

        Args:
            first: Candidate without smoothing.
            smoothing: Smoothing options to try, by increasing strength.
            others: Dynamic schemes, chosen only if they are much better.
        """
        if len(smoothing) == 1 and not others:
            return dataclasses.replace(first, smooth=smoothing[0])
        best = min((dataclasses.replace(first, smooth=smooth) for smooth in smoothing), key=self._error)
        smooth = best.smooth
        if len(smoothing) > 1 and smooth is not None:
            kinds = smooth.kinds(self.traced.model, self.activations.extremes, self.traced.spec.keep_fp32)
            without = dataclasses.replace(best, smooth=dataclasses.replace(smooth, multiply=False))
            if "mlp" in kinds and self._error(without) <= self._error(best) / MULTIPLY_GAIN:
                best = without
        for scheme in others:
            candidate = dataclasses.replace(best, scheme=scheme, method=None, margin=0)
            if self._error(candidate) < DYNAMIC_GAIN * self._error(best):
                best = candidate
        return best

    def record(self, chosen: Candidate) -> dict[str, Any]:
        """All measurements for the manifest; empty without a choice."""
        rows = [
            {
                "scheme": candidate.scheme.name,
                "ranges": candidate.method,
                "smooth_quant": None if candidate.smooth is None else candidate.smooth.strength,
                "multiply": None if candidate.smooth is None else candidate.smooth.multiply,
                "margin": candidate.margin,
                "error": rounded(closeness.error),
                "mean_cosine": None if closeness.mean_cosine is None else round(closeness.mean_cosine, 6),
                "p5_cosine": None if closeness.p5_cosine is None else round(closeness.p5_cosine, 6),
                "chosen": candidate == chosen,
            }
            for candidate, closeness in self._closeness.items()
        ]
        return {"candidates": rows} if rows else {}

    def _error(self, candidate: Candidate) -> float:
        from vitdeploy.exporters.quantization.candidate import variants_of

        if candidate not in self._closeness:
            variants = variants_of(self.traced.model, candidate, self.activations, self.traced.spec.keep_fp32)
            one_by_one = candidate.scheme.static is None  # quantizes each batch with a single range
            closeness = self.images.errors(variants).closeness(variants, (), one_by_one=one_by_one)
            cosine = "" if closeness.mean_cosine is None else f", mean cosine {closeness.mean_cosine:.5f}"
            self.progress.step(f"{candidate}: relative error {closeness.error:.2%}{cosine}")
            self._closeness[candidate] = closeness
        return self._closeness[candidate].error


def rounded(value: float) -> float | str:
    """Three digits; a non-finite number as text, because JSON cannot represent it."""
    return float(f"{value:.3g}") if np.isfinite(value) else str(value)
