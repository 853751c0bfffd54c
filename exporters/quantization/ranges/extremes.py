"""Extremes and moments of each activation channel: one pass over the images gives ranges and smoothing."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vitdeploy.exporters.graph.initializers import register
from vitdeploy.exporters.quantization.number_format import Range

_COUNT = "number of images"  # suffixes of value names


@dataclasses.dataclass(frozen=True, eq=False)
class Extremes:
    """Extremes and moments of each channel (last axis); a convolution's input counts as one channel.

    Attributes:
        lowest: Minimum, (C,) float32.
        highest: Maximum, (C,) float32.
        mean: Mean over images of an image's mean, (C,) float32.
        mean_square: Mean over images of an image's mean square, (C,) float32.
        images: Number of images.
    """

    lowest: NDArray[np.float32]
    highest: NDArray[np.float32]
    mean: NDArray[np.float32]
    mean_square: NDArray[np.float32]
    images: int = 1

    @property
    def magnitudes(self) -> NDArray[np.float32]:
        """Geometric mean of each channel's largest magnitude and root mean square, (C,).

        The largest magnitude determines the activation's range, and so its rounding; the root mean square weighs the
        rounding of the weights. It also varies less between sets of images than the largest value.
        """
        largest = np.maximum(np.abs(self.lowest), np.abs(self.highest)).astype(np.float64)
        return np.sqrt(largest * np.sqrt(self.mean_square.astype(np.float64))).astype(np.float32)

    def joined(self, other: Extremes) -> Extremes:
        """Extremes over the images of both."""
        images = self.images + other.images
        lowest, highest = np.minimum(self.lowest, other.lowest), np.maximum(self.highest, other.highest)
        own, others = (np.stack([each.mean, each.mean_square]).astype(np.float64) for each in (self, other))
        mean, mean_square = ((own * self.images + others * other.images) / images).astype(np.float32)
        return Extremes(lowest, highest, mean, mean_square, images)

    def range_of(self, scales: NDArray[np.float32] | None = None, margin: float = 0) -> Range:
        """Range of the activation with each channel divided by scales.

        Args:
            scales: Scales above 0, (C,); None for 1.
            margin: Fraction by which the range exceeds the observed one.
        """
        by = np.float32(1) if scales is None else scales
        low, high = float((self.lowest / by).min()), float((self.highest / by).max())
        return Range(low * (1 + margin), high * (1 + margin))


class ExtremesReducer:
    """Reduces the outputs of a graph with `channel_extremes`, image by image, to one `Extremes`."""

    key = ("extremes 3",)

    def finite(self, value: NDArray[np.float32]) -> bool:
        """True if a value has a range; the square of a finite value may be infinite, and is then not smoothed."""
        return bool(np.isfinite(value[:3]).all())

    def add(self, seen: Extremes | None, value: NDArray[np.float32]) -> Extremes:
        """Add one image's statistics, (4, C)."""
        return Extremes(*value) if seen is None else seen.joined(Extremes(*value))

    def result(self, seen: Extremes) -> Extremes:
        return seen

    def pack(self, results: Mapping[str, Extremes]) -> bytes:
        file = io.BytesIO()
        arrays = {
            name: np.stack([each.lowest, each.highest, each.mean, each.mean_square]) for name, each in results.items()
        }
        arrays |= {_COUNT: np.array([each.images for each in results.values()][:1])}
        np.savez(file, allow_pickle=False, **arrays)
        return file.getvalue()

    def unpack(self, content: bytes) -> dict[str, Extremes]:
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            count = int(arrays[_COUNT][0])
            rows = {name: arrays[name] for name in arrays.files if name != _COUNT}
        return {
            name: Extremes(lowest, highest, mean, mean_square, count)
            for name, (lowest, highest, mean, mean_square) in rows.items()
        }


def channel_extremes(graph: ir.Graph, value: ir.Value) -> ir.Value:
    """Minimum, maximum, mean and mean square of each channel, (4, C); a statistic for `measured_graph`.

    A convolution's input is one channel: (4, 1).
    """
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
