"""Extremes and moments of each channel of activations: one pass over the images gives ranges and smoothing."""

from __future__ import annotations

import dataclasses
import io
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from vitdeploy.errors import CheckFailedError
from vitdeploy.exporters.graph.onnx_file import write_onnx
from vitdeploy.exporters.quantization.number_format import Range
from vitdeploy.exporters.quantization.ranges.calibration import graph_key, twin_giving
from vitdeploy.exporters.quantization.ranges.measurement_cache import MeasurementCache
from vitdeploy.exporters.quantization.weights import register

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from numpy.typing import NDArray

    from vitdeploy.exporters.quantization.ranges.calibration import MeasuredImages
    from vitdeploy.specs import PixelFormat

_VERSION = "extremes 3"  # of the cache: another one reads nothing of what this one wrote

_COUNT = "number of images"  # beside the names of values


@dataclasses.dataclass(frozen=True, eq=False)
class Extremes:
    """Extremes and moments of each channel, the last axis; the input of a convolution counts as one channel.

    Attributes:
        lowest: (C,) float32.
        highest: (C,) float32.
        mean: (C,) float32, over images of the mean of an image.
        mean_square: (C,) float32, over images of the mean square of an image.
        images: how many.
    """

    lowest: NDArray[np.float32]
    highest: NDArray[np.float32]
    mean: NDArray[np.float32]
    mean_square: NDArray[np.float32]
    images: int = 1

    @property
    def magnitudes(self) -> NDArray[np.float32]:
        """(C,) the geometric mean of each channel's largest magnitude and its root mean square.

        The largest magnitude sets the range, and so the rounding of the activation; the root mean square weighs the
        rounding of the weights. It also changes less from one set of images to another than the largest value does.
        """
        largest = np.maximum(np.abs(self.lowest), np.abs(self.highest)).astype(np.float64)
        return np.sqrt(largest * np.sqrt(self.mean_square.astype(np.float64))).astype(np.float32)

    def joined(self, other: Extremes) -> Extremes:
        """Of the images of both."""
        images = self.images + other.images

        def mean(own: NDArray[np.float32], others: NDArray[np.float32]) -> NDArray[np.float32]:
            total = own.astype(np.float64) * self.images + others.astype(np.float64) * other.images
            return np.asarray(total / images, np.float32)

        lowest, highest = np.minimum(self.lowest, other.lowest), np.maximum(self.highest, other.highest)
        means = mean(self.mean, other.mean), mean(self.mean_square, other.mean_square)
        return Extremes(lowest, highest, *means, images)

    def range_of(self, scales: NDArray[np.float32] | None = None, margin: float = 0) -> Range:
        """The range of the activation when each channel is divided by (C,) scales.

        Args:
            scales: above 0; None for 1.
            margin: how much wider than what was seen, as a share of it.
        """
        by = np.float32(1) if scales is None else scales
        low, high = float((self.lowest / by).min()), float((self.highest / by).max())
        return Range(low * (1 + margin), high * (1 + margin))


def channel_extremes(
    model: ir.Model,
    values: Sequence[ir.Value],
    images: MeasuredImages,
    cached: Path | None,
    pixels: PixelFormat,
    folder: Path,
) -> dict[str, Extremes]:
    """The extremes and moments of each of `values`, by name; the graph itself computes them, an image at a time.

    Args:
        model: a graph in float32; it stays as it is.
        values: of it, (batch, ..., C); what a convolution takes is reduced to one channel.
        images: to measure on.
        cached: a folder where measurements are kept; None for nowhere.
        pixels: what the graph takes.
        folder: where a copy of the graph may lie meanwhile.

    Raises:
        CheckFailedError: a value is not finite.
        OSError: a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        path = Path(scratch, "observed.onnx")
        twin, names = twin_giving(model, values, _extremes)
        write_onnx(twin, path)
        parts = (_VERSION, *graph_key(path), images.sha256, str(pixels), ort.__version__)
        cache = None if cached is None else MeasurementCache(cached, parts)
        kept = None if cache is None else _read(cache, set(names.values()))
        if kept is not None:
            return kept
        found: dict[str, Extremes] = {}
        for outputs in images.run(path, pixels):
            for output, value in outputs.items():
                name = names[output]
                if not np.isfinite(value[:3]).all():  # the square of a finite value may not be; it is not smoothed
                    raise CheckFailedError(
                        f"{name} is not finite on the calibration images, so it has no range; check the weights"
                    )
                seen = Extremes(*value)
                found[name] = found[name].joined(seen) if name in found else seen
    if cache is not None:
        cache.write(_packed(found))
    return found


def _extremes(graph: ir.Graph, value: ir.Value) -> ir.Value:
    """(4, C): the lowest, the highest, the mean and the mean square of each channel."""
    if value.shape is None:
        raise TypeError(f"{value} must have a shape")
    of_products = all(node.op_type == "MatMul" for node, _ in value.uses())
    axes = np.arange(len(value.shape) - (1 if of_products else 0))
    given = register(graph, f"{value.name}_axes", ir.Tensor(axes))
    flat = register(graph, f"{value.name}_flat", ir.Tensor(np.array([1, -1])))
    square = ir.node("Mul", [value, value])
    sources = {"ReduceMin": (value,), "ReduceMax": (value,), "ReduceMean": (value, square.outputs[0])}
    reduced = [ir.node(name, [source, given], {"keepdims": 0}) for name, taken in sources.items() for source in taken]
    rows = [ir.node("Reshape", [node.outputs[0], flat]) for node in reduced]
    joined = ir.node("Concat", [row.outputs[0] for row in rows], {"axis": 0})
    for node in (square, *reduced, *rows, joined):
        graph.append(node)
        node.outputs[0].type = value.type
    return joined.outputs[0]


def _packed(found: Mapping[str, Extremes]) -> bytes:
    file = io.BytesIO()
    arrays = {name: np.stack([each.lowest, each.highest, each.mean, each.mean_square]) for name, each in found.items()}
    arrays |= {_COUNT: np.array([each.images for each in found.values()][:1])}
    np.savez(file, allow_pickle=False, **arrays)
    return file.getvalue()


def _read(cache: MeasurementCache, names: Collection[str]) -> dict[str, Extremes] | None:
    content = cache.read()
    if content is None:
        return None
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        count = int(arrays[_COUNT][0])
        rows = {name: arrays[name] for name in names}
    return {
        name: Extremes(lowest, highest, mean, mean_square, count)
        for name, (lowest, highest, mean, mean_square) in rows.items()
    }
