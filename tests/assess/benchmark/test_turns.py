"""Turns of settings, with processes that answer at once."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from raising import raises
from told import Told

from vitdeploy.assess.benchmark import turns
from vitdeploy.assess.benchmark.setting import Load, Setting
from vitdeploy.assess.benchmark.timer import Job, Opened, Round, Usage
from vitdeploy.assess.benchmark.turns import Request, time_settings
from vitdeploy.assess.runs.targets import Selected
from vitdeploy.bundle.bundle import Bundle
from vitdeploy.errors import UsageError

SETTINGS = [Setting(Selected("onnx-fp32", "onnxruntime", "fp32"), threads=threads) for threads in (1, 2, 3, 4)]
LOADS = (Load(1), Load(8))


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Requests to the processes: the threads of the setting, and the request."""
    requests: list[tuple[Any, ...]] = []

    @contextlib.contextmanager
    def worker(job: Job) -> Iterator[Callable[..., Any]]:
        threads = job.setting.threads

        def ask(name: str, *arguments: Any) -> Any:
            requests.append((threads, name, *arguments))
            answers: dict[str, Any] = {
                "open": Opened(5.0, None, {}),
                "first_run": 9.0,
                "warm_up": True,
                "time": Round((float(threads), float(threads)), (2.0,), (1.0,)),
                "usage": Usage(100 + threads, None),
                "pause": None,
            }
            return answers[name]

        requests.append((threads, "start"))
        yield ask
        requests.append((threads, "end"))

    monkeypatch.setattr(turns, "worker", worker)
    return requests


def timed(bundle: Bundle, **options: Any) -> turns.Timed:
    return time_settings(bundle, [Request(setting, LOADS) for setting in SETTINGS], images=(), **options)


def test_every_process_is_started_anew_and_rounds_are_shared(single: Bundle, log: list[tuple[Any, ...]]) -> None:
    steps: list[str] = []
    result = timed(single, processes=3, rounds=7, runs=2, progress=Told(steps.append))
    assert len(result.latencies) == len(SETTINGS) * len(LOADS)
    for latency in result.latencies:
        assert latency.sessions == (0, 0, 0, 1, 1, 2, 2)
        assert (latency.load_ms, latency.first_ms, latency.processing_ms) == (5, 9, 1)
    assert [latency.peak_memory_bytes for latency in result.latencies] == [101, 101, 102, 102, 103, 103, 104, 104]
    assert result.latencies[2].ratio(result.latencies[0]) == pytest.approx((2, 2, 2))
    assert log.count((1, "start")) == log.count((1, "end")) == 3
    assert steps[-1] == "timing, round 7 of 7"


def test_no_setting_always_follows_the_same_one(single: Bundle, log: list[tuple[Any, ...]]) -> None:
    timed(single, processes=1, rounds=12, runs=1)
    order = [threads for threads, name, *_ in log if name == "pause"]
    rounds = [tuple(order[start : start + 4]) for start in range(0, len(order), 4)]
    assert all(sorted(turn) == [1, 2, 3, 4] for turn in rounds)
    assert len({turn.index(1) for turn in rounds}) == 4
    before_1 = {turn[turn.index(1) - 1] for turn in rounds if turn[0] != 1}
    assert before_1 == {2, 3, 4}


def test_groups_that_memory_does_not_hold_together_have_the_base_each(
    single: Bundle, log: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "alive_together", lambda *_: [(0, 1, 2), (0, 3)])
    result = timed(single, processes=2, rounds=2, runs=1)
    by_threads = {latency.name[-1]: latency for latency in result.latencies if latency.batch_size == 1}
    assert [by_threads[name].sessions for name in "1234"] == [(0, 1, 2, 3), (0, 1), (0, 1), (2, 3)]
    assert by_threads["4"].ratio(by_threads["1"]) == pytest.approx((4, 4, 4))
    assert by_threads["4"].ratio(by_threads["2"]).median == pytest.approx(2)
    alive, most = 0, 0
    for _, name, *_ in log:
        alive += {"start": 1, "end": -1}.get(name, 0)
        most = max(most, alive)
    assert (alive, most) == (0, 3)


@pytest.mark.parametrize(
    ("opening_s", "timing_s", "expected"),
    [(1.0, 100.0, 5), (1.0, 20.0, 5), (1.0, 19.0, 4), (1.0, 14.0, 3), (9.0, 1.0, 3)],
)
def test_fewer_processes_are_started_where_starts_take_long(opening_s: float, timing_s: float, expected: int) -> None:
    assert turns._affordable(opening_s, timing_s) == expected


@pytest.mark.usefixtures("log")
@pytest.mark.parametrize(
    ("opening", "expected"), [(5, (0, 0, 1, 1, 2, 2, 3, 3, 4, 4)), (3, (0, 0, 1, 1, 1, 1, 2, 2, 2, 2))]
)
def test_the_number_of_processes_follows_from_the_first(
    single: Bundle, monkeypatch: pytest.MonkeyPatch, opening: int, expected: tuple[int, ...]
) -> None:
    monkeypatch.setattr(turns, "_affordable", lambda *_: opening)
    assert timed(single, rounds=10).latencies[0].sessions == expected
    assert timed(single, rounds=2).latencies[0].sessions == (0, 1)
    assert timed(single, rounds=1).latencies[0].sessions == (0,)


def test_there_is_something_to_time(single: Bundle) -> None:
    with raises(UsageError, what="requests", found=[]):
        time_settings(single, [], images=())
    with raises(UsageError, what="processes", found=0):
        timed(single, processes=0)
