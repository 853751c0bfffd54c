"""Scores of trials: milliseconds an image, from rounds of turns."""

from __future__ import annotations

import dataclasses
import statistics
from typing import TYPE_CHECKING

from vitdeploy.assess.metrics.intervals import Interval, interval_of
from vitdeploy.assess.metrics.order_statistics import Percentile

if TYPE_CHECKING:
    from vitdeploy.tuning.race.clock import Turn
    from vitdeploy.tuning.request import Target


@dataclasses.dataclass
class Scores:
    """The turns of a trial by session, each a list of rounds.

    Attributes:
        batch_size: Images per run.
        sessions: Rounds of each session, by the session's name and the round's number.
    """

    batch_size: int
    sessions: dict[str, dict[int, Turn]] = dataclasses.field(default_factory=dict)

    def add(self, session: str, number: int, turn: Turn) -> None:
        self.sessions.setdefault(session, {})[number] = turn

    @property
    def turns(self) -> list[Turn]:
        return [turn for rounds in self.sessions.values() for turn in rounds.values()]

    @property
    def ms(self) -> float:
        """Milliseconds an image: median of the rounds' medians."""
        return statistics.median(statistics.median(turn.images_ms) for turn in self.turns) / self.batch_size

    @property
    def interval(self) -> Interval:
        """Milliseconds an image, with their interval."""
        estimate, low, high = interval_of([_medians(rounds) for rounds in self.sessions.values()])
        return Interval(*(value / self.batch_size for value in (estimate, low, high)))

    @property
    def ready_ms(self) -> float:
        """The same on preprocessed input."""
        return statistics.median(statistics.median(turn.ready_ms) for turn in self.turns) / self.batch_size

    @property
    def runs(self) -> int:
        return sum(len(turn.images_ms) for turn in self.turns)

    @property
    def p99_ms(self) -> float:
        """99th percentile of a run's time."""
        return self.p99.value_ms

    @property
    def p99(self) -> Percentile:
        return Percentile.of(99, [value for turn in self.turns for value in turn.images_ms])

    def ratio(self, base: Scores) -> Interval:
        """Time an image relative to another trial's, with its interval; see `ratios`."""
        return interval_of(self.ratios(base))

    def ratios(self, base: Scores) -> list[list[float]]:
        """Time an image relative to another trial's in each round in which both took a turn, by session.

        A slow phase of the machine is in both times of such a round.
        """
        factor = base.batch_size / self.batch_size
        paired = [
            [factor * _median(rounds[at]) / _median(others[at]) for at in rounds if at in others]
            for name, rounds in self.sessions.items()
            for others in [base.sessions.get(name, {})]
        ]
        return [ratios for ratios in paired if ratios]

    def too_slow(self, target: Target) -> str | None:
        """Reason why it cannot meet the target's bound on a percentile."""
        if target.p99_ms is None:
            return None
        fastest = statistics.median(min(turn.images_ms) for turn in self.turns)
        return f"even its fastest runs take {fastest:.3g} ms" if fastest > target.p99_ms else None


def _median(turn: Turn) -> float:
    return statistics.median(turn.images_ms)


def _medians(rounds: dict[int, Turn]) -> list[float]:
    return [_median(turn) for turn in rounds.values()]
