"""The race and the final, with times that the tests choose."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import pytest
from fake_clock import FakeClock

from vitdeploy.assess.benchmark.capacity import peak_bytes
from vitdeploy.system.cpu import Cpus, ThreadCount
from vitdeploy.system.progress import SILENT
from vitdeploy.tuning.budget import Budget, TimeIsUpError
from vitdeploy.tuning.race import clock as processes
from vitdeploy.tuning.race import trial as module
from vitdeploy.tuning.race.clock import Turn, WorkerClock
from vitdeploy.tuning.race.final import Final, run_final
from vitdeploy.tuning.race.screening import Race
from vitdeploy.tuning.race.trial import Trial, options_to_try, trials_of
from vitdeploy.tuning.request import Target
from vitdeploy.tuning.variant import Variant

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vitdeploy.bundle.bundle import Bundle

LATENCY, THROUGHPUT = Target("latency"), Target("throughput")


@pytest.fixture
def variant(digits: Bundle) -> Variant:
    return Variant.of(digits, digits.manifest.artifacts[0])


def with_threads(variant: Variant, *counts: int) -> list[Trial]:
    return [Trial.of(variant, "onnxruntime", {"intra_op_threads": count}, 1) for count in counts]


def race(trials: Sequence[Trial], clock: FakeClock, target: Target = LATENCY, **settings: Any) -> Race:
    running = Race(trials)
    options: dict[str, Any] = {"goes_on": lambda: True, "seed": 0, "progress": SILENT, "finalists": 1}
    with clock.session("race") as session:
        running.run(session, "race", target, **options | settings)
    return running


def final(trials: Sequence[Trial], clock: FakeClock, target: Target = LATENCY, **settings: Any) -> Final:
    options: dict[str, Any] = {"budget": Budget(60.0), "seed": 0, "progress": SILENT}
    return run_final(clock, trials, target, **options | settings)


def by_threads(times: dict[int, float | str]) -> Callable[[Trial], float | str]:
    return lambda trial: times[trial.setting.options["intra_op_threads"]]


def test_the_slower_ones_are_dropped_and_the_fastest_stays(variant: Variant) -> None:
    trials = with_threads(variant, 1, 2, 3, 4)
    clock = FakeClock(by_threads({1: 10.0, 2: 8.0, 3: 40.0, 4: 12.0}))
    result = race(trials, clock)
    assert result.alive == [trials[1]]
    assert set(result.dropped) == {trials[0], trials[2], trials[3]}
    assert [len(of_round) for _, _, of_round in clock.rounds][:2] == [4, 3]  # the far slower one after one round


def test_equal_settings_stay_until_the_last_round(variant: Variant) -> None:
    trials = with_threads(variant, 1, 2)
    result = race(trials, FakeClock(by_threads({1: 10.0, 2: 10.0})), most_rounds=4)
    assert result.alive == trials
    assert len(result.scores[trials[0]].turns) == 4


def test_a_difference_of_five_percent_is_found(variant: Variant) -> None:
    result = race(with_threads(variant, 1, 2), FakeClock(by_threads({1: 10.0, 2: 10.5}), noise=0.01))
    assert [trial.setting.options["intra_op_threads"] for trial in result.alive] == [1]


def test_what_cannot_run_is_dropped_with_its_reason(variant: Variant) -> None:
    trials = with_threads(variant, 1, 2)
    result = race(trials, FakeClock(by_threads({1: 10.0, 2: "out of memory"})))
    assert result.dropped == {trials[1]: "out of memory"}


def test_the_time_limit_ends_the_race(variant: Variant) -> None:
    clock = FakeClock(by_threads({1: 10.0, 2: 10.0, 3: 10.0}))
    result = race(with_threads(variant, 1, 2, 3), clock, goes_on=lambda: False)
    assert len(clock.rounds) == 1
    assert len(result.alive) == 3


def test_throughput_counts_images(variant: Variant) -> None:
    trials = [Trial.of(variant, "onnxruntime", {}, size) for size in (1, 8)]
    result = race(trials, FakeClock(lambda trial: {1: 10.0, 8: 60.0}[trial.batch_size]), THROUGHPUT)
    assert [trial.batch_size for trial in result.alive] == [8]
    assert result.scores[trials[1]].ms == pytest.approx(60 / 8, rel=0.05)


def test_a_bound_on_the_percentile_excludes_larger_batches(variant: Variant) -> None:
    trials = [Trial.of(variant, "onnxruntime", {}, size) for size in (1, 2, 4, 8)]
    times: dict[int, float] = {1: 10.0, 2: 15.0, 4: 19.8, 8: 30.0}
    clock = FakeClock(lambda trial: times[trial.batch_size])
    target = Target("p99", 20.0)
    running = race(trials, clock, target, finalists=4)
    assert trials[3] in running.dropped
    result = final(running.ranked(), clock, target)
    assert result.winner is trials[1]
    assert "p99" in result.reasons[trials[2]]


def test_the_fastest_wins_the_final(variant: Variant) -> None:
    trials = with_threads(variant, 1, 2, 3)
    result = final(trials, FakeClock(by_threads({1: 10.0, 2: 8.0, 3: 9.0})))
    assert result.winner is result.fastest is trials[1]
    assert set(result.reasons) == {trials[0], trials[2]}
    assert result.sessions == 4


def test_the_simpler_one_of_equals_is_taken(variant: Variant) -> None:
    trials = with_threads(variant, 4, 2)
    result = final(trials, FakeClock(by_threads({4: 9.95, 2: 10.0}), noise=0.05))
    assert result.winner is trials[1]
    assert trials[0] in result.reasons


def test_a_slower_one_is_not_taken_however_wide_the_interval(variant: Variant) -> None:
    trials = with_threads(variant, 4, 2)
    times = {4: itertools.cycle([6.0, 12.0]), 2: itertools.cycle([14.0, 7.0])}
    clock = FakeClock(lambda trial: next(times[trial.setting.options["intra_op_threads"]]), noise=0.0)
    result = final(trials, clock, sessions=2, rounds=2)
    assert result.scores[trials[1]].ratio(result.scores[trials[0]]).low < 1
    assert result.winner is result.fastest is trials[0]


def test_one_that_is_timed_beside_does_not_win(variant: Variant) -> None:
    trials = with_threads(variant, 1, 2)
    result = final(trials, FakeClock(by_threads({1: 10.0, 2: 5.0})), rivals=trials[:1])
    assert result.winner is trials[0]
    assert trials[1] in result.scores


def test_without_a_trial_that_runs_there_is_no_winner(variant: Variant) -> None:
    result = final(with_threads(variant, 1), FakeClock(by_threads({1: "gone"})))
    assert result.winner is None


def test_a_session_that_does_not_fit_is_not_begun(variant: Variant) -> None:
    seconds = iter(range(0, 1000, 4))
    result = final(
        with_threads(variant, 1), FakeClock(by_threads({1: 1.0})), budget=Budget(10.0, lambda: next(seconds))
    )
    assert result.sessions == 1


def test_progress_ends_work_whose_time_is_up() -> None:
    seconds = iter([0.0, 1.0, 6.0])
    limited = Budget(10.0, lambda: next(seconds)).progress(SILENT, 0.5)
    limited.step("in time")
    with pytest.raises(TimeIsUpError):
        limited.advance(1, 2)


def test_every_setting_differs_and_the_defaults_come_first(variant: Variant) -> None:
    options = options_to_try("onnxruntime")
    assert options[0] == {}
    assert len({str(item) for item in options}) == len(options)
    several = options_to_try("onnxruntime", 8)
    assert len(trials_of(variant, "onnxruntime", (1, 8))) == len(options) + len(several)


@pytest.mark.parametrize(
    ("backend", "tried"), [("onnxruntime", {"parallel_runs": 0}), ("openvino", {"hint": "throughput"})]
)
def test_batches_are_also_tried_an_image_at_a_time(
    variant: Variant, backend: str, tried: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "usable_cpus", lambda: Cpus(2, 2, 2))
    monkeypatch.setattr(module, "session_threads", lambda: ThreadCount(2, ""))
    assert tried in options_to_try(backend, 8)
    assert tried not in options_to_try(backend, 1)
    together = [Trial.of(variant, "onnxruntime", options, 8).images_together for options in ({}, {"parallel_runs": 0})]
    assert together == [8, 1]


def test_processes_that_live_at_a_time_fit_into_memory(variant: Variant, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two fit: the third ends the one that waited longest, and one that alone is too large runs alone."""
    started, ended = list[Any](), list[Any]()

    class Process:
        def __init__(self, job: Any, peak_bytes: int) -> None:
            self.job, self.peak_bytes = job, peak_bytes
            started.append(job.setting)

        def time(self, _: Any) -> Turn:
            return Turn((1.0,), (1.0,))

        def close(self) -> None:
            ended.append(self.job.setting)

    monkeypatch.setattr(processes, "_Process", Process)
    first, second, third = trials = with_threads(variant, 1, 2, 3)
    need = peak_bytes(variant.bundle, first.setting)
    monkeypatch.setattr(processes, "usable_bytes", lambda: 2.5 * need)
    with WorkerClock(()).session("race") as session:
        session.round(0, trials)
        assert (started, ended) == ([trial.setting for trial in trials], [first.setting])
        session.round(1, [third, second])
        assert len(started) == 3
    assert ended == [first.setting, third.setting, second.setting]
    monkeypatch.setattr(processes, "usable_bytes", lambda: 0.0)
    with WorkerClock(()).session("race") as session:
        assert len(session.round(0, trials)) == 3
