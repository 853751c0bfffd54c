"""Compare every artifact of a bundle with the reference, on the same images."""

from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from vitdeploy.assess.difference import DEFAULT_TOLERANCES, Difference, compare_outputs
from vitdeploy.assess.samples import feeds, image_files, synthetic_images
from vitdeploy.bundle import Bundle
from vitdeploy.errors import UnavailableError, UsageError
from vitdeploy.processor import ImageProcessor
from vitdeploy.runtimes import BACKENDS, open_runtime

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from vitdeploy.runtimes.base import Runtime

REFERENCE = "torch"
SYNTHETIC_COUNT = 16


@dataclasses.dataclass(frozen=True)
class BackendComparison:
    """One artifact on one backend.

    Attributes:
        artifact: such as "onnx-fp32".
        backend: what ran it.
        tolerance: the largest difference allowed, relative to each output's largest value.
        differences: one an output; none where the backend was skipped.
        details: what really ran.
        skipped: why it could not run; None where it did.
    """

    artifact: str
    backend: str
    tolerance: float
    differences: tuple[Difference, ...] = ()
    details: dict[str, Any] = dataclasses.field(default_factory=dict)
    skipped: str | None = None

    @property
    def status(self) -> str:
        """The outcome: "passed", "failed" or "skipped"."""
        if self.skipped is not None:
            return "skipped"
        return "passed" if all(difference.within(self.tolerance) for difference in self.differences) else "failed"

    def to_dict(self) -> dict[str, Any]:
        return {
            **dataclasses.asdict(self),
            "status": self.status,
            "differences": [difference.to_dict() for difference in self.differences],
        }


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Every artifact of a bundle against the reference.

    Attributes:
        bundle: the folder.
        images: how many were compared.
        synthetic: whether they were made up, none having been given.
        results: one an artifact and backend.
    """

    bundle: str
    images: int
    synthetic: bool
    results: tuple[BackendComparison, ...]

    @property
    def status(self) -> str:
        """The outcome: "failed" if a result is, else "skipped" if one is, else "passed"."""
        statuses = {result.status for result in self.results}
        return next((status for status in ("failed", "skipped") if status in statuses), "passed")

    def to_dict(self) -> dict[str, Any]:
        return {
            **dataclasses.asdict(self),
            "status": self.status,
            "results": [result.to_dict() for result in self.results],
        }


def compare(
    bundle: str | os.PathLike[str] | Bundle,
    *,
    images: str | os.PathLike[str] | Sequence[Any] | None = None,
    tolerance: float | None = None,
    batch_size: int = 8,
    on_step: Callable[[str], None] = lambda _: None,
) -> Comparison:
    """Run the reference and every artifact on the same processed images, and compare all outputs.

    Args:
        bundle: the bundle or its folder.
        images: a folder, every image below it; or the images. By default 16 seeded synthetic ones.
        tolerance: largest difference allowed, relative to each output's largest value; by default by precision.
        batch_size: images that run together, from 1 up.
        on_step: called with what is being done.

    Raises:
        BundleError: the bundle is absent or was altered.
        UsageError: the bundle has no artifact, or an argument is not what it must be.
        ImageError: an image cannot be read.
        MissingDependencyError: torch, which runs the reference, is not installed.
    """
    bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    if batch_size < 1 or (tolerance is not None and not tolerance >= 0):
        raise UsageError(f"batch_size must be at least 1 and tolerance at least 0, got {batch_size} and {tolerance}")
    if not bundle.manifest.artifacts:
        raise UsageError(f"{bundle.path} must hold an artifact to compare, holds none; make one: vitdeploy export")
    processor = ImageProcessor.from_pretrained(bundle.path)
    sources: Sequence[Any]
    if images is None:
        sources = synthetic_images(SYNTHETIC_COUNT, *(processor.output_size or (256, 256)))
    else:
        sources = image_files(images) if isinstance(images, (str, os.PathLike)) else images
    on_step(f"processing {len(sources)} images")
    pixel_values = processor(list(sources))
    on_step("running the reference")
    with open_runtime(bundle, REFERENCE) as runtime:
        expected = run_batches(runtime, pixel_values, batch_size)
    results = tuple(_results(bundle, pixel_values, expected, batch_size, tolerance, on_step))
    return Comparison(str(bundle.path), len(sources), images is None, results)


def run_batches(runtime: Runtime, pixel_values: np.ndarray, *batch_sizes: int) -> dict[str, np.ndarray]:
    """Run images in batches of the given sizes, the last one repeated, and join the outputs: (N, ...) by name."""
    runs: list[dict[str, np.ndarray]] = []
    start = 0
    while start < len(pixel_values):
        size = batch_sizes[min(len(runs), len(batch_sizes) - 1)]
        runs.append(runtime.run(feeds(runtime.inputs, pixel_values[start : start + size])))
        start += size
    return {name: np.concatenate([run[name] for run in runs]) for name in runs[0]}


def _results(
    bundle: Bundle,
    pixel_values: np.ndarray,
    expected: dict[str, np.ndarray],
    batch_size: int,
    tolerance: float | None,
    on_step: Callable[[str], None],
) -> Iterator[BackendComparison]:
    for artifact in bundle.manifest.artifacts:
        allowed = DEFAULT_TOLERANCES[artifact.precision] if tolerance is None else tolerance
        for name, backend in BACKENDS.items():
            if backend.artifact_format != artifact.format:
                continue
            on_step(f"running {artifact.name} on {name}")
            try:
                with open_runtime(bundle, name, precision=artifact.precision) as runtime:
                    outputs = run_batches(runtime, pixel_values, batch_size)
                    differences = compare_outputs(expected, outputs)
                    yield BackendComparison(artifact.name, name, allowed, differences, runtime.details)
            except UnavailableError as exc:
                yield BackendComparison(artifact.name, name, allowed, skipped=str(exc))
