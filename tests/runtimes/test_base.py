"""The base of all runtimes, with an engine that the test controls; and how engines are imported."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from forking import LIMIT_S, Outcome, in_child
from raising import raises
from stub_runtime import StubRuntime

from vitdeploy.errors import MissingDependencyError, UnavailableError, UsageError
from vitdeploy.runtimes import BACKENDS, Backend, runtime_class
from vitdeploy.runtimes.options import parse_device
from vitdeploy.specs import TensorSpec

PATIENCE_S = 30.0  # reached only where the test fails
FEEDS = {"x": np.ones(2, np.float32)}


class Slow(StubRuntime):
    """Doubles its input once it may; notes what happens."""

    backend = "slow"
    inputs = outputs = (TensorSpec("x", "float32", ("n",)),)

    def __init__(self) -> None:
        super().__init__()
        self.details = {}
        self.started, self.may_end = threading.Event(), threading.Event()
        self.events: list[str] = []

    def _run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.started.set()
        assert self.may_end.wait(PATIENCE_S)
        self.events.append("ran")
        return {"x": feeds["x"] * 2}

    def _close(self) -> None:
        self.events.append("closed")


def test_closing_waits_for_the_runs_in_progress_and_admits_no_new_one() -> None:
    runtime = Slow()
    with ThreadPoolExecutor(2) as pool:
        running = pool.submit(runtime.run, FEEDS)
        assert runtime.started.wait(PATIENCE_S)
        closing = pool.submit(runtime.close)
        while not runtime._closed:
            assert not closing.done()
        with raises(UsageError, what="runtime", found="closed"):
            runtime.run(FEEDS)
        assert not closing.done()
        runtime.may_end.set()
        closing.result(PATIENCE_S)
        np.testing.assert_array_equal(running.result(PATIENCE_S)["x"], [2, 2])
    runtime.close()
    assert runtime.events == ["ran", "closed"]


def test_a_run_that_fails_does_not_keep_it_open() -> None:
    runtime = Slow()
    with raises(UsageError, what="inputs", found=[]):
        runtime.run({})
    runtime.close()
    assert runtime.events == ["closed"]


class Interrupted(Slow):
    """Runs a signal handler in the middle of its run."""

    def __init__(self, handler: Callable[[], object]) -> None:
        super().__init__()
        self.handler = handler

    def _run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.handler()
        return super()._run(feeds)


def test_a_signal_handler_that_closes_it_in_the_middle_of_a_run_does_not_wait_for_that_run() -> None:
    runtime = Interrupted(lambda: runtime.close())
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(runtime.run, FEEDS)
        assert runtime.started.wait(PATIENCE_S)
        runtime.close()
        assert runtime.events == []
        runtime.may_end.set()
        np.testing.assert_array_equal(running.result(PATIENCE_S)["x"], [2, 2])
    assert runtime.events == ["ran", "closed"]
    with raises(UsageError, what="runtime", found="closed"):
        runtime.run(FEEDS)


def test_an_interrupt_does_not_keep_it_open() -> None:
    class InterruptedLock:
        """A lock after whose release a signal handler raises: the run is counted then, and has not begun."""

        def __init__(self) -> None:
            self.left = 1

        def __enter__(self) -> None:
            pass

        def __exit__(self, *_: object) -> None:
            self.left -= 1
            if not self.left:
                raise KeyboardInterrupt

        def notify_all(self) -> None:
            pass

    runtime = Slow()
    runtime._idle = InterruptedLock()  # type: ignore[assignment]
    with pytest.raises(KeyboardInterrupt):
        runtime.run(FEEDS)
    runtime.close()
    assert runtime.events == ["closed"]


class Threadless(Slow):
    """Works in a forked child."""

    def _lost_in_fork(self) -> None:
        return None


NEEDS_FORK = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@NEEDS_FORK
def test_a_child_leaves_the_engine_to_its_parent() -> None:
    runtime, after_close = Threadless(), Threadless()
    for each in (runtime, after_close):
        each.may_end.set()
    after_close.close()

    def runs_and_closes() -> list[object]:
        ran = runtime.run(FEEDS)["x"].tolist()
        runtime.close()
        after_close.close()
        return [ran, runtime.events, after_close.events]

    assert in_child(runs_and_closes) == Outcome([[2, 2], ["ran"], ["closed"]], 0)
    runtime.close()
    assert runtime.events == ["closed"]


@NEEDS_FORK
@pytest.mark.parametrize("engine", [Slow, Threadless])
def test_a_child_waits_for_no_run_and_no_lock_of_its_parent(engine: type[Slow]) -> None:
    runtime = engine()

    def runs() -> None:
        runtime.run(FEEDS)

    def closes() -> list[str]:
        runtime.close()
        return runtime.events

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(runtime.run, FEEDS)
        assert runtime.started.wait(PATIENCE_S)
        with runtime._idle:
            refused, closed = in_child(runs), in_child(closes)
        nested = in_child(lambda: in_child(runs, limit_s=LIMIT_S / 2).answer)
        runtime.may_end.set()
        np.testing.assert_array_equal(running.result(PATIENCE_S)["x"], [2, 2])
    assert closed == Outcome([], 0)
    for outcome in (refused, nested):
        assert outcome.exit_code == 0
        assert outcome.answer.startswith("UsageError: this slow runtime was opened before the process forked")
        assert ("in the middle of a run" in outcome.answer) == (engine is Threadless)


def test_devices() -> None:
    assert parse_device("cpu") == ("cpu", None)
    assert parse_device("cuda") == ("cuda", None)
    assert parse_device("cuda:12") == ("cuda", 12)


def test_an_unknown_backend_is_answered_with_the_known_ones() -> None:
    with raises(UsageError, what="backend", expected=tuple(BACKENDS), found="tensorflow"):
        runtime_class("tensorflow")


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A module that the table names as a backend's, for the test to write."""
    path = tmp_path / "vitdeploy_test_backend.py"
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(BACKENDS, "broken", Backend(f"{path.stem}:Broken", ("onnx",), "some-extra", "some_engine"))
    monkeypatch.delitem(sys.modules, path.stem, raising=False)
    return path


def test_an_absent_engine_says_what_to_install(broken: Path) -> None:
    broken.write_text("import an_engine_that_is_not_there.part\n")
    with raises(MissingDependencyError, what="the broken backend", extra="some-extra"):
        runtime_class("broken")


@pytest.mark.parametrize(
    "failure", ["ImportError('libengine.so.12: cannot open\\nmore')", "OSError('libengine.so.12: cannot open')"]
)
def test_an_engine_that_does_not_load_is_not_taken_for_an_absent_one(broken: Path, failure: str) -> None:
    broken.write_text(f"raise {failure}\n")
    with raises(UnavailableError) as caught:
        runtime_class("broken")
    assert "some_engine" in str(caught.value)
    assert "libengine.so.12: cannot open" in str(caught.value)


@pytest.mark.parametrize("mistake", ["import vitdeploy.not_a_module", "from vitdeploy.specs import NotThere"])
def test_a_mistake_of_our_own_keeps_its_traceback(broken: Path, mistake: str) -> None:
    broken.write_text(f"{mistake}\n")
    with pytest.raises(ImportError) as caught:
        runtime_class("broken")
    assert not isinstance(caught.value, UnavailableError)


def test_a_runtime_that_takes_arrays_of_numpy_alone_says_so() -> None:
    array = np.ones(2, np.float32)
    with Slow() as runtime, raises(UsageError, what="run_device", hint="call run"):
        runtime.run_device({"x": array}, {"x": array})
