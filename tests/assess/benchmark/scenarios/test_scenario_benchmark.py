"""Each scenario on the embedded model, in a process; and no process that outlives a run."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from raising import raises
from told import Told

import vitdeploy
from vitdeploy.assess.benchmark.scenarios import rate_search
from vitdeploy.assess.benchmark.scenarios.load_generator import LoadGenerator
from vitdeploy.assess.benchmark.scenarios.options import Scenario
from vitdeploy.assess.benchmark.scenarios.results import OfflineResult, StreamResult
from vitdeploy.assess.benchmark.scenarios.scenario_benchmark import _Measurement
from vitdeploy.assess.benchmark.scenarios.server_result import ServerResult
from vitdeploy.assess.benchmark.worker import worker
from vitdeploy.assets import held_out_images
from vitdeploy.bundle.bundle import Bundle
from vitdeploy.errors import InputError, UsageError

ONNX: dict[str, Any] = {"backends": ["onnxruntime"], "threads": 1, "images": held_out_images()}


@pytest.fixture(autouse=True)
def no_process_is_left() -> Iterator[None]:
    yield
    assert multiprocessing.active_children() == []


def test_streams(digits: Bundle) -> None:
    steps: list[str] = []
    found = vitdeploy.benchmark_scenario(
        digits.path, Scenario("multi-stream", duration_s=0.3), batch_sizes=(1, 4), progress=Told(steps.append), **ONNX
    )
    assert found.status == "passed"
    for size, result in zip((1, 4), found.results, strict=True):
        assert isinstance(result, StreamResult)
        assert (result.backend, result.batch_size, result.changes) == ("onnxruntime", size, "threads=1")
        assert result.percentile.percent == 99
        assert result.percentile.count >= 64
        assert 0 < result.median_ms <= result.percentile.value_ms < 1e4
        assert result.details["intra_op_threads"] == 1
    assert steps[0].startswith("opening onnx-fp32")
    (single,) = vitdeploy.benchmark_scenario(digits.path, Scenario("single-stream", duration_s=0.1), **ONNX).results
    assert isinstance(single, StreamResult)
    assert single.percentile.percent == 90


def test_a_run_is_as_long_as_requested_after_a_slow_warm_up(digits: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_Measurement, "_warmed_up", lambda *_: 1.0)  # seconds a query
    scenario = Scenario("offline", duration_s=0.2)
    (result,) = vitdeploy.benchmark_scenario(digits.path, scenario, batch_sizes=(1,), **ONNX).results
    assert isinstance(result, OfflineResult)
    assert result.seconds >= 0.2


def test_a_run_of_too_many_queries_is_refused(digits: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_Measurement, "_warmed_up", lambda *_: 1e-6)
    found = vitdeploy.benchmark_scenario(digits.path, Scenario("offline", duration_s=60), **ONNX)
    assert (found.status, found.results) == ("skipped", ())
    assert "60,000,000 queries" in found.skipped[0].reason


def test_offline_with_sessions(digits: Bundle) -> None:
    scenario = Scenario("offline", duration_s=0.3, sessions=2)
    (result,) = vitdeploy.benchmark_scenario(digits.path, scenario, batch_sizes=(4,), **ONNX).results
    assert isinstance(result, OfflineResult)
    assert result.images % 8 == 0
    assert result.images_per_second == pytest.approx(result.images / result.seconds)
    assert 0.01 < result.seconds < 60


def test_a_rate_is_replayed(digits: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate_search, "MIN_QUERIES", 40)
    (result,) = vitdeploy.benchmark_scenario(
        digits.path, Scenario("server", p99_ms=9e3, rate=20.0, duration_s=0.1), **ONNX
    ).results
    assert isinstance(result, ServerResult)
    assert (result.status, result.held, result.measured, result.searched) == ("passed", 1, 1, False)
    assert (result.replays[0].queries, len(result.latencies_ms)) == (40, 40)
    assert result.percentile_ms(50) <= result.percentile_ms(99) <= 9e3


def test_a_rate_that_is_too_high_fails(digits: Bundle) -> None:
    (result,) = vitdeploy.benchmark_scenario(
        digits.path, Scenario("server", p99_ms=0.01, rate=1e5, duration_s=0.1), **ONNX
    ).results
    assert isinstance(result, ServerResult)
    assert result.status == "failed"
    assert result.replays[0].answers.stopped
    assert len(result.latencies_ms) < 10_000


def test_a_rate_is_found(digits: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    few = {"MIN_QUERIES": 100, "_BOUNDS": 0, "RESOLUTION": 1.5, "CONFIRMATIONS": 2, "MOST_ATTEMPTS": 1}
    for name, value in few.items():
        monkeypatch.setattr(rate_search, name, value)
    (result,) = vitdeploy.benchmark_scenario(
        digits.path, Scenario("server", p99_ms=2e3, duration_s=0.2), **ONNX
    ).results
    assert isinstance(result, ServerResult)
    if result.rate is not None:  # other work on this machine may leave none
        assert (len(result.replays), result.held, result.searched) == (2, 2, True)
        assert result.invalid_rate is not None
        assert 1 < result.rate < result.invalid_rate < 1e6
    assert result.measured >= len(result.replays) >= 1


def test_an_interrupt_ends_every_process(digits: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_Measurement, "_answers_of_a_new_process", interrupted_in_a_new_process)
    for name, value in {"MIN_QUERIES": 20, "_BOUNDS": 0, "RESOLUTION": 100.0}.items():
        monkeypatch.setattr(rate_search, name, value)
    with pytest.raises(KeyboardInterrupt):
        vitdeploy.benchmark_scenario(digits.path, Scenario("server", p99_ms=9e3, duration_s=0.01), **ONNX)


def interrupted_in_a_new_process(self: _Measurement, *_: object) -> None:
    """Of two processes, the second has just been started."""
    with worker(self._job, LoadGenerator):
        assert len(multiprocessing.active_children()) == 2
        raise KeyboardInterrupt


def test_what_cannot_be_measured_is_told(digits: Bundle) -> None:
    found = vitdeploy.benchmark_scenario(digits.path, Scenario("offline", duration_s=0.1), device="cuda:9", **ONNX)
    assert (found.status, found.results) == ("skipped", ())
    assert [item.backend for item in found.skipped] == ["onnxruntime"]


def test_bad_arguments_are_refused_before_a_process_starts(digits: Bundle, tmp_path: Path) -> None:
    with raises(UsageError, what="batch_size", found=0):
        vitdeploy.benchmark_scenario(digits.path, Scenario("offline"), batch_sizes=(0,))
    with raises(UsageError, what="batch_sizes", found=()):
        vitdeploy.benchmark_scenario(digits.path, Scenario("offline"), batch_sizes=())
    with raises(UsageError, what="backends", found=[]):
        vitdeploy.benchmark_scenario(digits.path, Scenario("offline"), backends=[])
    with pytest.raises(InputError):
        vitdeploy.benchmark_scenario(digits.path, Scenario("offline"), images=tmp_path / "none")
