"""`vitdeploy demo`."""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vitdeploy.assess.benchmark import measure_latency, measure_processing
from vitdeploy.assess.compare import compare
from vitdeploy.assess.environment import machine
from vitdeploy.assess.evaluate import evaluate
from vitdeploy.assess.samples import image_files
from vitdeploy.assets import default_checkpoint, held_out_images
from vitdeploy.cli.output import EXIT_CODES, json_option, pairs, print_json, print_table, steps
from vitdeploy.predictor import load
from vitdeploy.workflow import export

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping

    from vitdeploy.assess.compare import Comparison
    from vitdeploy.assess.report import Report, Sample
    from vitdeploy.bundle import Manifest
    from vitdeploy.predictor import Predictor

_BACKENDS = ("torch", "onnxruntime")
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


@click.command()
@click.option("-o", "--output", default="demo-output", show_default=True, type=click.Path(), help="A folder.")
@json_option
def demo(output: str, as_json: bool) -> None:
    """Export the embedded model to ONNX, prove it, time it, and write a report that a browser opens.

    Writes OUTPUT/bundle and OUTPUT/report.html. Exits with 1 if the artifact differs from the reference by more than
    the tolerance, and with 3 if a backend could not run.
    """
    with steps() as on_step:
        result = run_demo(output, on_step=on_step)
    if as_json:
        print_json(result.to_dict())
    else:
        _print(result)
    sys.exit(EXIT_CODES[result.comparison.status])


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
    from vitdeploy.assess.report import Report, write_report  # here, so that --help needs no extra

    start = time.perf_counter()
    images = held_out_images()
    bundle = export(default_checkpoint(), output=Path(output, "bundle"), images=images, on_step=on_step)
    comparison = compare(bundle, images=images, on_step=on_step)
    with contextlib.ExitStack() as stack:
        predictors = {name: stack.enter_context(load(bundle.path, backend=name)) for name in _BACKENDS}
        on_step("measuring the accuracy")
        accuracies = {name: evaluate(predictor, images) for name, predictor in predictors.items()}
        wrong = sorted({path for accuracy in accuracies.values() for path in accuracy.wrong})
        heading = f"Misclassified: {len(wrong)} of {comparison.images}"
        if len(wrong) > _MOST_WRONG_SHOWN:
            heading += f", the first {_MOST_WRONG_SHOWN}"
        samples = {
            "One image of each class": _samples(predictors, _first_of_each_class(images)),
            heading: _samples(predictors, [images / path for path in wrong[:_MOST_WRONG_SHOWN]]),
        }
        processing_ms = measure_processing(predictors["onnxruntime"].processor, image_files(images))
    latencies = measure_latency(
        bundle.path, [(name, "fp32") for name in _BACKENDS], batch_sizes=_BATCH_SIZES, runs=10, on_step=on_step
    )
    on_step("writing the report")
    report = Report(
        title=f"{bundle.manifest.source.id}, from PyTorch to ONNX Runtime",
        source=_source(bundle.manifest),
        machine=machine(),
        comparison=comparison,
        accuracies=accuracies,
        latencies=latencies,
        processing_ms=statistics.median(processing_ms),
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
        facts |= {f"{name} options": pairs(artifact.options), f"{name} tools": pairs(artifact.tools)}
    return facts


def _print(result: DemoResult) -> None:
    comparison, report = result.comparison, result.report
    rows: list[tuple[str, ...]] = [
        (item.artifact, item.backend, item.status, each.output, f"{each.max_relative:.2e}", f"{item.tolerance:g}")
        for item in comparison.results
        for each in item.differences
    ]
    columns: tuple[str, ...] = ("artifact", "backend", "status", "output", "max relative", "tolerance")
    print_table(f"Against the reference, on {comparison.images} images: {comparison.status}", columns, rows)
    for heading, samples in report.samples.items():
        rows = [
            (
                sample.image.name,
                sample.expected,
                *(f"{it.label} {it.score:.1%}" for it, *_ in sample.predictions.values()),
            )
            for sample in samples
        ]
        print_table(f"\n{heading}", ("image", "class", *_BACKENDS), rows)
    rows = [(name, str(accuracy)) for name, accuracy in report.accuracies.items()]
    print_table("\nAccuracy, with its 95 % interval", ("backend", "accuracy"), rows)
    rows = [
        (item.name, str(item.batch_size), *(f"{item.percentile_ms(percent):.3f}" for percent in (50, 90, 99)),
         f"{item.images_per_second:,.0f}")
        for item in report.latencies
    ]  # fmt: skip
    columns = ("backend", "batch", "p50 ms", "p90 ms", "p99 ms", "images/s")
    print_table(f"\nLatency of the runtime; an image takes {report.processing_ms:.2f} ms before it", columns, rows)
    click.echo(f"\nBundle: {result.bundle}\nReport: {result.path}\nDone in {result.seconds:.0f} s.")
