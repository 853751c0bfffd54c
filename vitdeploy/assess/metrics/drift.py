"""Trends of times over the rounds of a benchmark."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

_SIGNIFICANT = 2.2  # of a normal deviate: 3 % by chance; with five rounds, every one above the one before
_RELEVANT = 0.02  # of the time
_MOST = 100  # points of a series; of more, medians of neighbours, because all pairs are compared


class Trend(NamedTuple):
    """A trend.

    Attributes:
        deviate: Kendall's statistic, in its standard deviations; positive for a rise.
        change: Relative change from the first to the last round.
    """

    deviate: float
    change: float

    @property
    def is_drift(self) -> bool:
        """True for a change of at least 2 % that is beyond the noise of the rounds."""
        return abs(self.deviate) >= _SIGNIFICANT and abs(self.change) >= _RELEVANT


def trend(series: Sequence[Sequence[float]]) -> Trend:
    """The common trend of several series of positive numbers, each with a level of its own.

    Kendall's test, summed over the series as by Hirsch, Slack and Smith 1982 (doi:10.1029/WR018i001p00107), with a
    correction for continuity; and the median of the slopes of all pairs (Sen 1968, doi:10.1080/01621459.1968.10480934).
    """
    total, variance, slopes = 0.0, 0.0, []
    for values in series:
        logs = np.log(np.asarray(values, np.float64))
        if len(logs) > _MOST:
            logs = np.array([np.median(part) for part in np.array_split(logs, _MOST)])
        count = len(logs)
        first, second = np.triu_indices(count, 1)
        total += float(np.sign(logs[second] - logs[first]).sum())
        variance += count * (count - 1) * (2 * count + 5) / 18
        slopes.append((logs[second] - logs[first]) / (second - first))
    if not variance:
        return Trend(0.0, 0.0)
    deviate = math.copysign(max(abs(total) - 1, 0.0), total) / math.sqrt(variance)
    steps = min(max(len(values) for values in series), _MOST) - 1
    return Trend(deviate, math.expm1(float(np.median(np.concatenate(slopes))) * steps))
