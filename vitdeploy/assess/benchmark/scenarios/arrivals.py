"""Arrival times of queries, drawn before a run so that the load does not depend on the answers; and its answers."""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Answers:
    """Answered queries of a run, in the order of their arrival; fewer than planned if the run was stopped.

    Attributes:
        latencies_s: Seconds from the scheduled arrival to the answer.
        services_s: Seconds that each occupied its session: from its arrival, or from the session's previous answer if
            that is later.
        lateness_s: Seconds from the arrival to the start, of the queries that found a free session: how late this
            machine wakes a sleeping thread.
        stopped: True if the run ended early, because its bound was missed for certain.
    """

    latencies_s: np.ndarray
    services_s: np.ndarray
    lateness_s: np.ndarray
    stopped: bool


def poisson_arrivals(rate: float, count: int, seed: int) -> np.ndarray:
    """Arrival times of a Poisson process: (count,) float64, seconds from the start of the run.

    The same seed gives the same pattern at every rate, so that two rates differ in nothing else.
    """
    gaps: np.ndarray = np.random.default_rng(seed).exponential(size=count)
    return np.cumsum(gaps) / rate
