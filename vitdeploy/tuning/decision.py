"""The contest of the settings that meet the bound: the race, the final, and the rows of the result."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from vitdeploy.assess.benchmark.tuning import TimedSetting
from vitdeploy.assess.metrics.intervals import Interval
from vitdeploy.assess.metrics.pareto import pareto_front
from vitdeploy.predictor import DEFAULT_BATCH_SIZE
from vitdeploy.runtimes.choice import choose
from vitdeploy.tuning.field import PACES, RACE
from vitdeploy.tuning.race.final import SESSIONS, Final, run_final
from vitdeploy.tuning.race.screening import FINALISTS, Race
from vitdeploy.tuning.race.trial import Trial

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vitdeploy.assess.benchmark.tuning import SettingStatus
    from vitdeploy.bundle.bundle import Bundle
    from vitdeploy.system.progress import Progress
    from vitdeploy.tuning.budget import Budget
    from vitdeploy.tuning.field import Entry, Field
    from vitdeploy.tuning.race.clock import Clock, Session
    from vitdeploy.tuning.race.scores import Scores
    from vitdeploy.tuning.request import TuneRequest

ONE = Interval(1.0, 1.0, 1.0)  # the ratio of a time to itself
_OUTSIDE = "not among the fastest of the race"
RACING = 0.75  # share of the time limit after which no further round of the race begins


@dataclasses.dataclass(frozen=True)
class Contest:
    """The outcome.

    Attributes:
        winner: The chosen trial; None if nothing meets the bound and the target.
        timed: Rows of the result, the winner first, then by time.
        usual: The setting that is opened without a choice, as text; None without one that runs.
        gain: Time of the winner relative to it, with its interval.
        notes: What was left out for want of time, or is uncertain.
    """

    winner: Trial | None
    timed: tuple[TimedSetting, ...]
    usual: str | None
    gain: Interval | None
    notes: tuple[str, ...]


def hold_race(field: Field, session: Session, request: TuneRequest, budget: Budget, progress: Progress) -> Race:
    """Race the settings of the entries that meet the bound; without time for that, only their pace is known.

    What was left out is added to the field's notes.
    """
    racing = field.racing()
    if not budget.has(RACING):
        race = Race([entry.trial for entry in racing])
        for entry in racing:
            if entry.pace is not None:
                race.scores[entry.trial] = entry.pace
        if racing:
            field.notes.append("only default options and the smallest batch size were timed: the time limit was near")
        return race
    race = Race([trial for entry in racing for trial in field.trials(entry)])
    if race.alive and not race.run(
        session, RACE, request.target, goes_on=lambda: budget.has(RACING), seed=request.seed, progress=progress,
        first_round=PACES,
    ):  # fmt: skip
        field.notes.append(f"the race ended with {len(race.alive)} settings left, because the time limit was near")
    return race


def hold_final(
    bundle: Bundle, field: Field, race: Race, clock: Clock, request: TuneRequest, budget: Budget, progress: Progress
) -> Contest:
    """Hold a final among the fastest settings of the race, beside the usual one."""
    rows = [_row(entry.trial, entry.pace, "dropped", entry.problem) for entry in field.entries if entry.problem]
    rows += [_row(trial, race.scores[trial], "dropped", reason) for trial, reason in race.dropped.items()]
    ranked = race.ranked()
    rows += [_row(trial, race.scores[trial], "dropped", _OUTSIDE) for trial in ranked[FINALISTS:]]
    finalists = ranked[:FINALISTS]
    if not finalists:
        return Contest(None, tuple(rows), None, None, ())
    usual = _usual_trial(bundle, field.entries, finalists, request)
    beside = [] if usual is None or usual in finalists else [usual]
    accurate = [trial for trial in beside if (found := field.accuracy_of(trial)) is not None and found.met]
    final = run_final(
        clock, [*finalists, *beside], request.target, budget=budget, seed=request.seed, progress=progress,
        rivals=[*finalists, *accurate],
    )  # fmt: skip
    notes = _uncertain(final, field, request)
    if final.sessions < SESSIONS:
        notes.append(f"the final had {final.sessions} of {SESSIONS} sessions, because the time limit was reached")
    for trial in (*finalists, *beside):
        rows = [row for row in rows if not _is_of(row, trial)]
        rows.append(_final_row(trial, final, field))
    gain: Interval | None = None
    if final.winner is not None and usual is not None and usual in final.scores:
        gain = ONE if usual is final.winner else final.scores[final.winner].ratio(final.scores[usual])
    rows.sort(key=lambda row: (row.status != "chosen", row.status != "final", row.ms is None, row.ms or ONE))
    return Contest(final.winner, tuple(rows), None if usual is None else str(usual), gain, tuple(notes))


def _is_of(row: TimedSetting, trial: Trial) -> bool:
    setting = trial.variant.name, trial.backend, trial.setting.all_options, trial.batch_size
    return (row.variant, row.backend, row.options, row.batch_size) == setting


def _usual_trial(
    bundle: Bundle, entries: Sequence[Entry], trials: Sequence[Trial], request: TuneRequest
) -> Trial | None:
    """The setting that `vitdeploy.load` would open without a choice, if it runs here."""
    usual = choose(bundle, None, None)
    size = 1 if request.target.kind == "latency" else min(DEFAULT_BATCH_SIZE, request.max_batch)
    for entry in entries:
        if not entry.variant.is_new and (entry.backend, entry.variant.artifact.precision) == usual[:2]:
            if entry.pace is None:
                return None
            wanted = Trial.of(entry.variant, entry.backend, {}, size)
            return next((trial for trial in trials if trial.identity == wanted.identity), wanted)
    return None


def _uncertain(final: Final, field: Field, request: TuneRequest) -> list[str]:
    """Notes on what the measurements do not prove about the winner."""
    winner, notes = final.winner, list[str]()
    if winner is None:
        return []
    name, artifact, accuracy = winner.variant.name, winner.variant.artifact, field.accuracy_of(winner)
    if accuracy is not None and not accuracy.is_certain:
        notes.append(
            f"{name} meets the bound on {accuracy.images} images, but its 95 % interval reaches below it: {accuracy}; "
            "more images would tell"
        )
    if not winner.variant.is_new and "calibration" in artifact.options:
        notes.append(f"{name} was in the bundle: its calibration may have used the images that measured its accuracy")
    p99, bound = final.scores[winner].p99, request.target.p99_ms
    if bound is not None and (p99.high_ms is None or p99.high_ms > bound):
        notes.append(
            f"the p99 of {p99.value_ms:.3g} ms is of {p99.count} runs, too few to be sure that it is within the bound; "
            "vitdeploy benchmark --scenario server measures it"
        )
    return notes


def _final_row(trial: Trial, final: Final, field: Field) -> TimedSetting:
    scores, fastest = final.scores.get(trial), final.fastest
    status: SettingStatus = "chosen" if trial is final.winner else "final"
    if scores is None:
        status = "not run"
    row = _row(trial, scores, status, final.reasons.get(trial))
    if scores is None or fastest is None:
        return row
    ratio = ONE if trial is fastest else scores.ratio(final.scores[fastest])
    return dataclasses.replace(row, ratio=ratio, front=_on_front(final, field)[trial])


def _on_front(final: Final, field: Field) -> dict[Trial, bool]:
    """Finalists that no other one beats in both time and accuracy."""

    def quality(trial: Trial) -> float:
        accuracy = field.accuracy_of(trial)
        return -1.0 if accuracy is None else accuracy.value

    points = [(scores.ms, quality(trial)) for trial, scores in final.scores.items()]
    return dict(zip(final.scores, pareto_front(points), strict=True))


def _row(trial: Trial, scores: Scores | None, status: SettingStatus, reason: str | None) -> TimedSetting:
    base = TimedSetting(trial.variant.name, trial.backend, trial.setting.all_options, trial.batch_size, status, reason)
    if scores is None or not scores.turns:
        return dataclasses.replace(base, status="not run")
    return dataclasses.replace(
        base,
        ms=scores.interval,
        p99_ms=scores.p99_ms,
        ready_ms=scores.ready_ms,
        runs=scores.runs,
    )
