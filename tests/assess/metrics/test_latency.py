"""Percentiles, ratios by round, and a benchmark's summary."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from raising import raises

from vitdeploy.assess.benchmark.result import Benchmark, NotMeasured
from vitdeploy.assess.metrics.intervals import Ratio
from vitdeploy.assess.metrics.latency import Latency
from vitdeploy.assess.report.tables import tables
from vitdeploy.errors import UsageError
from vitdeploy.system.cpu import ThreadCount


def latency(backend: str, *rounds: tuple[float, ...], batch_size: int = 8, **more: Any) -> Latency:
    return Latency("onnx-fp32", backend, "fp32", batch_size, rounds, **more)


def benchmark(*latencies: Latency, skipped: tuple[NotMeasured, ...] = ()) -> Benchmark:
    return Benchmark("out", {"cpu": "one"}, {"rounds": 3}, latencies, skipped)


def test_percentiles_and_images_per_second() -> None:
    times = tuple(float(time) for time in range(1, 102))
    found = latency("torch", times[:50], times[50:], image_rounds_ms=((200.0, 202.0), (204.0,)), processing_ms=3.0)
    assert (found.times_ms, found.p50_ms, found.image_p50_ms) == (times, 51, 202)
    assert found.images_per_second == pytest.approx(8 / 0.051)
    assert found.to_dict() == {
        "artifact": "onnx-fp32",
        "backend": "torch",
        "precision": "fp32",
        "changes": "",
        "batch_size": 8,
        "image_size": None,
        "processes_ms": [[25.5, 76.0]],
        "ready_input": {
            "runs": 101, "p50_ms": 51, "p90_ms": 91, "p95_ms": 96, "p99_ms": 100, "p99.9_ms": None,
            "interval_ms": found.interval_ms.to_list(),
            "images_per_second": pytest.approx(156.86, abs=0.01),
        },
        "image_files": {
            "runs": 3, "p50_ms": 202, "p90_ms": None, "p95_ms": None, "p99_ms": None, "p99.9_ms": None,
        },
        "without_transfers": None,
        "processing_ms": 3.0,
        "load_ms": None,
        "first_ms": None,
        "peak_memory_bytes": None,
        "gpu_memory_bytes": None,
        "steady": True,
        "quality": None,
        "threads": None,
        "details": {},
    }  # fmt: skip


def test_a_ratio_is_of_rounds_so_that_a_slow_spell_falls_on_both() -> None:
    base = latency("torch", (10.0, 10.0, 99.0), (40.0,), (20.0,))
    other = latency("onnxruntime", (5.0, 5.0, 5.0), (20.0,), (12.0,))
    result = benchmark(base, other)
    ratio = result.ratio("onnxruntime fp32", "torch fp32", 8)
    assert ratio.median == pytest.approx(0.5)
    assert 0.3 < ratio.low < 0.45 < 0.55 < ratio.high < 0.8
    assert other.ratio(other) == (1, 1, 1)

    with raises(UsageError, what="base", found=("torch fp32", 8, None)):
        latency("torch", (1.0,), batch_size=1).ratio(base)
    with raises(UsageError, what="tensorrt fp16", found=8):
        result.ratio("tensorrt fp16", "torch fp32", 8)
    large = dataclasses.replace(other, image_size=(384, 384))
    assert benchmark(large, other).latency(other.name, 8) is other
    assert benchmark(other, large).latency(other.name, 8, (384, 384)) is large


@pytest.mark.parametrize(
    ("median", "words"),
    [
        (1 / 69, "69x faster"),
        (0.5, "2.0x faster"),
        (1.3, "1.3x slower"),
        (12.4, "12x slower"),
        (1.0, "as fast"),
        (1.04, "1.04x slower"),
        (0.98, "1.02x faster"),
        (0.94, "1.06x faster"),
    ],
)
def test_a_ratio_in_words(median: float, words: str) -> None:
    ratio = Ratio(median, median, median)
    assert ratio.words == words
    than = "as" if words == "as fast" else "than"
    assert ratio.against("torch fp32") == f"{words} {than} torch fp32 ({median:.2f} of its time)"


def test_words_follow_from_the_interval() -> None:
    assert Ratio(0.99, 0.97, 1.01).words == "as fast"
    assert Ratio(0.9, 0.8, 1.01).words == "unclear"
    assert Ratio(0.99, 0.985, 0.995).words == "1.01x faster"
    single = latency("torch", (2.0,)).ratio(latency("onnxruntime", (1.0,)))
    assert (single.median, single.words, single.is_level) == (2, "unclear", False)
    assert str(single) == "2.000, no interval from one round"


def test_rounds_are_paired_within_their_session() -> None:
    """The base has rounds in every session, other settings in theirs alone."""
    base = latency("torch", (1.0,), (2.0,), (40.0,), (80.0,), sessions=(0, 0, 1, 1))
    first = latency("first", (2.0,), (4.0,), sessions=(0, 0))
    second = latency("second", (10.0,), (20.0,), sessions=(1, 1))
    assert first.ratio(base) == pytest.approx((2, 2, 2))
    assert second.ratio(base) == pytest.approx((0.25, 0.25, 0.25))
    apart = first.ratio(second)
    assert apart.median == pytest.approx(2.828 / 14.14, rel=1e-3)
    assert apart.high > 0.4, "they were never measured together"
    with raises(UsageError, what="base"):
        latency("torch", (1.0,), image_size=(32, 32)).ratio(base)


def test_what_was_not_measured_is_no_pass() -> None:
    measured = latency("torch", (1.0,))
    missing = NotMeasured("tensorrt-fp16", "tensorrt", "fp16", None, "it is not installed")
    assert benchmark(measured).status == "passed"
    assert (benchmark(measured, skipped=(missing,)).status, benchmark().status) == ("skipped", "skipped")
    wrong = NotMeasured("onnx-fp16", "onnxruntime", "fp16", None, "it gives NaN", "failed")
    assert benchmark(measured, skipped=(missing, wrong)).status == "failed"
    found = benchmark(measured, skipped=(missing,)).to_dict()
    assert (found["status"], found["skipped"][0]["reason"]) == ("skipped", "it is not installed")


def test_different_numbers_of_threads_are_told() -> None:
    one, two = ThreadCount(1, "OMP_NUM_THREADS"), ThreadCount(2, "2 physical cores")
    on_gpu = latency("tensorrt", (1.0,))
    result = benchmark(latency("torch", (1.0,), threads=one), latency("onnxruntime", (1.0,), threads=two), on_gpu)
    assert "torch 1, onnxruntime 2" in result.note
    assert any(result.note in title for title, *_ in tables(result))
    assert benchmark(latency("torch", (1.0,), threads=two), latency("onnxruntime", (1.0,), threads=two)).note == ""


def test_the_threads_are_in_the_json_once() -> None:
    details = {"engine": "onnxruntime 1", "intra_op_threads": 2, "threads_reason": "2 physical cores"}
    found = latency("onnxruntime", (1.0,), threads=ThreadCount(2, "2 physical cores"), details=details).to_dict()
    assert found["threads"] == {"count": 2, "reason": "2 physical cores"}
    assert found["details"] == {"engine": "onnxruntime 1"}
