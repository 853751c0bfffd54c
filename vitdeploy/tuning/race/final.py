"""The final: the few trials that are left, in several sessions of new processes each."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from vitdeploy.tuning.race.scores import Scores

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vitdeploy.system.progress import Progress
    from vitdeploy.tuning.budget import Budget
    from vitdeploy.tuning.race.clock import Clock
    from vitdeploy.tuning.race.trial import Trial
    from vitdeploy.tuning.request import Target

SESSIONS, ROUNDS = 4, 4
TIE = 0.03  # a setting within this fraction of the fastest may be chosen for its simplicity, never a slower one


@dataclasses.dataclass(frozen=True)
class Final:
    """The finalists' scores, and the winner.

    Attributes:
        scores: Scores of each finalist that ran, of the final alone.
        fastest: The fastest trial that meets the target; None if none does.
        winner: That, or a simpler one that is as fast.
        reasons: Why each other one is not the winner.
        sessions: Completed sessions.
    """

    scores: dict[Trial, Scores]
    fastest: Trial | None
    winner: Trial | None
    reasons: dict[Trial, str]
    sessions: int


def run_final(
    clock: Clock,
    trials: Sequence[Trial],
    target: Target,
    *,
    budget: Budget,
    seed: int,
    progress: Progress,
    rivals: Sequence[Trial] | None = None,
    sessions: int = SESSIONS,
    rounds: int = ROUNDS,
) -> Final:
    """Time trials in turns: new processes in each session, another order in each round.

    Where a process's memory lies changes its speed for its whole life, so that a single process of each proves little.

    Args:
        trials: The finalists, and others to time beside them.
        budget: The first session begins in any case, a further one if it fits.
        seed: Seed of the orders.
        rivals: Trials that may win. Default: all.
    """
    generator = np.random.default_rng(seed)
    scores = {trial: Scores(trial.batch_size) for trial in trials}
    reasons: dict[Trial, str] = {}
    done, longest = 0, 0.0
    for number in range(sessions):
        if number and not budget.fits(longest):
            break
        begin = budget.spent_s
        name = f"final {number}"
        with clock.session(name) as session:
            for turn in range(rounds):
                progress.step(f"final, session {number + 1} of {sessions}, round {turn + 1} of {rounds}")
                order = [trials[index] for index in generator.permutation(len(trials)) if trials[index] not in reasons]
                for trial, times in session.round(turn, order).items():
                    scores[trial].add(name, turn, times)
                reasons |= session.problems
        done, longest = done + 1, max(longest, budget.spent_s - begin)
    ran = {trial: score for trial, score in scores.items() if score.turns and trial not in reasons}
    fit = [trial for trial in ran if rivals is None or trial in rivals]
    for trial in fit[:]:
        if target.p99_ms is not None and ran[trial].p99_ms > target.p99_ms:
            fit.remove(trial)
            reasons[trial] = f"its p99 is {ran[trial].p99_ms:.3g} ms, {target.p99_ms:g} ms allowed"
    if not fit:
        return Final(ran, None, None, reasons, done)
    fastest = min(fit, key=lambda trial: ran[trial].interval.estimate)
    ratios = {trial: ran[trial].ratio(ran[fastest]) for trial in fit}
    as_fast = [trial for trial in fit if trial is fastest or _is_tie(*ratios[trial])]
    winner = min(as_fast, key=lambda trial: (trial.complexity, ratios[trial].estimate))
    for trial in fit:
        if trial is fastest and trial is not winner:
            reasons[trial] = f"no faster than {winner}, which is simpler, with confidence"
        elif trial in as_fast and trial is not winner:
            reasons[trial] = f"as fast as {winner}, within the interval, and not simpler"
        elif trial is not winner:
            ratio = ratios[trial]
            reasons[trial] = f"{ratio.estimate:.2f} times ({ratio.low:.2f} to {ratio.high:.2f}) the time of {fastest}"
    return Final(ran, fastest, winner, reasons, done)


def _is_tie(estimate: float, low: float, high: float) -> bool:
    """True for a ratio whose interval contains 1, and that is small whatever its interval."""
    return low <= 1 <= high and estimate <= 1 + TIE
