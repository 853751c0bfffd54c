"""The request queue as a model: many replays of a rate, computed from the service times of a few measured ones."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from vitdeploy.assess.benchmark.scenarios.arrivals import poisson_arrivals

if TYPE_CHECKING:
    from collections.abc import Sequence

REPLAYS = 300  # modelled; an estimated share of 98 % then has a standard error of 0.8 points
PERCENT = 99
_MOST_QUERIES = 20_000  # modelled of a replay
_MOST_NUMBERS = 2_000_000  # per array, modelled at a time
_DRAWS = 1 << 32  # seeds of modelled replays differ from those of measured ones


def most_late(count: int) -> int:
    """The number of late queries with which the 99th percentile of `count` latencies is still within the bound."""
    return count * (100 - PERCENT) // 100


def latencies_of(arrivals: np.ndarray, services: np.ndarray, sessions: int) -> np.ndarray:
    """Latencies of queries that wait in one queue, first come first served, for the first free session.

    Kiefer and Wolfowitz 1955, doi:10.2307/1992936; with one session Lindley's recursion, doi:10.1017/S0305004100027638.

    Args:
        arrivals: (replays, queries), seconds, ascending.
        services: (replays, queries), seconds.
        sessions: Number of sessions.

    Returns:
        (replays, queries), seconds.
    """
    replays, count = arrivals.shape
    free, rows = np.zeros((replays, sessions)), np.arange(replays)
    latencies = np.empty_like(services)
    for query in range(count):
        first = free.argmin(axis=1)
        done = np.maximum(arrivals[:, query], free[rows, first]) + services[:, query]
        free[rows, first] = done
        latencies[:, query] = done - arrivals[:, query]
    return latencies


@dataclasses.dataclass(frozen=True)
class QueueModel:
    """A queue with the service times of measured runs.

    A modelled replay draws new arrivals, and takes the measured service times in their order from a random position, so
    that slow phases stay together. If the runs differ in their mean, so do replays: each is scaled by a factor from the
    distribution that predicts the mean of a further run, Student's t with the variance of the logarithms.

    Attributes:
        runs: Service times of each run, seconds.
        sessions: Number of sessions.
        bound_s: Bound on the 99th percentile of the latency.
    """

    runs: Sequence[np.ndarray]
    sessions: int
    bound_s: float

    def holds(self, rate: float, count: int) -> float:
        """Share of modelled replays of `count` queries whose 99th percentile is within the bound.

        0 if the sessions cannot keep up with the rate: the queue then grows without end, however short a replay is. Of
        a long replay, 20,000 queries are modelled; as longer ones vary less, the share is then a lower bound.
        """
        count = min(count, _MOST_QUERIES)
        services = np.concatenate(self.runs)
        if rate * services.mean() >= self.sessions:
            return 0.0
        draw = np.random.default_rng(_DRAWS)
        starts, factors = draw.integers(len(services), size=REPLAYS), self._factors(draw)
        held, part = 0, max(_MOST_NUMBERS // count, 1)
        for first in range(0, REPLAYS, part):
            chosen = slice(first, min(first + part, REPLAYS))
            positions = (starts[chosen, None] + np.arange(count)) % len(services)
            arrivals = np.stack([poisson_arrivals(rate, count, _DRAWS + index) for index in range(REPLAYS)[chosen]])
            latencies = latencies_of(arrivals, services[positions] * factors[chosen, None], self.sessions)
            held += int(((latencies > self.bound_s).sum(axis=1) <= most_late(count)).sum())
        return held / REPLAYS

    def _factors(self, draw: np.random.Generator) -> np.ndarray:
        means = np.log([run.mean() for run in self.runs])
        if len(means) < 2:
            return np.ones(REPLAYS)
        spread = means.std(ddof=1) * np.sqrt(1 + 1 / len(means))
        factors: np.ndarray = np.exp(spread * draw.standard_t(len(means) - 1, size=REPLAYS))
        return factors
