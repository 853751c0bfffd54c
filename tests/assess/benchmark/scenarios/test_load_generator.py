"""Queries are answered when they are due, first come first served, and timed from their scheduled arrival."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from raising import raises

from vitdeploy.assess.benchmark.scenarios.arrivals import poisson_arrivals
from vitdeploy.assess.benchmark.scenarios.load_generator import Patience, answered
from vitdeploy.assess.benchmark.scenarios.queue_model import latencies_of
from vitdeploy.errors import DeviceError


class Clock:
    """A clock that only sleeping and answering move; sleep takes `oversleep` longer."""

    def __init__(self, oversleep: float = 0.0) -> None:
        self.now, self.oversleep = 100.0, oversleep

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds + self.oversleep


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


def test_one_session_is_the_model_s_queue(threads: ThreadPoolExecutor) -> None:
    services = np.random.default_rng(0).uniform(0.5, 1.5, 200)
    arrivals, clock, order = poisson_arrivals(0.8, 200, 1), Clock(), []

    def answer(query: int) -> None:
        order.append(query)
        clock.now += services[query]

    found = answered(arrivals, [answer], threads, clock=clock, sleep=clock.sleep)
    assert order == list(range(200))
    np.testing.assert_allclose(found.latencies_s, latencies_of(arrivals[None], services[None], 1)[0])
    np.testing.assert_allclose(found.services_s, services)
    assert 0 < len(found.lateness_s) < 200, "of those that found the session free"
    np.testing.assert_allclose(found.lateness_s, 0, atol=1e-9)
    assert not found.stopped


def test_a_late_start_counts(threads: ThreadPoolExecutor) -> None:
    """The latency begins at the scheduled arrival, not when the query is taken."""
    clock = Clock(oversleep=0.25)

    def answer(query: int) -> None:
        clock.now += 3.0 if query == 0 else 1.0

    found = answered(np.array([1.0, 2.0, 10.0]), [answer], threads, clock=clock, sleep=clock.sleep)
    np.testing.assert_allclose(found.latencies_s, [3.25, 3.25, 1.25])
    np.testing.assert_allclose(found.services_s, [3.25, 1.0, 1.25])
    np.testing.assert_allclose(found.lateness_s, [0.25, 0.25])


def test_without_arrivals_queries_follow_one_another(threads: ThreadPoolExecutor) -> None:
    clock = Clock()

    def answer(_: int) -> None:
        clock.now += 2.0

    found = answered(np.zeros(4), [answer], threads, clock=clock, sleep=clock.sleep)
    assert found.services_s.tolist() == [2.0] * 4
    assert found.latencies_s.tolist() == [2.0, 4.0, 6.0, 8.0]


@pytest.mark.parametrize(("limit", "answers"), [(0.0, 4), (6.5, 7), (np.inf, 300)])
def test_a_run_that_misses_its_bound_for_certain_ends(threads: ThreadPoolExecutor, limit: float, answers: int) -> None:
    clock = Clock()

    def answer(_: int) -> None:
        clock.now += 1.0

    patience = Patience(bound_s=0.5, limit_s=limit)  # of 300 queries, three may be late
    found = answered(np.zeros(300), [answer], threads, patience, clock=clock, sleep=clock.sleep)
    assert (len(found.latencies_s), found.stopped) == (answers, answers < 300)


def test_sessions_answer_at_a_time(threads: ThreadPoolExecutor) -> None:
    together = threading.Barrier(2, timeout=30)  # broken if one session answers all

    def answer(_: int) -> None:
        together.wait()

    found = answered(np.zeros(6), [answer, answer], threads)
    assert len(found.latencies_s) == 6


def test_an_error_ends_every_session(threads: ThreadPoolExecutor) -> None:
    calls = []

    def broken(query: int) -> None:
        raise DeviceError("out of memory", what="memory", found=query)

    def well(query: int) -> None:
        calls.append(query)

    with raises(DeviceError, what="memory"):
        answered(np.linspace(0, 0.2, 100), [broken, well], threads)
    assert len(calls) < 100
