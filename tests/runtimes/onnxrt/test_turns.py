"""Limit of runs at a time: first come, first served, and nothing is lost on an error or an interrupt."""

from __future__ import annotations

import contextlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pytest
from bundles import make_feeds, tiny_model

from vitdeploy.runtimes.onnxrt.options import OnnxRuntimeOptions
from vitdeploy.runtimes.onnxrt.runtime import OnnxRuntime
from vitdeploy.runtimes.onnxrt.turns import Turns
from vitdeploy.system.cpu import usable_cpus

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class Crowd:
    """The most threads that were in a place at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.now = self.most = 0

    def visit(self) -> None:
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)
        time.sleep(0.002)
        with self._lock:
            self.now -= 1


class Counted:
    """A session that counts its runs at a time."""

    def __init__(self, session: object, crowd: Crowd) -> None:
        self._session, self._crowd = session, crowd

    def __getattr__(self, name: str) -> object:
        found = getattr(self._session, name)
        if name not in ("run", "run_with_iobinding"):
            return found

        def call(*arguments: object) -> object:
            self._crowd.visit()
            return found(*arguments)

        return call


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.001)


@pytest.mark.parametrize("limit", [1, 3])
def test_no_more_threads_than_the_limit_are_inside(limit: int) -> None:
    turns, crowd = Turns(limit), Crowd()

    def work(_: int) -> None:
        with turns.turn():
            crowd.visit()

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, range(40)))
    assert crowd.most == limit


def test_turns_go_in_the_order_of_arrival() -> None:
    turns, order = Turns(1), list[int]()

    def work(number: int) -> None:
        with turns.turn():
            order.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    with turns.turn():
        for count, thread in enumerate(threads, 1):
            thread.start()
            wait_until(lambda count=count: len(turns._order) == count + 1)  # type: ignore[misc]
    with turns.turn():  # behind all of them
        assert order == list(range(6))
    for thread in threads:
        thread.join()


def test_an_error_inside_gives_the_turn_back() -> None:
    turns = Turns(1)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), turns.turn():
            1 / 0  # noqa: B018
    with turns.turn():
        pass


class InterruptedLock:
    """A lock after whose calls a signal can arrive: Python handles it once a call of compiled code has returned."""

    calls_left: ClassVar[int]

    def __init__(self) -> None:
        self._lock = LOCK()
        self.locked = self._lock.locked
        self._interrupt()

    def acquire(self) -> None:
        assert self._lock.acquire(timeout=10), "it waits for a turn that is lost"
        self._interrupt()

    def release(self) -> None:
        self._lock.release()
        self._interrupt()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()

    def _interrupt(self) -> None:
        type(self).calls_left -= 1
        if self.calls_left == 0:
            raise KeyboardInterrupt


LOCK = threading.Lock


@pytest.mark.parametrize("calls", range(1, 12))
def test_an_interrupt_takes_no_turn_wherever_it_arrives(monkeypatch: pytest.MonkeyPatch, calls: int) -> None:
    monkeypatch.setattr(InterruptedLock, "calls_left", 100, raising=False)
    monkeypatch.setattr("vitdeploy.runtimes.onnxrt.turns.threading.Lock", InterruptedLock)
    turns = Turns(1)
    InterruptedLock.calls_left = calls
    interrupted = False
    try:
        with turns.turn():
            pass
    except KeyboardInterrupt:
        interrupted = True
    InterruptedLock.calls_left = 0
    assert interrupted == (calls <= 6)
    for _ in range(2):
        with turns.turn():
            assert len(turns._order) == 1


@pytest.mark.parametrize("has_turn", [False, True])
def test_an_interrupt_of_a_thread_that_waits_takes_no_turn(has_turn: bool) -> None:
    turns = Turns(1)
    with contextlib.ExitStack() as stack:
        stack.enter_context(turns.turn())

        class Interrupted:
            """A lock whose second acquisition is interrupted, before or after it was released."""

            def __init__(self) -> None:
                self._acquired = False

            def acquire(self) -> None:
                if self._acquired:
                    if has_turn:
                        stack.close()
                    raise KeyboardInterrupt
                self._acquired = True

            def locked(self) -> bool:
                return True

            def release(self) -> None:
                pass

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("vitdeploy.runtimes.onnxrt.turns.threading.Lock", Interrupted)
            with pytest.raises(KeyboardInterrupt), turns.turn():
                pass
    with turns.turn():
        assert len(turns._order) == 1


@pytest.mark.parametrize("options", [{}, {"concurrent_runs": 1}, {"concurrent_runs": 3, "io_binding": True}])
@pytest.mark.parametrize("on_device", [False, True])
def test_a_session_runs_no_more_at_a_time(model_file: Path, options: dict[str, Any], on_device: bool) -> None:
    feeds = make_feeds(tiny_model(), 2)
    with OnnxRuntime(model_file, OnnxRuntimeOptions(intra_op_threads=1, **options)) as runtime:
        limit = options.get("concurrent_runs", 2 * usable_cpus().workers)
        assert runtime.details["concurrent_runs"] == limit
        expected, crowd = runtime.run(feeds)["logits"], Crowd()
        runtime._session = Counted(runtime._session, crowd)

        def call(_: int) -> np.ndarray:
            if not on_device:
                return runtime.run(feeds)["logits"]
            results = {"logits": np.empty_like(expected)}
            runtime.run_device(feeds, results)
            return results["logits"]

        callers = 2 * limit + 2
        with ThreadPoolExecutor(callers) as threads:
            found = list(threads.map(call, range(4 * callers)))
    assert crowd.most == limit
    for logits in found:
        np.testing.assert_array_equal(logits, expected)


def test_parallel_runs_raise_the_default_and_single_images_are_limited_with_them(model_file: Path) -> None:
    count = 2 * usable_cpus().workers + 1
    single, crowd = make_feeds(tiny_model(), 1), Crowd()
    with OnnxRuntime(model_file, OnnxRuntimeOptions(parallel_runs=count)) as runtime:
        assert runtime.details["concurrent_runs"] == count
    with OnnxRuntime(model_file, OnnxRuntimeOptions(parallel_runs=2, concurrent_runs=2)) as runtime:
        runtime._session = Counted(runtime._session, crowd)
        with ThreadPoolExecutor(6) as threads:
            list(threads.map(lambda _: runtime.run(single), range(24)))
    assert crowd.most == 2


def test_close_waits_for_the_calls_that_wait_for_a_turn(model_file: Path) -> None:
    feeds = make_feeds(tiny_model(), 1)
    runtime = OnnxRuntime(model_file, OnnxRuntimeOptions(intra_op_threads=1, concurrent_runs=1))
    with ThreadPoolExecutor(3) as threads:
        turns = runtime._turns
        with turns.turn():
            calls = [threads.submit(runtime.run, feeds) for _ in range(2)]
            wait_until(lambda: len(turns._order) == 3)
            closing = threads.submit(runtime.close)
            wait_until(lambda: runtime._closed)
            assert not closing.done()
        for call in calls:
            assert np.isfinite(call.result(10)["logits"]).all()
        closing.result(10)


def test_a_forked_child_does_not_inherit_the_turns_of_threads_that_it_lacks(model_file: Path) -> None:
    with OnnxRuntime(model_file, OnnxRuntimeOptions(intra_op_threads=1, concurrent_runs=1)) as runtime:
        turns = runtime._turns
        with turns.turn():
            runtime._make_locks()
            with runtime._turns.turn():
                pass
