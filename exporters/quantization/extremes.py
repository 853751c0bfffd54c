"""The extremes of each channel of activations: one pass over the images, from which ranges and smoothing follow."""

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
from vitdeploy.exporters.onnx_file import write_onnx
from vitdeploy.exporters.quantization.calibration import graph_key, twin_giving
from vitdeploy.exporters.quantization.measurement_cache import MeasurementCache
from vitdeploy.exporters.quantization.number_format import Range
from vitdeploy.exporters.quantization.weights import register

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from numpy.typing import NDArray

    from vitdeploy.exporters.quantization.calibration import MeasuredImages
    from vitdeploy.specs import PixelFormat

_VERSION = "extremes 2"  # of the cache: another one reads nothing of what this one wrote

_COUNT = "number of images"  # beside the names of values


@dataclasses.dataclass(frozen=True, eq=False)
class Extremes:
    """The extremes and the mean of each channel, the last axis; of what a convolution takes, of all channels.

    Attributes:
        lowest: (C,) float32.
        highest: (C,) float32.
        mean: (C,) float32, over images of the mean of an image.
        images: how many.
    """

    lowest: NDArray[np.float32]
    highest: NDArray[np.float32]
    mean: NDArray[np.float32]
    images: int = 1

    @property
    def magnitudes(self) -> NDArray[np.float32]:
        """(C,) the largest magnitude of each channel."""
        return np.maximum(np.abs(self.lowest), np.abs(self.highest))

    def joined(self, other: Extremes) -> Extremes:
        """Of the images of both."""
        images = self.images + other.images
        mean = (self.mean.astype(np.float64) * self.images + other.mean.astype(np.float64) * other.images) / images
        lowest, highest = np.minimum(self.lowest, other.lowest), np.maximum(self.highest, other.highest)
        return Extremes(lowest, highest, mean.astype(np.float32), images)

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
    """The extremes of each of `values`, by name; the graph itself computes them, an image at a time.

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
                if not np.isfinite(value).all():
                    raise CheckFailedError(
                        f"{name} is not finite on the calibration images, so it has no range; check the weights"
                    )
                seen = Extremes(*value)
                found[name] = found[name].joined(seen) if name in found else seen
    if cache is not None:
        cache.write(_packed(found))
    return found


def _extremes(graph: ir.Graph, value: ir.Value) -> ir.Value:
    """(3, C): the lowest, the highest and the mean of each channel."""
    if value.shape is None:
        raise TypeError(f"{value} must have a shape")
    of_products = all(node.op_type == "MatMul" for node, _ in value.uses())
    axes = np.arange(len(value.shape) - (1 if of_products else 0))
    given = register(graph, f"{value.name}_axes", ir.Tensor(axes))
    flat = register(graph, f"{value.name}_flat", ir.Tensor(np.array([1, -1])))
    reduced = [ir.node(name, [value, given], {"keepdims": 0}) for name in ("ReduceMin", "ReduceMax", "ReduceMean")]
    rows = [ir.node("Reshape", [node.outputs[0], flat]) for node in reduced]
    joined = ir.node("Concat", [row.outputs[0] for row in rows], {"axis": 0})
    for node in (*reduced, *rows, joined):
        graph.append(node)
        node.outputs[0].type = value.type
    return joined.outputs[0]


def _packed(found: Mapping[str, Extremes]) -> bytes:
    file = io.BytesIO()
    arrays = {name: np.stack([each.lowest, each.highest, each.mean]) for name, each in found.items()}
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
    return {name: Extremes(lowest, highest, mean, count) for name, (lowest, highest, mean) in rows.items()}
