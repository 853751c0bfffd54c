"""A clock of tunings: times that the tests choose, instead of processes."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import numpy as np

from vitdeploy.tuning.race.clock import Turn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from vitdeploy.tuning.race.clock import Session
    from vitdeploy.tuning.race.trial import Trial

RUNS = 5


class FakeClock:
    """Runs take the milliseconds that `ms` gives for a trial, with noise; a text is why the trial cannot run.

    Attributes:
        rounds: Session, number and trials of each round.
    """

    def __init__(self, ms: Callable[[Trial], float | str], noise: float = 0.02, seed: int = 0) -> None:
        self._ms, self._noise, self._generator = ms, noise, np.random.default_rng(seed)
        self.rounds: list[tuple[str, int, list[Trial]]] = []

    @contextlib.contextmanager
    def session(self, name: str) -> Iterator[Session]:
        yield _FakeSession(self, name)

    def turn(self, ms: float) -> Turn:
        times = ms * np.exp(self._noise * self._generator.standard_normal(RUNS))
        return Turn(tuple(times.tolist()), tuple((0.8 * times).tolist()))

    def of(self, trial: Trial) -> float | str:
        return self._ms(trial)


class _FakeSession:
    def __init__(self, clock: FakeClock, name: str) -> None:
        self._clock, self._name = clock, name
        self.problems: dict[Trial, str] = {}

    def round(self, number: int, trials: Sequence[Trial]) -> Mapping[Trial, Turn]:
        self._clock.rounds.append((self._name, number, list(trials)))
        turns = {}
        for trial in trials:
            ms = self._clock.of(trial)
            if isinstance(ms, str):
                self.problems[trial] = ms
            else:
                turns[trial] = self._clock.turn(ms)
        return turns
