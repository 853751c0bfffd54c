"""How often each value of a tensor occurs, whatever the order in which it is seen."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from vitdeploy.exporters.quantization.number_format import Range

BINS = 4096


class Histogram:
    """Counts in `BINS` bins of one width, as many below zero as above.

    The bins reach to a power of two, and grow by pairs: each becomes a half of one that is twice as wide. Their edges
    are so the same numbers however large the first values were, the counts are the same in every order, and memory is
    bounded. (ONNX Runtime's collectors keep the width of what came first and add bins, without a limit, and keep all
    activations of all images until they are asked for the result.)

    Attributes:
        counts: (BINS,) how many values are in each bin.
        limit: Where the last bin ends, and the first begins with its negative; a power of two.
        seen: The smallest and the largest value; None before the first.
    """

    def __init__(self) -> None:
        self.counts: NDArray[np.int64] = np.zeros(BINS, np.int64)
        self.limit = 0.0
        self.seen: Range | None = None

    def add(self, values: NDArray[np.float32]) -> None:
        """Count the values of an array of any shape, all of them finite."""
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
        """(BINS,) the middle of each bin."""
        width = 2 * self.limit / BINS
        return np.asarray((np.arange(BINS) - BINS // 2 + 0.5) * width)

    def magnitudes(self) -> NDArray[np.int64]:
        """(BINS / 2,) how many absolute values are in each bin from zero up."""
        return self.counts[BINS // 2 :] + self.counts[: BINS // 2][::-1]

    def _grow(self) -> None:
        pairs = self.counts.reshape(-1, 2).sum(axis=1)
        self.counts = np.zeros(BINS, np.int64)
        self.counts[BINS // 4 : BINS // 4 + len(pairs)] = pairs
        self.limit *= 2


def _power_of_two_above(magnitude: float) -> float:
    """The smallest power of two above it; 2^-99 for nothing at all."""
    _, exponent = math.frexp(max(magnitude, 2.0**-100))
    return 2.0**exponent
