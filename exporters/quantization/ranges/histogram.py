"""Histogram of a tensor's values, independent of their order."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from vitdeploy.exporters.quantization.number_format import Range

BINS = 4096


class Histogram:
    """Counts in `BINS` bins of equal width, symmetric about zero.

    The bins end at a power of two and grow by merging pairs, which doubles their width. So the edges do not depend on
    the first values, the counts do not depend on the order, and memory is bounded. (ONNX Runtime's collectors keep the
    first values' bin width and add bins without a limit, and keep all activations of all images until the result is
    requested.)

    Attributes:
        counts: Number of values in each bin, (BINS,).
        limit: Upper edge of the last bin, a power of two; its negative is the lower edge of the first.
        seen: Smallest and largest value; None before the first.
    """

    def __init__(self) -> None:
        self.counts: NDArray[np.int64] = np.zeros(BINS, np.int64)
        self.limit = 0.0
        self.seen: Range | None = None

    def add(self, values: NDArray[np.float32]) -> None:
        """Count the values of an array of any shape; all must be finite."""
        lowest, highest = float(values.min()), float(values.max())
        seen = self.seen or Range(lowest, highest)
        self.seen = Range(min(seen.lowest, lowest), max(seen.highest, highest))
        limit = max(self.limit, _power_of_two_above(max(-lowest, highest)))
        while self.limit and self.limit < limit:
            self._grow()
        self.limit = limit
        # exact: a power of two times a float32
        places = np.floor(values.reshape(-1) * np.float32(BINS / 2 / limit)).astype(np.intp)
        self.counts += np.bincount(places + BINS // 2, minlength=BINS)

    @property
    def centers(self) -> NDArray[np.float64]:
        """Center of each bin, (BINS,)."""
        width = 2 * self.limit / BINS
        return np.asarray((np.arange(BINS) - BINS // 2 + 0.5) * width)

    def magnitudes(self) -> NDArray[np.int64]:
        """Number of absolute values in each bin from zero up, (BINS / 2,)."""
        return self.counts[BINS // 2 :] + self.counts[: BINS // 2][::-1]

    def _grow(self) -> None:
        pairs = self.counts.reshape(-1, 2).sum(axis=1)
        self.counts = np.zeros(BINS, np.int64)
        self.counts[BINS // 4 : BINS // 4 + len(pairs)] = pairs
        self.limit *= 2


def _power_of_two_above(magnitude: float) -> float:
    """The next larger power of two; 2^-99 for zero."""
    _, exponent = math.frexp(max(magnitude, 2.0**-100))
    return 2.0**exponent
