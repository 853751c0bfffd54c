"""Calibration methods: min-max, percentile, entropy, MSE. A wider range is a coarser one."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from vitdeploy.errors import CheckFailedError
from vitdeploy.exporters.quantization.number_format import NumberFormat, Range
from vitdeploy.exporters.quantization.ranges.histogram import Histogram


@dataclasses.dataclass(frozen=True)
class MinMax:
    """The full observed range."""

    name = "minmax"

    def range_of(self, histogram: Histogram, number_format: NumberFormat) -> Range:  # noqa: ARG002
        return _seen(histogram)


@dataclasses.dataclass(frozen=True)
class Percentile:
    """The range without the lowest and highest values, equally many of each.

    Attributes:
        kept: Percentage of values within the range.
    """

    name = "percentile"
    kept: float = 99.999

    def range_of(self, histogram: Histogram, number_format: NumberFormat) -> Range:  # noqa: ARG002
        """Range up to the outer edges of the bins with the last values to keep."""
        seen, below = _seen(histogram), np.cumsum(histogram.counts)
        cut = below[-1] * (100 - self.kept) / 200
        first = int(np.searchsorted(below, cut, side="right"))
        last = int(np.searchsorted(below, below[-1] - cut, side="left"))
        half = histogram.centers[1] - histogram.centers[0]
        low, high = histogram.centers[first] - half / 2, histogram.centers[last] + half / 2
        return Range(max(seen.lowest, float(low)), min(seen.highest, float(high)))


@dataclasses.dataclass(frozen=True)
class Mse:
    """The symmetric cut-off with the smallest mean squared error of the represented values.

    Attributes:
        candidates: Number of evenly spaced cut-offs to try, up to the largest magnitude.
    """

    name = "mse"
    candidates: int = 128

    def range_of(self, histogram: Histogram, number_format: NumberFormat) -> Range:
        values, counts = _occupied(histogram)

        def error(candidate: Range) -> float:
            return float((np.square(number_format.rounded(values, candidate) - values) * counts).sum())

        return min(_cut_offs(histogram, self.candidates), key=error)


@dataclasses.dataclass(frozen=True)
class Entropy:
    """The cut-off whose 128 levels lose the least information, by Kullback-Leibler divergence.

    The rule of TensorRT's calibrator: Migacz 2017, "8-bit Inference with TensorRT", NVIDIA GTC S7310.

    Attributes:
        levels: Number of magnitude levels in the quantized distribution.
        step: Step between the bins to try as the last one.
    """

    name = "entropy"
    levels: int = 128
    step: int = 8

    def range_of(self, histogram: Histogram, number_format: NumberFormat) -> Range:  # noqa: ARG002
        seen, counts = _seen(histogram), histogram.magnitudes()
        last = int(np.flatnonzero(counts)[-1]) + 1
        width = histogram.limit / len(counts)
        ends = range(min(self.levels, last), last + self.step, self.step)
        end = min(ends, key=lambda end: _divergence(counts, min(end, last), self.levels))
        return _cut(seen, width * min(end, last))


Method = MinMax | Percentile | Mse | Entropy
METHODS: dict[str, Method] = {method.name: method for method in (MinMax(), Entropy(), Percentile(), Mse())}


@dataclasses.dataclass(frozen=True)
class HistogramReducer:
    """Reduces activations, image by image, to their ranges. Memory holds one image's values and the histograms.

    Attributes:
        number_format: Number format of the activations.
    """

    method: Method
    number_format: NumberFormat

    @property
    def key(self) -> tuple[str, ...]:
        return repr(self.method), repr(self.number_format)

    def finite(self, value: NDArray[np.float32]) -> bool:
        return bool(np.isfinite(value).all())

    def add(self, seen: Histogram | None, value: NDArray[np.float32]) -> Histogram:
        histogram = Histogram() if seen is None else seen
        histogram.add(value)
        return histogram

    def result(self, seen: Histogram) -> Range:
        return self.method.range_of(seen, self.number_format)

    def pack(self, results: Mapping[str, Range]) -> bytes:
        return json.dumps({name: dataclasses.astuple(counts) for name, counts in results.items()}, indent=1).encode()

    def unpack(self, content: bytes) -> dict[str, Range]:
        return {name: Range(*ends) for name, ends in json.loads(content).items()}


def _divergence(counts: NDArray[np.int64], end: int, levels: int) -> float:
    """Kullback-Leibler divergence between the distribution in `levels` levels and the one cut off at a bin."""
    kept = counts[:end].astype(np.float64)
    wanted = kept.copy()
    wanted[-1] += counts[end:].sum()
    starts = np.unique(np.arange(min(levels, end)) * end // min(levels, end))
    occupied = np.add.reduceat((kept > 0).astype(np.float64), starts)
    mean = np.divide(np.add.reduceat(kept, starts), occupied, out=np.zeros(len(starts)), where=occupied > 0)
    got = np.repeat(mean, np.diff(np.append(starts, end))) * (kept > 0)
    both = (wanted > 0) & (got > 0)
    missed = wanted[(wanted > 0) & (got == 0)].sum() / wanted.sum()
    if not got.sum() or missed > 0:
        return float("inf")
    p, q = wanted[both] / wanted.sum(), got[both] / got.sum()
    return float((p * np.log(p / q)).sum())


def _cut_offs(histogram: Histogram, count: int) -> list[Range]:
    """The widest first, so that it wins ties."""
    seen = _seen(histogram)
    return [_cut(seen, seen.magnitude * index / count) for index in range(count, 0, -1)]


def _cut(seen: Range, magnitude: float) -> Range:
    return Range(max(seen.lowest, -magnitude), min(seen.highest, magnitude))


def _occupied(histogram: Histogram) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Values of the non-empty bins, and their counts."""
    used = np.flatnonzero(histogram.counts)
    seen = _seen(histogram)
    return np.clip(histogram.centers[used], seen.lowest, seen.highest), histogram.counts[used]


def _seen(histogram: Histogram) -> Range:
    if histogram.seen is None:
        raise CheckFailedError("no values were seen to choose a range from", what="calibration_data")
    return histogram.seen
