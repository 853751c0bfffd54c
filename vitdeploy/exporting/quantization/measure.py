"""Run graphs on images, and reduce their outputs."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

from vitdeploy.assess.data.images import feeds
from vitdeploy.bundle.manifest import FileRecord
from vitdeploy.errors import CheckFailedError
from vitdeploy.exporting.quantization.measurement_cache import MeasurementCache

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from vitdeploy.exporters.graph.measured_graph import MeasuredGraph
    from vitdeploy.exporting.validation import Sample
    from vitdeploy.specs import PixelFormat

R = TypeVar("R")


class Images(Protocol):
    """Images that a graph can run on."""

    def sha256(self) -> str:
        """Hash of the image files and of the preprocessing."""

    def run(self, path: Path, pixels: PixelFormat) -> Iterator[Mapping[str, np.ndarray]]:
        """Run an ONNX file with inputs of this format on each image; yield the outputs by name."""


class Reducer(Protocol[R]):
    """Reduces each output, image by image, to one result.

    Attributes:
        key: Identifies the reduction; with graph and images, it determines the results.
    """

    @property
    def key(self) -> tuple[str, ...]: ...

    def finite(self, value: NDArray[np.float32]) -> bool: ...
    def add(self, seen: Any, value: NDArray[np.float32]) -> Any: ...
    def result(self, seen: Any) -> R: ...
    def pack(self, results: Mapping[str, R]) -> bytes: ...
    def unpack(self, content: bytes) -> dict[str, R]: ...


def measure(
    graph: MeasuredGraph,
    parts: Sequence[Images],
    reducer: Reducer[R],
    pixels: PixelFormat,
    cache: Path | None,
    folder: Path,
) -> dict[str, R]:
    """Run a graph on images, one by one, and reduce each output.

    The cache key has everything that results depend on: the graph with its weights, the images, their processor, the
    reducer, and the version of ONNX Runtime, which runs the graph.

    Args:
        graph: A copy of a float32 graph.
        pixels: Input format of the graph.
        cache: Folder of cached results; None for no cache.
        folder: Temporary folder for the graph's file.

    Returns:
        The results by value name.

    Raises:
        CheckFailedError: If a value is not finite.
        OSError: If a file cannot be written.
    """
    import onnxruntime as ort

    from vitdeploy.exporters.graph.onnx_file import write_onnx

    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        path = Path(scratch, "measured.onnx")
        write_onnx(graph.model, path)
        kept = None
        if cache is not None:
            files = [FileRecord.of(path.parent, file.name).sha256 for file in sorted(path.parent.iterdir())]
            images = [part.sha256() for part in parts]
            kept = MeasurementCache(cache, (*reducer.key, *files, *images, str(pixels), ort.__version__))
            content = kept.read()
            if content is not None:
                return reducer.unpack(content)
        seen: dict[str, Any] = {}
        for part in parts:
            for outputs in part.run(path, pixels):
                for output, value in outputs.items():
                    name = graph.names[output]
                    if not reducer.finite(value):
                        raise CheckFailedError(
                            f"{name} is not finite on the calibration images, so it has no range",
                            what=name, hint="check the weights",
                        )  # fmt: skip
                    seen[name] = reducer.add(seen.get(name), value)
    results = {name: reducer.result(statistics) for name, statistics in seen.items()}
    if kept is not None:
        kept.write(reducer.pack(results))
    return results


def observe(graph: MeasuredGraph, samples: Iterable[Sample], pixels: PixelFormat, folder: Path) -> dict[str, float]:
    """The largest magnitude of each value on samples, by name; infinite for a non-finite value.

    Args:
        graph: A graph whose outputs are magnitudes of values.
        pixels: Input format of the graph.
        folder: Temporary folder for the graph's file.
    """
    from vitdeploy.exporters.graph.onnx_file import write_onnx
    from vitdeploy.runtimes.onnxrt.runtime import OnnxRuntime

    folder.mkdir(parents=True, exist_ok=True)
    largest = dict.fromkeys(graph.names.values(), 0.0)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        path = Path(scratch, "observed.onnx")
        write_onnx(graph.model, path)
        with OnnxRuntime(path) as runtime:
            for sample in samples:
                for image in sample.pixel_values(pixels):  # one by one: large images take much memory
                    for output, value in runtime.run(feeds(runtime.inputs, image[None])).items():
                        seen = float(value) if np.isfinite(value) else np.inf
                        largest[graph.names[output]] = max(largest[graph.names[output]], seen)
    return largest
