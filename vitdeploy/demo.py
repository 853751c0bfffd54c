"""The demonstration: the embedded model from its checkpoint to a report."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitdeploy.assess.benchmark import benchmark
from vitdeploy.assess.compare import compare
from vitdeploy.assess.evaluate import evaluate
from vitdeploy.assess.samples import image_files
from vitdeploy.assets import default_checkpoint, held_out_images
from vitdeploy.errors import UnavailableError
from vitdeploy.predictor import load
from vitdeploy.workflow import export

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping

    from vitdeploy.assess.compare import Comparison
    from vitdeploy.assess.report import Report, Sample
    from vitdeploy.manifest import Manifest
    from vitdeploy.predictor import Predictor

BACKENDS = ("torch", "onnxruntime")
_BATCH_SIZES = (1, 8)
_MOST_WRONG_SHOWN = 12


@dataclasses.dataclass(frozen=True)
class DemoResult:
    """What the demo made and measured.

    Attributes:
        bundle: the folder.
        path: of the report.
        report: what it shows.
        comparison: of all held-out images.
        seconds: how long all of it took.
    """

    bundle: Path
    path: Path
    report: Report
    comparison: Comparison
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        return {
            "status": self.comparison.status,
            "bundle": str(self.bundle),
            "report": str(self.path),
            "seconds": self.seconds,
            **self.report.to_dict(),
        }


def run_demo(output: str | os.PathLike[str], *, on_step: Callable[[str], None] = lambda _: None) -> DemoResult:
    """Export the embedded checkpoint, and assess it on the images that its training never saw.

    Args:
        output: the folder for `bundle` and `report.html`; what is there already is replaced.
        on_step: called with what is being done.

    Raises:
        MissingDependencyError: a library is not installed.
        CheckFailedError: the exported artifact is not the same model.
        OutputError: a file cannot be written.
    """
    from vitdeploy.assess.report import Report, write_report  # its libraries are those of an extra

    start = time.perf_counter()
    images = held_out_images()
    bundle = export(default_checkpoint(), output=Path(output, "bundle"), images=images, on_step=on_step)
    comparison = compare(bundle, images=images, on_step=on_step)
    evaluation = evaluate(bundle, data=images, backends=[f"{name}:fp32" for name in BACKENDS], on_step=on_step)
    accuracies = {result.backend: evaluation.top1(result) for result in evaluation.results}
    with contextlib.ExitStack() as stack:
        predictors = {name: stack.enter_context(load(bundle.path, backend=name)) for name in BACKENDS}
        wrong = sorted({path for accuracy in accuracies.values() for path in accuracy.wrong})
        heading = f"Misclassified: {len(wrong)} of {comparison.images}"
        if len(wrong) > _MOST_WRONG_SHOWN:
            heading += f", the first {_MOST_WRONG_SHOWN}"
        samples = {
            "One image of each class": _samples(predictors, _first_of_each_class(images)),
            heading: _samples(predictors, [images / path for path in wrong[:_MOST_WRONG_SHOWN]]),
        }
    times = benchmark(
        bundle, backends=[f"{name}:fp32" for name in BACKENDS], batch_sizes=_BATCH_SIZES, images=images, on_step=on_step
    )
    if times.skipped:
        raise UnavailableError(times.skipped[0].reason)
    on_step("writing the report")
    report = Report(
        title=f"{bundle.manifest.source.id}, from PyTorch to ONNX Runtime",
        source=_source(bundle.manifest),
        machine=times.machine,
        comparison=comparison,
        accuracies=accuracies,
        latencies=times.latencies,
        processing_ms=times.latency("onnxruntime fp32", 1).processing_ms,
        samples=samples,
    )
    path = write_report(Path(output, "report.html"), report)
    return DemoResult(bundle.path, path, report, comparison, time.perf_counter() - start)


def _first_of_each_class(images: Path) -> list[Path]:
    return [image_files(folder)[0] for folder in sorted(images.iterdir()) if folder.is_dir()]


def _samples(predictors: Mapping[str, Predictor], files: list[Path]) -> list[Sample]:
    from vitdeploy.assess.report import Sample

    predictions = [predictor.predict(files, top_k=3) for predictor in predictors.values()]
    return [
        Sample(file, file.parent.name, dict(zip(predictors, best, strict=True)))
        for file, *best in zip(files, *predictions, strict=True)
    ]


def _source(manifest: Manifest) -> dict[str, str]:
    facts = {"model": manifest.source.id, "revision": manifest.source.revision or "", "task": manifest.task}
    facts |= {f"{file.path} sha256": file.sha256 for file in manifest.source.weights}
    for artifact in manifest.artifacts:
        name = artifact.name
        facts[name] = ", ".join(f"{file.path} ({file.size_bytes / 1e6:.1f} MB)" for file in artifact.files)
        facts |= {f"{name} {key}": str(value) for key, value in {**artifact.options, **artifact.tools}.items()}
    return facts
