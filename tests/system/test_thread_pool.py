"""The kept threads: order, errors, sizes, callers, and the end."""

from __future__ import annotations

import gc
import os
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
from forking import Outcome, in_child

from vitdeploy.errors import ImageError
from vitdeploy.system.forks import ThreadPool


def names() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("kept")]


def test_results_come_in_order_and_the_threads_stay() -> None:
    pool = ThreadPool("kept")
    assert names() == []
    for _ in range(3):
        assert list(pool.map(pow, range(50), [2] * 50, threads=2)) == [number**2 for number in range(50)]
    assert len(names()) == 2
    pool.close()
    assert names() == []


def test_threads_of_another_size_replace_those_there_were() -> None:
    pool = ThreadPool("kept")
    assert list(pool.map(abs, range(9), threads=3)) == list(range(9))
    former = [thread for thread in threading.enumerate() if thread.name.startswith("kept")]
    assert list(pool.map(abs, [-1, -2], threads=1)) == [1, 2]
    for thread in former:
        thread.join(10)
    assert len(names()) == 1
    pool.close()


def test_a_closed_pool_works_in_the_calling_thread() -> None:
    pool = ThreadPool("kept")
    pool.close()
    pool.close()
    assert set(pool.map(lambda _: threading.get_ident(), range(4), threads=4)) == {threading.get_ident()}
    assert names() == []


def test_an_iterator_that_is_left_waits_for_the_calls_in_progress() -> None:
    pool, ended, may_end = ThreadPool("kept"), [], threading.Event()

    def work(number: int) -> int:
        if number:
            may_end.wait(10)
            ended.append(number)
        return number

    results = pool.map(work, range(100), threads=2)
    assert next(results) == 0
    timer = threading.Timer(0.05, may_end.set)
    timer.start()
    results.close()
    assert ended
    count = len(ended)
    pool.close()
    timer.join()
    assert len(ended) == count < 99


def test_an_error_does_not_keep_itself_and_the_arguments_until_a_garbage_collection() -> None:
    pool, kept = ThreadPool("kept"), list[weakref.ref[ImageError]]()

    def fail(number: int) -> None:
        raise ImageError(f"{number}")

    gc.disable()
    try:
        for count in (1, 4):
            try:
                list(pool.map(fail, range(count), threads=2))
            except ImageError as exc:
                kept.append(weakref.ref(exc))
        pool.close()  # its threads are done
        assert [reference() for reference in kept] == [None] * 2
    finally:
        gc.enable()


def test_callers_share_the_threads_while_another_closes_the_pool() -> None:
    pool = ThreadPool("kept")
    with ThreadPoolExecutor(8) as callers:
        jobs = [callers.submit(lambda size: list(pool.map(abs, range(20), threads=size)), 1 + n % 3) for n in range(99)]
        callers.submit(pool.close)
        assert all(job.result() == list(range(20)) for job in jobs)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_starts_its_own_threads_even_if_the_pool_was_busy() -> None:
    pool, started, may_end = ThreadPool("kept"), threading.Event(), threading.Event()

    def work() -> None:
        started.set()
        may_end.wait()

    caller = threading.Thread(target=lambda: list(pool.map(lambda _: work(), [0] * 4, threads=2)))
    caller.start()
    started.wait()
    try:
        with pool._lock:
            outcome = in_child(lambda: list(pool.map(abs, [-1, -2, -3], threads=2)))
    finally:
        may_end.set()
        caller.join()
        pool.close()
    assert outcome == Outcome([1, 2, 3], 0)
