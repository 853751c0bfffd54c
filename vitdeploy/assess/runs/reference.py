"""Run the reference on images, a batch at a time."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np

from vitdeploy.assess.data.images import feeds
from vitdeploy.assess.runs.targets import reference_backend
from vitdeploy.errors import DeviceError, UnavailableError, UsageError
from vitdeploy.predictor import batch_size_for, check_fit
from vitdeploy.runtimes import open_recorded, runtime_class
from vitdeploy.runtimes.options import parse_device
from vitdeploy.specs import attention_for
from vitdeploy.system.progress import SILENT, Progress
from vitdeploy.trt.gpu import find_gpus

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from vitdeploy.bundle.bundle import Bundle
    from vitdeploy.bundle.manifest import Artifact
    from vitdeploy.images.processor import ImageProcessor
    from vitdeploy.runtimes.base import Runtime


def run_reference(
    bundle: Bundle,
    batches: Batches,
    outputs: tuple[str, ...] | None = None,
    device: str = "cpu",
    progress: Progress = SILENT,
    *,
    keep: Keep = dict,
) -> tuple[dict[str, np.ndarray], str]:
    """What the reference gives for the images, and the engine and device that ran it; by default its own outputs.

    On a GPU that torch cannot use, as engines can, it runs on the CPU.

    Raises:
        MissingDependencyError: torch is not installed.
        BundleError: the image processor does not fit the model.
    """
    options: dict[str, Any] = {"outputs": outputs, "attention": attention_for(outputs or ())}
    try:
        reference = open_recorded(bundle, reference_backend(), options, device=device)
    except DeviceError as exc:
        if not _is_gpu_beyond_torch(device):
            raise
        progress.step(f"running the reference on the CPU: {exc}")
        reference = open_recorded(bundle, reference_backend(), options)
    with reference as runtime:
        check_fit(bundle, batches.processor, runtime)
        engine = f"{runtime.details['engine']} on {runtime.details['device']}"
        return run_batches(runtime, batches.feeds(runtime), keep=keep), engine


def _is_gpu_beyond_torch(device: str) -> bool:
    """Whether that is a GPU of this machine, and torch was built without CUDA or finds none."""
    kind, index = parse_device(device)
    if kind != "cuda" or any(name.startswith("cuda") for name in runtime_class(reference_backend()).probe()):
        return False
    try:
        return (index or 0) < len(find_gpus())
    except UnavailableError:
        return False


class Runs(Protocol):
    """A runtime, or what runs as one does."""

    @property
    def run(self) -> Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]: ...


Keep: TypeAlias = "Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]"


def run_batches(
    runtime: Runs, batches: Iterable[Mapping[str, np.ndarray]], *, keep: Keep = dict
) -> dict[str, np.ndarray]:
    """Run feeds of N images each, and join the outputs: (sum of N, ...) by name.

    Args:
        runtime: what runs them.
        batches: feeds.
        keep: what is kept of the outputs of a batch; all of them by default.

    Raises:
        UsageError: the outputs of two batches differ in shape, as the tokens of images of different sizes do.
    """
    runs = [keep(runtime.run(batch)) for batch in batches]
    shapes = {name: sorted({run[name].shape[1:] for run in runs}) for name in runs[0]}
    for name, (shape, *others) in shapes.items():
        if others:
            raise UsageError(
                f"images to compare must give {name} of one shape, give {shape} and {others[0]}; "
                f"use images of one size, or a processor with a center crop"
            )
    return {name: np.concatenate([run[name] for run in runs]) for name in runs[0]}


@dataclasses.dataclass(frozen=True)
class Batches:
    """Images, processed a batch at a time whenever they are gone through, so that never all are in memory."""

    processor: ImageProcessor
    sources: Sequence[Any]
    batch_size: int

    def feeds(self, of: Runtime | Artifact) -> Iterator[dict[str, np.ndarray]]:
        """What it takes for the images, a batch at a time."""
        size = batch_size_for(self.processor, of, self.batch_size)
        for start in range(0, len(self.sources), size):
            sources = self.sources[start : start + size]
            pixel_values = self.processor(sources, pixels=of.pixels, first_index=start)
            yield feeds(of.inputs, pixel_values)

    def pixels_sha256(self) -> str:
        """SHA-256 of all processed images, normalised float32, one after the other."""
        digest = hashlib.sha256()
        for index, source in enumerate(self.sources):
            digest.update(self.processor(source, first_index=index).tobytes())
        return digest.hexdigest()
