"""Batches of preprocessed images, and runs of the reference on them."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np

from vitdeploy.assess.data.images import ImageSources, feeds
from vitdeploy.errors import UsageError
from vitdeploy.predictor import batch_size_for
from vitdeploy.runtimes.fit import check_fit
from vitdeploy.system.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from vitdeploy.assess.runs.open_runtimes import OpenRuntimes
    from vitdeploy.bundle.bundle import Bundle
    from vitdeploy.bundle.manifest import Artifact
    from vitdeploy.images.processor import ImageProcessor
    from vitdeploy.runtimes.base import Runtime


def run_reference(
    runtimes: OpenRuntimes, batches: Batches, outputs: tuple[str, ...] | None = None, *, keep: Keep = dict
) -> tuple[dict[str, np.ndarray], str]:
    """The reference's outputs (default: all) for the images, and the engine and device that ran it.

    Raises:
        MissingDependencyError: If torch is not installed.
        BundleError: If the image processor does not fit the model.
    """
    with runtimes.reference(outputs) as runtime:
        check_fit(runtimes.bundle, batches.processor, runtime)
        engine = f"{runtime.details['engine']} on {runtime.details['device']}"
        return run_batches(runtime, batches.feeds(runtime), keep=keep), engine


class Runs(Protocol):
    """A runtime, or an object with its `run` method."""

    @property
    def run(self) -> Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]: ...


Keep: TypeAlias = "Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]"


def run_batches(
    runtime: Runs, batches: Iterable[Mapping[str, np.ndarray]], *, keep: Keep = dict
) -> dict[str, np.ndarray]:
    """Run feeds of N images each, and join the outputs: (sum of N, ...) by name.

    Args:
        runtime: Runtime for the feeds.
        batches: Feeds of each batch.
        keep: Function that selects from a batch's outputs. Default: all.

    Raises:
        UsageError: If two batches' outputs differ in shape, as the tokens of images of different sizes do.
    """
    runs = [keep(runtime.run(batch)) for batch in batches]
    shapes = {name: sorted({run[name].shape[1:] for run in runs}) for name in runs[0]}
    for name, (shape, *others) in shapes.items():
        if others:
            raise UsageError(
                f"images give {name} of different shapes, {shape} and {others[0]}",
                what=name, found=(shape, *others), hint="use images of one size, or a processor with a center crop",
            )  # fmt: skip
    return {name: np.concatenate([run[name] for run in runs]) for name in runs[0]}


def rows_not_finite(outputs: Mapping[str, np.ndarray]) -> NDArray[np.bool_]:
    """True for images (N,) with a NaN or infinite value in any of the outputs, (N, ...) each."""
    rows: NDArray[np.bool_] = np.any(
        [~np.isfinite(value.reshape(len(value), -1)).all(axis=1) for value in outputs.values()], axis=0
    )
    return rows


@dataclasses.dataclass(frozen=True)
class Batches:
    """Images, preprocessed batch by batch on each iteration, so that they are never all in memory."""

    processor: ImageProcessor
    sources: Sequence[Any]
    batch_size: int

    def feeds(self, of: Runtime | Artifact) -> Iterator[dict[str, np.ndarray]]:
        """Yield the images as inputs, batch by batch."""
        size = batch_size_for(self.processor, of, self.batch_size)
        for start in range(0, len(self.sources), size):
            sources = self.sources[start : start + size]
            yield feeds(of.inputs, self.processor(sources, pixels=of.pixels, first_index=start))

    def pixels_sha256(self) -> str:
        """SHA-256 of all preprocessed images, normalized float32, in sequence."""
        digest = hashlib.sha256()
        for index, source in enumerate(self.sources):
            digest.update(self.processor(source, first_index=index).tobytes())
        return digest.hexdigest()


@dataclasses.dataclass(frozen=True, eq=False)
class ReferenceRun:
    """Images with the reference's outputs.

    Attributes:
        bundle: The reference's bundle.
        sources: Source images.
        batches: The same images, preprocessed.
        expected: Outputs, (N, ...) by name.
    """

    bundle: Bundle
    sources: ImageSources
    batches: Batches
    expected: Mapping[str, np.ndarray]

    @classmethod
    def of(
        cls,
        runtimes: OpenRuntimes,
        sources: ImageSources,
        outputs: Iterable[str],
        progress: Progress,
        batch_size: int = 1,
    ) -> ReferenceRun:
        """Run the reference; raises as `run_reference`."""
        progress.step(f"running the reference on {len(sources.images)} images")
        batches = Batches(runtimes.processor, sources.images, batch_size)
        expected, _ = run_reference(runtimes, batches, tuple(outputs))
        return cls(runtimes.bundle, sources, batches, expected)

    @property
    def assessment(self) -> dict[str, Any]:
        """Fields of an `ImageAssessment` for these images."""
        return {
            "bundle": str(self.bundle.path),
            "images": len(self.sources.images),
            "synthetic": self.sources.synthetic,
            "processor": self.bundle.manifest.processor,
            "left_out": self.sources.left_out,
        }
