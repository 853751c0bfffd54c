"""Search for the highest rate whose latency bound holds: bracket, bisect, and confirm with other arrivals."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

import numpy as np

from vitdeploy.assess.benchmark.scenarios.arrivals import Answers, poisson_arrivals
from vitdeploy.assess.benchmark.scenarios.options import check_queries
from vitdeploy.assess.benchmark.scenarios.queue_model import QueueModel, most_late
from vitdeploy.system.progress import SILENT, Progress

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# A rate counts as valid if at least this share of its replays hold: then 19 of 20 hold with 94 %.
HOLD = 0.98
RESOLUTION = 1.03  # ratio of the lowest invalid and the highest valid rate at which the search ends
CONFIRMATIONS = 5
MOST_ATTEMPTS = 6
MIN_QUERIES = 459  # the fewest that can show a 99th percentile with a confidence of 99 %: `queries_needed(99)`
_STEP = 1.1
_BOUNDS = 20
_PREDICTED_WITHIN = 1.02
_LOWEST = 1 / 32  # of the capacity
_LARGEST_DROP = 1.25  # per attempt: few runs predict their differences badly
_NEAR = 1.1  # ratio of rates with comparable service times


@dataclasses.dataclass(frozen=True, eq=False)
class Replay:
    """One run at a rate.

    Attributes:
        rate: Queries per second.
        seed: Seed of the arrivals.
        queries: Number of planned queries.
        answers: What was answered.
    """

    rate: float
    seed: int
    queries: int
    answers: Answers

    def late(self, bound_s: float) -> int:
        """Number of answered queries above a bound."""
        return int((self.answers.latencies_s > bound_s).sum())

    def meets(self, bound_s: float) -> bool:
        """True if at most 1 % of the queries exceed the bound."""
        return not self.answers.stopped and self.late(bound_s) <= most_late(self.queries)


@dataclasses.dataclass(frozen=True, eq=False)
class FoundRate:
    """The outcome of a search.

    Attributes:
        rate: Highest confirmed rate; None if there is none.
        invalid_rate: Lowest rate that was measured and is not valid.
        holds: Share of modelled replays at the rate that meet the bound.
        confirmations: The replays that confirmed it.
        replays: All, in their order.
    """

    rate: float | None
    invalid_rate: float | None
    holds: float | None
    confirmations: tuple[Replay, ...]
    replays: tuple[Replay, ...]


class RateSearch:
    """Finds the highest rate at which at most 1 % of the queries exceed a bound, and that holds when replayed.

    1. Bracket: from the rate that the service times at capacity predict, in growing steps, up to an invalid and down to
       a valid rate. A rate is valid if a measured replay meets the bound, and at least 98 % of the replays that are
       modelled from its service times do.
    2. Bisect until the two differ by 3 %.
    3. Confirm: replay the highest valid rate five times with other arrivals, if possible in other processes. It is
       confirmed if all meet the bound, and 98 % of the replays modelled from them, with the differences between the
       runs, do. Else repeat at a lower rate.

    Args:
        replay: Answers queries at given arrival times, seconds.
        confirm: The same for confirmations, such as in a new process. Default: `replay`.
        sessions: Number of sessions that answer.
        bound_s: Bound on the 99th percentile of the latency.
        duration_s: Least duration of a replay; a search takes at least 20 bounds, for queues to build up.
        seed: Seed of the first replay's arrivals.
        progress: Receives a step per replay.
    """

    def __init__(
        self,
        replay: Callable[[np.ndarray], Answers],
        *,
        confirm: Callable[[np.ndarray], Answers] | None = None,
        sessions: int,
        bound_s: float,
        duration_s: float,
        seed: int = 0,
        progress: Progress = SILENT,
    ) -> None:
        self._replay, self._confirm, self._sessions, self._bound_s = replay, confirm or replay, sessions, bound_s
        self._duration_s, self._seed, self._progress = duration_s, seed, progress
        self._invalid: float | None = None
        self._replays: list[Replay] = []

    def replay(self, rate: float, seed: int, *, confirm: bool = False) -> Replay:
        """Measure a rate once."""
        answer = self._confirm if confirm else self._replay
        self._progress.step(f"replaying {rate:.4g} queries a second")
        count = self._count(rate)
        found = Replay(rate, seed, count, answer(poisson_arrivals(rate, count, seed)))
        self._replays.append(found)
        return found

    def find(self, services_s: np.ndarray) -> FoundRate:
        """Search, from service times that were measured at capacity."""
        self._duration_s = max(self._duration_s, _BOUNDS * self._bound_s)
        capacity = self._sessions / float(services_s.mean())
        rate = self._bisected(self._predicted([services_s], capacity), capacity)
        for attempt in range(MOST_ATTEMPTS):
            if rate is None:
                break
            first = self._seed + 1 + attempt * CONFIRMATIONS
            rate, found = self._confirmed(rate, range(first, first + CONFIRMATIONS))
            if found is not None:
                return found
        return FoundRate(None, self._invalid, None, (), tuple(self._replays))

    def _confirmed(self, rate: float, seeds: Sequence[int]) -> tuple[float, FoundRate | None]:
        """The outcome if the rate is confirmed, and else None and a lower rate."""
        confirming = self._confirming(rate, seeds)
        if len(confirming) == CONFIRMATIONS:
            holds = self._model([found.answers.services_s for found in confirming]).holds(rate, self._count(rate))
            if holds >= HOLD:
                return rate, FoundRate(rate, self._invalid, holds, tuple(confirming), tuple(self._replays))
        self._is_invalid(rate)
        near = [
            found.answers.services_s
            for found in self._replays
            if not found.answers.stopped and 1 / _NEAR < found.rate / rate < _NEAR
        ]
        predicted = self._predicted(near, rate) if near else 0.0
        return min(max(predicted, rate / _LARGEST_DROP), rate / RESOLUTION), None

    def _bisected(self, first: float, capacity: float) -> float | None:
        """The highest valid rate within the resolution; None if none was found."""
        low, high, rate, step = None, None, first, _STEP
        while low is None or high is None:
            if self._is_valid(rate):
                low = rate
                rate = rate * step
            else:
                high = rate
                rate = rate / step
                if rate < capacity * _LOWEST:
                    return None
            step = step**1.5
        while high > low * RESOLUTION:
            rate = math.sqrt(low * high)
            low, high = (rate, high) if self._is_valid(rate) else (low, rate)
        return low

    def _is_valid(self, rate: float) -> bool:
        found = self.replay(rate, self._seed)
        valid = (
            found.meets(self._bound_s) and self._model([found.answers.services_s]).holds(rate, found.queries) >= HOLD
        )
        if not valid:
            self._is_invalid(rate)
        return valid

    def _is_invalid(self, rate: float) -> None:
        self._invalid = rate if self._invalid is None else min(rate, self._invalid)

    def _confirming(self, rate: float, seeds: Sequence[int]) -> list[Replay]:
        """Replays that meet the bound; the first that does not ends them."""
        confirming: list[Replay] = []
        for seed in seeds:
            found = self.replay(rate, seed, confirm=True)
            if not found.meets(self._bound_s):
                break
            confirming.append(found)
        return confirming

    def _predicted(self, runs: Sequence[np.ndarray], most: float) -> float:
        """The highest rate up to `most` that the model of these runs calls valid, within 2 %."""
        model, low, high = self._model(runs), most * _LOWEST, most
        while high > low * _PREDICTED_WITHIN:
            middle = math.sqrt(low * high)
            low, high = (middle, high) if model.holds(middle, self._count(middle)) >= HOLD else (low, middle)
        return low

    def _model(self, runs: Sequence[np.ndarray]) -> QueueModel:
        return QueueModel(runs, self._sessions, self._bound_s)

    def _count(self, rate: float) -> int:
        count = max(math.ceil(rate * self._duration_s), MIN_QUERIES)
        check_queries(count)
        return count
