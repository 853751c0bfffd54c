"""The ranges of a graph's activations on real images."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from vitdeploy.errors import CheckFailedError
from vitdeploy.exporters.onnx_file import write_onnx
from vitdeploy.exporters.quantization.histogram import Histogram
from vitdeploy.exporters.quantization.range_cache import RangeCache
from vitdeploy.exporters.quantization.weights import register
from vitdeploy.manifest import FileRecord

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from vitdeploy.exporters.quantization.methods import Method
    from vitdeploy.exporters.quantization.number_format import NumberFormat, Range
    from vitdeploy.specs import PixelFormat


class Run(Protocol):
    """Runs an ONNX file, which takes pixels of a format, on each image, and gives its outputs, by name."""

    def __call__(self, path: Path, pixels: PixelFormat) -> Iterator[Mapping[str, np.ndarray]]: ...


@dataclasses.dataclass(frozen=True)
class CalibrationData:
    """The images to calibrate on.

    Attributes:
        count: how many.
        sha256: of their bytes, and of what makes pixels of them.
        run: on all of them; see `Run`.
        run_few: on some of them.
        cache: where ranges are kept; None for nowhere.
    """

    count: int
    sha256: str
    run: Run
    run_few: Run
    cache: Path | None = None


def calibrated_ranges(
    model: ir.Model,
    values: Sequence[ir.Value],
    number_format: NumberFormat,
    method: Method,
    data: CalibrationData,
    pixels: PixelFormat,
    folder: Path,
) -> dict[str, Range]:
    """The range of each of `values`, by name.

    Ranges are kept by what they depend on: the graph with its weights, the images, their processor, the method, and the
    version of ONNX Runtime, which runs the graph.
    Memory holds one image's values at a time, and a histogram of each.

    Args:
        model: a graph in float32; it stays as it is.
        values: of it.
        number_format: that they are to have.
        method: how much of a histogram a range holds.
        data: the images.
        pixels: what the graph takes.
        folder: where a copy of the graph may lie meanwhile.

    Raises:
        CheckFailedError: a value is not finite.
        OSError: a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        path = Path(scratch, "calibrated.onnx")
        twin, names = _giving(model, values)
        write_onnx(twin, path)
        files = [FileRecord.of(path.parent, file.name).sha256 for file in sorted(path.parent.iterdir())]
        parts = (*files, data.sha256, str(pixels), repr(method), repr(number_format), ort.__version__)
        cache = None if data.cache is None else RangeCache(data.cache, parts)
        found = None if cache is None else cache.read(names.values())
        if found is None:
            histograms = {name: Histogram() for name in names.values()}
            for outputs in data.run(path, pixels):
                for output, value in outputs.items():
                    _check_finite(value, names[output])
                    histograms[names[output]].add(value)
            found = {name: method.range_of(histogram, number_format) for name, histogram in histograms.items()}
            if cache is not None:
                cache.write(found)
    return found


def largest_by_channel(
    model: ir.Model, values: Sequence[ir.Value], data: CalibrationData, pixels: PixelFormat, folder: Path
) -> dict[str, NDArray[np.float32]]:
    """(C,) the largest magnitude of each channel, the last axis, of each of `values`, by name, on some of the images.

    See `calibrated_ranges` for the arguments. A channel that stands out does so in every image.

    Raises:
        CheckFailedError: a value is not finite.
        OSError: a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, NDArray[np.float32]] = {}
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        path = Path(scratch, "observed.onnx")
        twin, names = _giving(model, values, _magnitudes)
        write_onnx(twin, path)
        for outputs in data.run_few(path, pixels):
            for output, value in outputs.items():
                name = names[output]
                _check_finite(value, name)
                found[name] = np.maximum(found[name], value) if name in found else value
    return found


def _giving(
    model: ir.Model,
    values: Sequence[ir.Value],
    reduced: Callable[[ir.Graph, ir.Value], ir.Value] = lambda _, value: value,
) -> tuple[ir.Model, dict[str, str]]:
    """A copy of `model` whose outputs are these values, or what becomes of them, and what each of its outputs is."""
    twin = model.clone()
    graph = twin.graph
    by_name = {value.name: value for value in (*graph.inputs, *(value for node in graph for value in node.outputs))}
    graph.outputs.clear()
    names = {}
    for index, value in enumerate(dict.fromkeys(values)):
        source = reduced(graph, by_name[value.name])
        node = ir.node("Identity", [source])
        graph.append(node)
        output = node.outputs[0]
        output.name, output.type, output.shape = f"value_{index}", ir.TensorType(ir.DataType.FLOAT), source.shape
        names[output.name] = str(value.name)
        graph.outputs.append(output)
    return twin, names


def _magnitudes(graph: ir.Graph, value: ir.Value) -> ir.Value:
    """The largest magnitude of each channel."""
    if value.shape is None:
        raise TypeError(f"{value} must have a shape")
    axes = register(graph, f"{value.name}_axes", ir.Tensor(np.arange(len(value.shape) - 1)))
    magnitude = ir.node("Abs", [value])
    largest = ir.node("ReduceMax", [magnitude.outputs[0], axes], {"keepdims": 0})
    graph.extend([magnitude, largest])
    largest.outputs[0].shape = ir.Shape([value.shape[-1]])
    for node in (magnitude, largest):
        node.outputs[0].type = value.type
    return largest.outputs[0]


def _check_finite(value: np.ndarray, name: str) -> None:
    if not np.isfinite(value).all():
        raise CheckFailedError(
            f"activations to quantize must be finite, {name} has others on the calibration images; mend the weights"
        )
