"""Screening: trials take turns, and those that are slower with confidence are dropped.

It is a race as in F-Race (Birattari et al. 2002, "A racing algorithm for configuring metaheuristics", GECCO): every
trial that is left takes a turn in each round, and is compared with the fastest one in pairs of the same round, here by
the confidence interval of the ratio of their times. Far slower ones are dropped early, as in successive halving
(Jamieson and Talwalkar 2016, arXiv:1502.07943), so that the time goes to those that are close.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vitdeploy.tuning.race.scores import Scores

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vitdeploy.system.progress import Progress
    from vitdeploy.tuning.race.clock import Session
    from vitdeploy.tuning.race.trial import Trial
    from vitdeploy.tuning.request import Target

FINALISTS = 4
MOST_ROUNDS = 8
# One round and two give no useful interval: a trial is dropped if each was slower than the fastest by this factor.
_FAR = (3.0, 1.5)
_FEWEST_ROUNDS = 3  # for an interval


class Race:
    """The trials that are left, and why the others are not.

    Attributes:
        alive: Trials that are left.
        scores: Scores of every trial that ran.
        dropped: Reason for each trial that is not left.
    """

    def __init__(self, trials: Sequence[Trial]) -> None:
        self.alive = list(trials)
        self.scores = {trial: Scores(trial.batch_size) for trial in trials}
        self.dropped: dict[Trial, str] = {}

    def run(
        self,
        session: Session,
        name: str,
        target: Target,
        *,
        goes_on: Callable[[], bool],
        seed: int,
        progress: Progress,
        first_round: int = 0,
        finalists: int = FINALISTS,
        most_rounds: int = MOST_ROUNDS,
    ) -> bool:
        """Run rounds until few trials are left; False if `goes_on` ended it before that.

        Args:
            session: Times the trials.
            name: The session's name.
            first_round: Number of the first round in it.
            goes_on: Asked before each round, except the first.
            seed: Seed of the order of turns.
        """
        generator = np.random.default_rng(seed)
        for number in range(most_rounds):
            if number and len(self.alive) <= finalists:
                return True
            if number and not goes_on():
                return False
            progress.step(f"timing, round {number + 1}: {len(self.alive)} settings are left")
            order = [self.alive[index] for index in generator.permutation(len(self.alive))]
            for trial, turn in session.round(first_round + number, order).items():
                self.scores[trial].add(name, first_round + number, turn)
            for trial, problem in session.problems.items():
                self._drop(trial, problem)
            self._compare(target)
        return True

    def ranked(self) -> list[Trial]:
        """Trials that are left, the fastest first."""
        return sorted(self.alive, key=lambda trial: self.scores[trial].ms)

    def _compare(self, target: Target) -> None:
        """Drop what is slower than the fastest trial that is left."""
        for trial in list(self.alive):
            problem = self.scores[trial].too_slow(target)
            if problem is not None:
                self._drop(trial, problem)
        if not self.alive:
            return
        fastest = self.ranked()[0]
        for trial in self.alive[:]:
            reason = None if trial is fastest else _slower(self.scores[trial], self.scores[fastest])
            if reason is not None:
                self._drop(trial, f"{reason} {fastest}")

    def _drop(self, trial: Trial, reason: str) -> None:
        if trial in self.alive:
            self.alive.remove(trial)
            self.dropped[trial] = reason


def _slower(scores: Scores, fastest: Scores) -> str | None:
    """How much slower a trial is, if that is certain; else None."""
    rounds = len(scores.turns)
    ratio = scores.ratio(fastest)
    if rounds >= _FEWEST_ROUNDS:
        if ratio.low > 1:
            return f"{ratio.estimate:.2f} times ({ratio.low:.2f} to {ratio.high:.2f}) the time of"
        return None
    least = min(value for ratios in scores.ratios(fastest) for value in ratios)
    return f"{ratio.estimate:.2f} times the time of" if least > _FAR[rounds - 1] else None
