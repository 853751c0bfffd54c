"""Result of the server scenario: the rate whose latencies stay within the bound."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from vitdeploy.assess.benchmark.scenarios.results import Measured

if TYPE_CHECKING:
    from vitdeploy.assess.benchmark.scenarios.rate_search import Replay

MOST_LATENESS = 0.1  # of the bound: 99th percentile of the lateness of a valid load


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServerResult(Measured):
    """Server: random arrivals.

    Attributes:
        bound_ms: Bound on the 99th percentile of the latency.
        rate: The given rate, or the highest that was confirmed; None if there is none. Queries per second.
        invalid_rate: Lowest rate that was measured and is not valid: the highest valid rate is between the two. None
            for a given rate.
        holds: Share of modelled replays at the rate that meet the bound; see `QueueModel`. None without a rate.
        replays: Measured replays at that rate; without a rate, of the whole search.
        measured: Number of replays of the whole search.
        searched: True if the rate was searched for.
    """

    bound_ms: float
    rate: float | None
    invalid_rate: float | None
    holds: float | None
    replays: tuple[Replay, ...]
    measured: int
    searched: bool

    @property
    def measures(self) -> str:
        """Name of the reported figure."""
        return f"{'highest rate' if self.searched else 'rate'} with p99 within {self.bound_ms:g} ms"

    @property
    def figure(self) -> tuple[str, str]:
        """The rate, and how it held."""
        held = f"the bound held in {self.held} of {len(self.replays)} replays"
        if self.rate is None:
            return "none", held
        limit = "" if self.invalid_rate is None else f"; {self.invalid_rate:.4g} is not valid"
        return f"{self.rate:.4g} queries/s", held + limit

    @property
    def held(self) -> int:
        """Number of replays that meet the bound."""
        return sum(replay.meets(self.bound_ms / 1e3) for replay in self.replays)

    @property
    def latencies_ms(self) -> np.ndarray:
        """Latencies of the replays' queries."""
        return 1e3 * np.concatenate([replay.answers.latencies_s for replay in self.replays])

    @property
    def late_share(self) -> float:
        """Share of the answered queries above the bound."""
        return float((self.latencies_ms > self.bound_ms).mean())

    @property
    def utilization(self) -> float:
        """Share of the sessions' time that queries at the rate need; 0 without a rate."""
        services_s = np.concatenate([replay.answers.services_s for replay in self.replays])
        return (self.rate or 0.0) * float(services_s.mean()) / self.sessions

    @property
    def lateness_ms(self) -> float:
        """99th percentile of the time by which a query that found a free session began after its arrival."""
        late = np.concatenate([replay.answers.lateness_s for replay in self.replays])
        return 1e3 * float(np.percentile(late, 99)) if len(late) else 0.0

    def percentile_ms(self, percent: float) -> float:
        """Percentile of the latencies of answered queries: the smallest that this share does not exceed."""
        return float(np.percentile(self.latencies_ms, percent, method="inverted_cdf"))

    @property
    def status(self) -> str:
        """Outcome: "failed" if the bound is missed or the queue grows without end, "skipped" if the load was late."""
        if self.rate is None or self.held < len(self.replays) or self.utilization >= 1:
            return "failed"
        return "skipped" if self.lateness_ms > MOST_LATENESS * self.bound_ms else "passed"

    @property
    def reason(self) -> str:
        """Why it did not pass; else empty."""
        if self.status == "passed":
            return ""
        if self.status == "skipped":
            return (
                f"the load was late: threads woke up {self.lateness_ms:.2f} ms after an arrival (99th percentile), "
                f"at most {MOST_LATENESS:.0%} of the bound of {self.bound_ms:g} ms is allowed; free this machine of "
                f"other work"
            )
        if self.rate is None:
            return f"no rate was found whose 99th percentile stays within {self.bound_ms:g} ms when it is replayed"
        if self.held == len(self.replays):
            return (
                f"{self.rate:g} queries/s are {self.utilization:.2f} times what the sessions can answer: the queue "
                f"grows without end, and a longer run would miss {self.bound_ms:g} ms"
            )
        ended = ", stopped early" if any(replay.answers.stopped for replay in self.replays) else ""
        return (
            f"at {self.rate:g} queries/s the 99th percentile exceeds {self.bound_ms:g} ms: {self.late_share:.1%} of "
            f"the queries were late{ended}, 1% allowed"
        )

    def _figures(self) -> dict[str, Any]:
        return {
            "queries_per_second": self.rate,
            "invalid_queries_per_second": self.invalid_rate,
            "bound_ms": self.bound_ms,
            **{f"p{percent}_ms": self.percentile_ms(percent) for percent in (50, 90, 99)},
            "late_share": self.late_share,
            "modelled_replays_that_hold": self.holds,
            "replays": len(self.replays),
            "replays_that_hold": self.held,
            "replays_measured": self.measured,
            "queries": len(self.latencies_ms),
            "lateness_p99_ms": self.lateness_ms,
            "searched": self.searched,
        }
