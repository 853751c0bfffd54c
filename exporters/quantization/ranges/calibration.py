"""Ranges of activations by a histogram of all their values."""

from __future__ import annotations

import dataclasses
import itertools
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from vitdeploy.bundle.manifest import FileRecord
from vitdeploy.errors import CheckFailedError
from vitdeploy.exporters.graph.onnx_file import write_onnx
from vitdeploy.exporters.quantization.number_format import Range
from vitdeploy.exporters.quantization.ranges.histogram import Histogram
from vitdeploy.exporters.quantization.ranges.measurement_cache import MeasurementCache

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from vitdeploy.exporters.quantization.number_format import NumberFormat
    from vitdeploy.exporters.quantization.ranges.methods import Method
    from vitdeploy.specs import PixelFormat


class Run(Protocol):
    """Runs an ONNX file, which takes pixels of a format, on each image, and gives its outputs, by name."""

    def __call__(self, path: Path, pixels: PixelFormat) -> Iterator[Mapping[str, np.ndarray]]: ...


@dataclasses.dataclass(frozen=True)
class MeasuredImages:
    """Images that activations are measured on.

    Attributes:
        sha256: of their bytes, and of what makes pixels of them.
        run: see `Run`.
    """

    sha256: str
    run: Run


@dataclasses.dataclass(frozen=True)
class CalibrationData:
    """The images of a calibration.

    Attributes:
        count: how many activations are measured on.
        sha256: of their bytes, and of what makes pixels of them.
        ranges: those that activations are measured on before candidates are compared.
        choice: those that candidates are compared on; activations are measured on them too when that is done.
        cache: where measurements are kept; None for nowhere.
    """

    count: int
    sha256: str
    ranges: MeasuredImages
    choice: MeasuredImages
    cache: Path | None = None

    @property
    def held_out(self) -> bool:
        """Whether there are images to compare candidates on that activations were not measured on."""
        return self.choice != self.ranges

    @property
    def parts(self) -> tuple[MeasuredImages, ...]:
        """All that activations are measured on, each image once."""
        return (self.ranges, self.choice) if self.held_out else (self.ranges,)


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
        twin, names = twin_giving(model, values)
        write_onnx(twin, path)
        images = (part.sha256 for part in data.parts)
        parts = (*graph_key(path), *images, str(pixels), repr(method), repr(number_format), ort.__version__)
        cache = None if data.cache is None else MeasurementCache(data.cache, parts)
        kept = None if cache is None else cache.read()
        if kept is not None:
            return {name: Range(*ends) for name, ends in json.loads(kept).items()}
        histograms = {name: Histogram() for name in names.values()}
        for outputs in itertools.chain.from_iterable(part.run(path, pixels) for part in data.parts):
            for output, value in outputs.items():
                _check_finite(value, names[output])
                histograms[names[output]].add(value)
    found = {name: method.range_of(histogram, number_format) for name, histogram in histograms.items()}
    if cache is not None:
        cache.write(json.dumps({name: dataclasses.astuple(each) for name, each in found.items()}, indent=1).encode())
    return found


def graph_key(path: Path) -> list[str]:
    """The SHA-256 of a graph's file, and of those of its weights, which lie beside it alone."""
    return [FileRecord.of(path.parent, file.name).sha256 for file in sorted(path.parent.iterdir())]


def twin_giving(
    model: ir.Model,
    values: Sequence[ir.Value],
    reduced: Callable[[ir.Graph, ir.Value], ir.Value] = lambda _, value: value,
) -> tuple[ir.Model, dict[str, str]]:
    """A copy of `model` whose outputs are these values, or what becomes of them; and whose value each output is."""
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


def _check_finite(value: np.ndarray, name: str) -> None:
    if not np.isfinite(value).all():
        raise CheckFailedError(
            f"activations to quantize must be finite, {name} has others on the calibration images; mend the weights"
        )
