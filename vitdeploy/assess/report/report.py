"""The content of a report, from the result of any assessment."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from vitdeploy.assess.benchmark.result import Benchmark
from vitdeploy.assess.benchmark.scenarios.results import ScenarioBenchmark
from vitdeploy.assess.benchmark.tuning import Tuning
from vitdeploy.assess.compare.results import Comparison
from vitdeploy.assess.debug.layer_results import LayerComparison
from vitdeploy.assess.debug.sensitivity import Sensitivity
from vitdeploy.assess.environment.machine import machine
from vitdeploy.assess.evaluate.embeddings import EmbeddingEvaluation
from vitdeploy.assess.evaluate.evaluate import Evaluation
from vitdeploy.assess.gate.gate import GateResult
from vitdeploy.assess.report.example_images import ExampleImage, furthest_images, worst_images
from vitdeploy.bundle.bundle import Bundle
from vitdeploy.bundle.manifest import NOT_RECORDED
from vitdeploy.errors import BundleError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

Assessed: TypeAlias = (
    "Comparison | LayerComparison | Sensitivity | Evaluation | EmbeddingEvaluation | Benchmark | ScenarioBenchmark | "
    "GateResult | Tuning"
)


@dataclasses.dataclass(frozen=True, eq=False)
class Report:
    """The content of a report; absent parts are omitted.

    Attributes:
        title: Title of the page.
        source: Model and artifacts, as names and values.
        machine: Machine that measured the figures, as names and values.
        gate: Result of a gate.
        comparison: Comparison of artifacts with the reference.
        layers: The same, part by part.
        sensitivity: Effect of each layer alone in a lower precision.
        evaluation: Accuracy on labelled images.
        embeddings: The same for embeddings: kNN accuracy and recall.
        benchmark: Latencies; the first of each batch size is the baseline of the others.
        load: Figures under load.
        tuning: The fastest setting within an accuracy bound.
        examples: Images with predictions, in groups by heading.
    """

    title: str
    source: Mapping[str, str]
    machine: Mapping[str, str]
    gate: GateResult | None = None
    comparison: Comparison | None = None
    layers: LayerComparison | None = None
    sensitivity: Sensitivity | None = None
    evaluation: Evaluation | None = None
    embeddings: EmbeddingEvaluation | None = None
    benchmark: Benchmark | None = None
    load: ScenarioBenchmark | None = None
    tuning: Tuning | None = None
    examples: Mapping[str, Sequence[ExampleImage]] = dataclasses.field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        names = (
            "gate", "comparison", "layers", "sensitivity", "evaluation", "embeddings", "benchmark", "load", "tuning",
        )  # fmt: skip
        parts = {name: getattr(self, name) for name in names}
        return {
            "title": self.title,
            "source": dict(self.source),
            "machine": dict(self.machine),
            **{name: None if part is None else part.to_dict() for name, part in parts.items()},
            "samples": {heading: [example.to_dict() for example in group] for heading, group in self.examples.items()},
        }


def report_of(result: Assessed) -> Report:
    """Make the report of a result, with a gate's measurements and the worst images of an evaluation or comparison.

    UsageError if it is not the result of an assessment.
    """
    kinds = {
        Comparison: ("comparison", "Comparison with the reference"),
        LayerComparison: ("layers", "Comparison layer by layer"),
        Sensitivity: ("sensitivity", "Sensitivity"),
        Evaluation: ("evaluation", "Accuracy"),
        EmbeddingEvaluation: ("embeddings", "Embeddings"),
        Benchmark: ("benchmark", "Latency"),
        ScenarioBenchmark: ("load", "Load"),
        GateResult: ("gate", "Gate"),
        Tuning: ("tuning", "Tuning"),
    }
    if type(result) not in kinds:
        names, name = [kind.__name__ for kind in kinds], type(result).__name__
        problem = f"there is no report of a {name}, only of {', '.join(names)}"
        raise UsageError(problem, what="result", expected=names, found=name)
    part, title = kinds[type(result)]
    parts: dict[str, Any] = {part: result}
    if isinstance(result, GateResult):
        parts |= {"evaluation": result.evaluation, "embeddings": result.embeddings, "benchmark": result.benchmark}
    evaluation, timed = parts.get("evaluation"), parts.get("benchmark") or parts.get("load") or parts.get("tuning")
    examples = {} if evaluation is None else worst_images(evaluation)
    if isinstance(result, Comparison):
        examples = furthest_images(result)
    return Report(
        title=f"{title}: {Path(result.bundle).name or result.bundle}",
        source=source_of(result.bundle),
        machine=machine() if timed is None else timed.machine,
        examples=examples,
        **parts,
    )


def source_of(folder: str) -> dict[str, str]:
    """Names and values that describe a bundle; only its folder if it is gone."""
    facts = {"bundle": folder}
    try:
        manifest = Bundle.open(folder).manifest
    except BundleError:
        return facts
    facts |= {"model": manifest.source.id, "revision": manifest.source.revision or "", "task": manifest.task}
    facts["image processor"] = manifest.processor or NOT_RECORDED
    if manifest.source.base is not None:
        facts |= {"merged into": manifest.source.base, "base revision": manifest.source.base_revision or ""}
    if manifest.source.architecture is not None:
        facts["architecture"] = manifest.source.architecture
    facts |= {f"{file.path} sha256": file.sha256 for file in manifest.source.weights}
    for artifact in manifest.artifacts:
        name = artifact.name
        facts[name] = ", ".join(f"{file.path} ({file.size_bytes / 1e6:.1f} MB)" for file in artifact.files)
        facts |= {f"{name} {key}": value_text(value) for key, value in {**artifact.options, **artifact.tools}.items()}
    return facts


def value_text(value: object) -> str:
    """An option or a setting as text; "" if empty."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {value_text(item)}" for name, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(value_text, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else str(value)
