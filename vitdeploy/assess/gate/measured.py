"""Measurements shared by a gate's checks."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, cast

from vitdeploy.assess.benchmark.benchmark import benchmark
from vitdeploy.assess.compare.compare import run_comparison
from vitdeploy.assess.compare.vector_run import VectorRun, run_vectors
from vitdeploy.assess.debug.layers import run_layers
from vitdeploy.assess.runs.open_runtimes import OpenRuntimes
from vitdeploy.assess.runs.targets import Selected

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vitdeploy.assess.benchmark.result import Benchmark
    from vitdeploy.assess.compare.results import BackendComparison
    from vitdeploy.assess.data.dataset import LabelledData
    from vitdeploy.assess.data.image_set import ImageSet
    from vitdeploy.assess.debug.layer_results import ArtifactLayers
    from vitdeploy.assess.evaluate.embedding_run import Neighbours
    from vitdeploy.assess.evaluate.embeddings import EmbeddingEvaluation
    from vitdeploy.assess.evaluate.evaluate import Evaluation
    from vitdeploy.assess.gate.baseline import Baseline
    from vitdeploy.assess.gate.plan import Planned
    from vitdeploy.assess.gate.retrieval import AcceptedRetrieval
    from vitdeploy.assess.metrics.accuracy import Predictions
    from vitdeploy.bundle.bundle import Bundle
    from vitdeploy.system.progress import Progress

VECTOR_RULES = ("min_cosine", "min_neighbour_agreement", "cosine")
# Enough to show any layer that differs; min_agreement covers differences on few images, on all of them.
COMPARED_IMAGES = 64


@dataclasses.dataclass(frozen=True, eq=False)
class Measured:
    """Measurements for the checks, each made when first requested, on shared open runtimes."""

    runtimes: OpenRuntimes
    data: LabelledData | ImageSet
    evaluation: Evaluation | None
    baseline: Baseline | None
    planned: tuple[Planned, ...]
    progress: Progress
    batch_size: int
    embeddings: EmbeddingEvaluation | None = None

    @property
    def bundle(self) -> Bundle:
        return self.runtimes.bundle

    @property
    def accepted(self) -> Baseline:
        """The baseline, for checks that are planned only with one."""
        return cast("Baseline", self.baseline)

    @property
    def classified(self) -> Evaluation:
        """The evaluation, for checks that are planned only for a model with classes."""
        return cast("Evaluation", self.evaluation)

    @property
    def searched(self) -> EmbeddingEvaluation:
        """The neighbours of embeddings, for checks that are planned only with labels and without classes."""
        return cast("EmbeddingEvaluation", self.embeddings)

    @property
    def accepted_retrieval(self) -> AcceptedRetrieval:
        """The baseline's neighbours, for checks that are planned only with them."""
        return cast("AcceptedRetrieval", self.accepted.retrieval)

    @functools.cached_property
    def neighbours(self) -> Mapping[Selected, Neighbours]:
        """Neighbours by artifact and backend; empty without labels or for a classifier."""
        results = () if self.embeddings is None else self.embeddings.results
        return {Selected(result.artifact, result.backend, result.precision): result for result in results}

    @functools.cached_property
    def predictions(self) -> Mapping[Selected, Predictions]:
        """Predictions by artifact and backend; empty for a model without classes."""
        results = () if self.evaluation is None else self.evaluation.results
        return {Selected(result.artifact, result.backend, result.precision): result for result in results}

    @functools.cached_property
    def vectors(self) -> Mapping[Selected, VectorRun]:
        """Vectors of all images by artifact and backend; UnavailableError if the reference cannot run."""
        rules = VECTOR_RULES if self.evaluation is not None else (*VECTOR_RULES, "finite")
        asked = [check.selected for check in self.planned if check.rule in rules and check.selected]
        selection = [choice for choice in dict.fromkeys(asked) if self.why_skipped(choice) is None]
        return run_vectors(self.runtimes, self.data, selection, self.batch_size, self.progress)

    @property
    def measured_vectors(self) -> tuple[VectorRun, ...]:
        """`vectors`, if a check requested them."""
        return tuple(self.vectors.values()) if "vectors" in vars(self) else ()

    @functools.cached_property
    def comparison(self) -> Mapping[tuple[str, str], BackendComparison]:
        """Comparisons on some of the images, by artifact and backend; UnavailableError if the reference cannot run."""
        loosest = max(check.bound for check in self.planned if check.rule == "max_difference")
        return self._compared("max_difference", loosest)

    @functools.cached_property
    def whole_outputs(self) -> Mapping[tuple[str, str], BackendComparison]:
        """As `comparison`, of all outputs of quantized artifacts without classes."""
        return self._compared("cosine", None)

    @functools.cached_property
    def layers(self) -> Mapping[str, ArtifactLayers]:
        """Layer comparisons on some images, on the CPU, by artifact; UnavailableError if the reference cannot run."""
        names = self._names("max_layer_difference")
        on_cpu = self.runtimes if self.runtimes.device == "cpu" else OpenRuntimes(self.bundle)
        result = run_layers(on_cpu, images=self._images, backends=names, progress=self.progress)
        return {layers.artifact: layers for layers in result.results}

    @functools.cached_property
    def benchmark(self) -> Benchmark:
        """Latency with one image, for every backend with a latency-ratio rule."""
        pairs = [(check.against, check.selected) for check in self.planned if check.against]
        asked = [choice for pair in pairs for choice in pair if choice]
        names = [f"{choice.backend}:{choice.precision}" for choice in asked if self.why_skipped(choice) is None]
        return benchmark(
            self.bundle,
            batch_sizes=(1,),
            backends=list(dict.fromkeys(names)),
            device=self.runtimes.device,
            progress=self.progress,
        )

    @property
    def benchmarked(self) -> Benchmark | None:
        """The benchmark, if a check requested it."""
        return self.benchmark if "benchmark" in vars(self) else None

    @functools.cached_property
    def _images(self) -> list[bytes]:
        data = self.data.subset(COMPARED_IMAGES)
        return [data.load(position) for position in range(len(data))]

    def _compared(self, rule: str, tolerance: float | None) -> Mapping[tuple[str, str], BackendComparison]:
        result = run_comparison(
            self.runtimes, images=self._images, tolerance=tolerance, backends=self._names(rule), progress=self.progress
        )
        return {(comparison.artifact, comparison.backend): comparison for comparison in result.results}

    def _names(self, rule: str) -> list[str]:
        """Artifacts that a rule applies to and that ran, as `backends`."""
        asked = [check.selected for check in self.planned if check.rule == rule and check.selected]
        return [f"{choice.backend}:{choice.precision}" for choice in asked if self.why_skipped(choice) is None]

    def why_skipped(self, selected: Selected) -> str | None:
        """Reason why an artifact did not run in the evaluation; None if it ran or was not requested."""
        predictions = self.predictions.get(selected)
        return None if predictions is None else predictions.skipped
