"""Percentiles of latencies with their confidence, from order statistics; no distribution is assumed."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

CONFIDENCE = 0.95  # of an interval
EARLY_STOPPING = 0.99  # c of MLPerf's early stopping criterion, with d = 0


@dataclasses.dataclass(frozen=True)
class Percentile:
    """A percentile of independent latencies, in milliseconds.

    Attributes:
        percent: 90 for the 90th.
        count: Number of latencies.
        value_ms: The smallest latency that at least this percentage does not exceed.
        low_ms: Lower end of the 95 % interval of the true percentile.
        high_ms: Upper end; None if there are too few latencies.
        early_stopping_ms: MLPerf's early stopping estimate, which the true percentile exceeds with a probability of at
            most 1 %; None if there are too few.
    """

    percent: int
    count: int
    value_ms: float
    low_ms: float
    high_ms: float | None
    early_stopping_ms: float | None

    @classmethod
    def of(cls, percent: int, latencies_ms: Sequence[float]) -> Percentile:
        """The percentile of at least one latency."""
        ordered = np.sort(np.asarray(latencies_ms, np.float64))
        count, share = len(ordered), percent / 100
        # The k-th smallest (from 1) exceeds the percentile if fewer than k latencies are below it, and their number is
        # binomial: David and Nagaraja 2003, Order Statistics, 7.1.
        below = binomial_cdf(count, share)
        half = (1 - CONFIDENCE) / 2
        low = int(np.searchsorted(below, half, side="right"))  # the largest k with P(fewer than k below) <= half
        high = int(np.searchsorted(below, 1 - half)) + 1  # the smallest k with P(fewer than k below) >= 1 - half
        late = allowed_late(count, share)
        return cls(
            percent,
            count,
            value_ms=float(ordered[math.ceil(round(share * count, 9)) - 1]),
            low_ms=float(ordered[max(low, 1) - 1]),
            high_ms=float(ordered[high - 1]) if high <= count else None,
            # As its rules say: discard the t - 1 highest, report the highest of the rest.
            early_stopping_ms=float(ordered[count - late]) if late else None,
        )

    @property
    def needed(self) -> int:
        """The fewest latencies for an early stopping estimate."""
        return queries_needed(self.percent, late=1)

    def to_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "confidence": CONFIDENCE, "needed": self.needed}


def binomial_cdf(count: int, chance: float) -> np.ndarray:
    """P(X <= k) for k from 0 to `count`; 0 < chance < 1."""
    k = np.arange(count + 1)
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, count + 1, dtype=np.float64)))])
    ways = log_factorial[count] - log_factorial - log_factorial[::-1]
    sums: np.ndarray = np.minimum(np.cumsum(np.exp(ways + k * math.log(chance) + (count - k) * math.log1p(-chance))), 1)
    return sums


def allowed_late(count: int, share: float, confidence: float = EARLY_STOPPING) -> int:
    """The largest t such that t of `count` independent queries above a bound show that at least `share` are within it.

    It is the largest t with P(X <= t) <= 1 - confidence, for X binomial with the chance 1 - share: MLPerf Inference
    Rules, appendix "Early Stopping Criterion", with d = 0. 0 also if even no late query shows it.
    """
    return max(int(np.searchsorted(binomial_cdf(count, 1 - share), 1 - confidence, side="right")) - 1, 0)


def queries_needed(percent: int, *, late: int = 0, confidence: float = EARLY_STOPPING) -> int:
    """The fewest queries of which `late` may exceed a percentile's bound while the rest shows that it holds.

    459 for the 99th percentile without a late query, 662 with one; 64 for the 90th with one.
    """
    count = late + 1
    while binomial_cdf(count, 1 - percent / 100)[late] > 1 - confidence:
        count += 1
    return count
