"""The demonstration: the embedded model from its checkpoint to a report."""

from __future__ import annotations

import dataclasses
import os
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from vitdeploy.assess.benchmark.benchmark import benchmark
from vitdeploy.assess.compare.compare import compare
from vitdeploy.assess.evaluate.evaluate import Evaluation, evaluate
from vitdeploy.assess.report.example_images import first_of_each_class, worst_images
from vitdeploy.assess.report.report import Report, source_of
from vitdeploy.assets import default_checkpoint, held_out_images
from vitdeploy.bundle.bundle import Bundle
from vitdeploy.bundle.manifest import MANIFEST
from vitdeploy.bundle.output_paths import check_outputs
from vitdeploy.errors import BundleError, UnavailableError, UsageError, readable
from vitdeploy.exporting.options import ValidationOptions
from vitdeploy.exporting.workflow import export
from vitdeploy.files.atomic import replace_folder, staged_folder
from vitdeploy.files.output_files import check_writable
from vitdeploy.system.argument_types import typed
from vitdeploy.system.progress import SILENT, Progress

if TYPE_CHECKING:
    from vitdeploy.assess.benchmark.result import Benchmark
    from vitdeploy.assess.compare.results import Comparison

BACKENDS = ("torch", "onnxruntime")
_BATCH_SIZES = (1, 8)


@dataclasses.dataclass(frozen=True)
class DemoResult:
    """The files and measurements of the demo.

    Attributes:
        bundle: The bundle's folder.
        path: The report's file.
        report: The report's content.
        comparison: Comparison on all held-out images.
        evaluation: Evaluation on the same images.
        benchmark: Benchmark at two batch sizes.
        seconds: Total duration, in seconds.
    """

    bundle: Path
    path: Path
    report: Report
    comparison: Comparison
    evaluation: Evaluation
    benchmark: Benchmark
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        return {
            "status": self.comparison.status,
            "bundle": str(self.bundle),
            "report": str(self.path),
            "seconds": self.seconds,
            **self.report.to_dict(),
        }


@typed
def run_demo(output: str | os.PathLike[str], *, progress: Progress = SILENT) -> DemoResult:
    """Export the embedded checkpoint, and assess it on images that were not in its training set.

    Args:
        output: Folder for `bundle`, `images` (the labelled images) and `report.html`; those of an earlier demo are
            replaced.
        progress: Receives each step and its progress.

    Raises:
        MissingDependencyError: If a library is not installed.
        CheckFailedError: If the exported artifact differs from the reference.
        OutputError: If a file cannot be written.
        InputError: If `images` cannot be read.
        UsageError: If `output` is empty, is a bundle or lies in one, its `images` has other files, or the report would
            overwrite a file of the demo's bundle.
    """
    from vitdeploy.assess.report.page import write_html  # needs the libraries of an extra

    if not os.fspath(output):
        raise UsageError("output has no name", what="output", found=output, hint="name a folder")
    start = time.perf_counter()
    path, images = Path(output, "report.html"), Path(output, "images")
    _check_apart(Path(output))
    check_outputs({"the report": path}, {}, bundle=Path(output, "bundle"))
    check_writable(path)
    _check_images(images)
    with staged_folder(images) as staging:
        for image in held_out_images().rglob("*.png"):
            place = staging / image.relative_to(held_out_images())
            place.parent.mkdir(exist_ok=True)
            shutil.copyfile(image, place)
        replace_folder(staging, images)
    selected = [f"{name}:fp32" for name in BACKENDS]
    validation = ValidationOptions(images)
    bundle = export(default_checkpoint(), output=Path(output, "bundle"), validation=validation, progress=progress)
    comparison = compare(bundle, images=images, progress=progress)
    evaluation = evaluate(bundle, data=images, backends=selected, progress=progress)
    times = benchmark(bundle, backends=selected, batch_sizes=_BATCH_SIZES, images=images, progress=progress)
    if times.skipped:
        raise UnavailableError(times.skipped[0].reason, what=times.skipped[0].backend)
    progress.step("writing the report")
    report = Report(
        title=f"{bundle.manifest.source.id}, from PyTorch to ONNX Runtime",
        source=source_of(str(bundle.path)),
        machine=times.machine,
        comparison=comparison,
        evaluation=evaluation,
        benchmark=times,
        examples={"One image of each class": first_of_each_class(evaluation), **worst_images(evaluation)},
    )
    write_html(path, report)
    return DemoResult(bundle.path, path, report, comparison, evaluation, times, time.perf_counter() - start)


def _check_apart(output: Path) -> None:
    """Raise UsageError if the demo would write into a bundle, which must contain only the files of its manifest."""
    try:
        folder = output.resolve()
        around = [place for place in (folder, *folder.parents) if (place / MANIFEST).exists()]
    except (OSError, RuntimeError, ValueError):
        return  # `check_writable` reports the reason
    for place in around:
        if place == folder or _is_bundle(place):
            problem = f"{place} is a bundle, and the demo would write into it"
            raise UsageError(problem, what="output", where=place, hint="choose another folder (-o)")


def _check_images(folder: Path) -> None:
    """Raise UsageError if the path of the images is a file, a link, or a folder with other files."""
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        problem = f"{folder} is {'a link' if folder.is_symlink() else 'a file'}, not a folder"
        raise UsageError(problem, what="output", where=folder, hint="choose another folder (-o)")

    def fail(exc: OSError) -> NoReturn:
        raise exc

    files: set[Path] = set()
    if folder.exists():
        with readable(folder, "a folder"):
            for parent, _, names in os.walk(folder, onerror=fail):
                files.update(Path(parent, name).relative_to(folder) for name in names)
    others = files - {path.relative_to(held_out_images()) for path in held_out_images().rglob("*.png")}
    if others:
        problem = f"{folder} has files that the demo did not write, such as {min(others)}"
        raise UsageError(problem, what="output", where=folder, hint="choose another folder (-o)")


def _is_bundle(folder: Path) -> bool:
    try:
        Bundle.open(folder)
    except BundleError:
        return False  # another kind of manifest, such as a web page's
    return True
