"""Compare every artifact of a bundle with the reference, on the same images."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vitdeploy._version import __version__
from vitdeploy.assess.compare.golden import Golden
from vitdeploy.assess.compare.results import BackendComparison, Comparison
from vitdeploy.assess.compare.worst_images import WorstImage, most_different_images
from vitdeploy.assess.data.images import chosen_images
from vitdeploy.assess.metrics.cosine_bound import COSINE_BOUNDS
from vitdeploy.assess.metrics.features import TokenVector, nearness, vectors
from vitdeploy.assess.metrics.logits import LogitsDifference, compare_logits
from vitdeploy.assess.metrics.outputs import LOGITS, check_tolerance, compare_outputs, default_tolerance
from vitdeploy.assess.runs.open_runtimes import OpenRuntimes
from vitdeploy.assess.runs.reference import Batches, rows_not_finite, run_batches, run_reference
from vitdeploy.assess.runs.targets import Selected, artifacts, no_artifact
from vitdeploy.bundle.bundle import Bundle
from vitdeploy.bundle.output_paths import check_outputs
from vitdeploy.bundle.retry import retry_if_changed
from vitdeploy.errors import UnavailableError, UsageError
from vitdeploy.files.output_files import check_writable
from vitdeploy.predictor import check_batch_size
from vitdeploy.specs import Task
from vitdeploy.system.argument_types import typed
from vitdeploy.system.progress import SILENT, Progress

if TYPE_CHECKING:
    from vitdeploy.bundle.manifest import Artifact


@typed
@retry_if_changed
def compare(
    bundle: str | os.PathLike[str] | Bundle,
    *,
    images: str | os.PathLike[str] | Sequence[Any] | NDArray[Any] | None = None,
    tolerance: float | None = None,
    batch_size: int = 8,
    backends: Sequence[str] | None = None,
    device: str = "cpu",
    golden: str | os.PathLike[str] | None = None,
    save_golden: str | os.PathLike[str] | None = None,
    progress: Progress = SILENT,
) -> Comparison:
    """Run the reference and every artifact on the same preprocessed images, and compare all outputs.

    Golden outputs replace the reference on a machine without torch: they are saved once, where the reference runs, and
    used elsewhere on the same images.

    Args:
        bundle: The bundle or its folder.
        images: Folder, searched recursively, or the images. Default: 16 seeded synthetic images.
        tolerance: Largest difference allowed, relative to each output's largest value. Default: by precision; for a
            quantized artifact of a model without classes, bounds of vector cosine and nearest neighbours instead, see
            `vitdeploy.assess.metrics.cosine_bound`.
        batch_size: Images per run, at least 1.
        backends: As for `evaluate`. Default: every artifact.
        device: Device of the artifacts and the reference: "cpu", "cuda" or "cuda:1".
        golden: File of golden outputs to compare with; the reference does not run.
        save_golden: File to write golden outputs to; not written if the images or the bundle are invalid.
        progress: Receives each step and its progress.

    Raises:
        BundleError: If the bundle is missing or was altered.
        UsageError: If the bundle has no artifact, an argument is invalid, or the golden outputs have another origin.
        ImageError: If an image cannot be read.
        InputError: If the file of golden outputs is unreadable or damaged.
        OutputError: If the golden outputs cannot be written.
        MissingDependencyError: If torch, which runs the reference, is not installed.
    """
    check_batch_size(batch_size)
    check_tolerance(tolerance)
    bundle = Bundle.of(bundle)
    if not bundle.manifest.artifacts:
        raise no_artifact(bundle, "compare")
    if golden is not None and save_golden is not None:
        raise UsageError("golden outputs are either saved or compared with", what="golden", found=(golden, save_golden))
    check_outputs({"save_golden": save_golden}, {"images": images}, bundle=bundle.path)
    if save_golden is not None:
        check_writable(Path(save_golden))
    with OpenRuntimes(bundle, device, progress=progress) as runtimes:
        return run_comparison(
            runtimes, images=images, tolerance=tolerance, batch_size=batch_size, backends=backends, golden=golden,
            save_golden=save_golden, progress=progress,
        )  # fmt: skip


def run_comparison(
    runtimes: OpenRuntimes,
    *,
    images: str | os.PathLike[str] | Sequence[Any] | NDArray[Any] | None,
    tolerance: float | None = None,
    batch_size: int = 8,
    backends: Sequence[str] | None,
    golden: str | os.PathLike[str] | None = None,
    save_golden: str | os.PathLike[str] | None = None,
    progress: Progress,
) -> Comparison:
    """`compare` on shared runtimes."""
    bundle = runtimes.bundle
    chosen_sources = chosen_images(runtimes.processor, images)
    sources = chosen_sources.images
    batches = Batches(runtimes.processor, sources, batch_size)
    by_name = {artifact.name: artifact for artifact in bundle.manifest.artifacts}
    chosen = artifacts(bundle, backends)
    names = {selected.artifact for selected in chosen}
    allowed = {name: default_tolerance(by_name[name]) if tolerance is None else tolerance for name in names}
    tools: dict[str, str] = {}
    if golden is not None:
        progress.step(f"reading golden outputs of {len(sources)} images")
        read = Golden.read(golden)
        read.check(bundle, batches.pixels_sha256(), len(sources), batch_size)
        expected = read.outputs
    else:
        progress.step(f"running the reference on {len(sources)} images")
        expected, engine = run_reference(runtimes, batches, _reference_outputs(bundle))
        tools = {"vitdeploy": __version__, "engine": engine}
    results = []
    for selected in chosen:
        limit = allowed[selected.artifact]
        progress.step(f"running {selected}")
        try:
            results.append(
                _result(
                    runtimes, selected, by_name[selected.artifact], batches, expected, limit,
                    by_cosine=tolerance is None, search=images is not None,
                )
            )  # fmt: skip
        except UnavailableError as exc:
            results.append(BackendComparison(selected.artifact, selected.backend, limit, skipped=str(exc)))
    if save_golden is not None:
        Golden(expected, bundle.manifest.reference, batches.pixels_sha256(), batch_size, tools).write(save_golden)
    return Comparison(
        bundle=str(bundle.path),
        images=len(sources),
        synthetic=images is None,
        results=tuple(results),
        problem_type=bundle.read_config().problem_type,
        processor=bundle.manifest.processor,
        left_out=chosen_sources.left_out,
    )


def _reference_outputs(bundle: Bundle) -> tuple[str, ...] | None:
    """Output names of all artifacts; None if nothing runs one."""
    runnable = {selected.artifact for selected in artifacts(bundle) if selected.backend}
    specs = [spec for artifact in bundle.manifest.artifacts if artifact.name in runnable for spec in artifact.outputs]
    return tuple(dict.fromkeys(spec.name for spec in specs)) or None


def _result(
    runtimes: OpenRuntimes,
    selected: Selected,
    artifact: Artifact,
    batches: Batches,
    expected: Mapping[str, np.ndarray],
    tolerance: float,
    *,
    by_cosine: bool,
    search: bool,
) -> BackendComparison:
    """Run an artifact, and judge it by cosine or tolerance; search neighbours among the images if requested."""
    config = runtimes.bundle.read_config()
    with_classes = runtimes.bundle.manifest.task == Task.CLASSIFICATION
    ranked = config.problem_type.ranked
    with runtimes.open(selected) as runtime:
        token = TokenVector.of_dict(config.model)
        wanted = {spec.name: expected[spec.name] for spec in artifact.outputs}
        given = run_batches(runtime, batches.feeds(runtime))
        return BackendComparison(
            artifact.name,
            selected.backend,
            tolerance,
            compare_outputs(wanted, given, problem_type=config.problem_type),
            runtime.details,
            logits=_compare_logits(wanted, given, tolerance) if ranked else None,
            not_finite=tuple(np.flatnonzero(rows_not_finite(given)).tolist()),
            furthest=_worst_images(config.labels, wanted, given, batches.sources) if ranked else (),
            nearness=() if with_classes else nearness(vectors(wanted, token), vectors(given, token), search=search),
            cosine_bound=COSINE_BOUNDS.get(artifact.precision) if by_cosine and not with_classes else None,
        )


def _compare_logits(
    wanted: Mapping[str, np.ndarray], given: Mapping[str, np.ndarray], tolerance: float
) -> LogitsDifference | None:
    if LOGITS not in wanted or not all(np.isfinite(run[LOGITS]).all() for run in (wanted, given)):
        return None
    return compare_logits(wanted[LOGITS], given[LOGITS], tolerance)


def _worst_images(
    labels: Sequence[str], wanted: Mapping[str, np.ndarray], given: Mapping[str, np.ndarray], sources: Sequence[Any]
) -> tuple[WorstImage, ...]:
    if LOGITS not in wanted or wanted[LOGITS].ndim != 2:
        return ()
    return most_different_images(wanted[LOGITS], given[LOGITS], sources, labels)
