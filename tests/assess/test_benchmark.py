"""Latency: what is measured, and that no process outlives the measurement."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from bundles import write_bundle
from vitdeploy.assess import benchmark
from vitdeploy.assess.benchmark import WARM_UP_RUNS, Latency, measure_latency, measure_processing
from vitdeploy.errors import BundleError, UnavailableError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vitdeploy.bundle import Bundle

ONNX = ("onnxruntime", "fp32")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_bundle(tmp_path_factory.mktemp("benchmark"))


@pytest.fixture(autouse=True)
def no_process_is_left() -> Iterator[None]:
    yield
    assert multiprocessing.active_children() == []


def test_percentiles_and_images_per_second() -> None:
    latency = Latency("torch", "fp32", 8, tuple(float(time) for time in range(1, 102)), {"threads": 2})
    assert latency.percentile_ms(50) == 51
    assert latency.images_per_second == pytest.approx(8 / 0.051)
    assert latency.to_dict() == {
        "backend": "torch",
        "precision": "fp32",
        "batch_size": 8,
        "runs": 101,
        "p50_ms": 51,
        "p90_ms": 91,
        "p99_ms": 100,
        "images_per_second": pytest.approx(156.86, abs=0.01),
        "details": {"threads": 2},
    }


def test_each_backend_and_batch_size_is_timed_in_turns(bundle: Bundle) -> None:
    steps: list[str] = []
    found = measure_latency(
        bundle.path, [("torch", "fp32"), ONNX], batch_sizes=(3, 1), rounds=2, runs=4, on_step=steps.append
    )
    assert [(item.name, item.batch_size, len(item.times_ms)) for item in found] == [
        ("torch fp32", 3, 8),
        ("onnxruntime fp32", 3, 8),
        ("torch fp32", 1, 8),
        ("onnxruntime fp32", 1, 8),
    ]
    assert all(0 < time < 60_000 for item in found for time in item.times_ms)
    assert [item.details["engine"].split()[0] for item in found] == ["torch", "onnxruntime"] * 2
    assert steps == ["opening torch fp32", "opening onnxruntime fp32", "timing, round 1 of 2", "timing, round 2 of 2"]


def test_what_is_timed_is_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow:
        calls = 0

        def run(self, feeds: Any) -> None:
            self.calls += 1
            time.sleep(0.02)

    runtime: Any = Slow()
    times = benchmark._times(runtime, {}, 4)
    assert runtime.calls == WARM_UP_RUNS + 4
    assert len(times) == 4
    assert all(20 <= taken < 2000 for taken in times)


def test_processing_is_timed_by_image(tmp_path: Path) -> None:
    files = []
    for index in range(5):
        files.append(tmp_path / f"{index}.png")
        Image.fromarray(np.full((8, 8, 3), index, np.uint8)).save(files[-1])
    seen: list[Path] = []
    processor: Any = seen.append
    assert len(measure_processing(processor, files)) == 5
    assert seen == files[:WARM_UP_RUNS] + files


@pytest.mark.parametrize(
    ("backends", "options"),
    [([], {}), ([ONNX], {"batch_sizes": ()}), ([ONNX], {"batch_sizes": (1, 0)}), ([ONNX], {"rounds": 0}),
     ([ONNX], {"runs": 0})],
)  # fmt: skip
def test_arguments_are_checked(backends: list[tuple[str, str]], options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a measurement needs backends"):
        measure_latency(tmp_path, backends, **options)


def test_a_worker_s_error_is_the_caller_s(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="fp16"):
        measure_latency(bundle.path, [ONNX, ("onnxruntime", "fp16")])
    with pytest.raises(BundleError, match="manifest"):
        measure_latency(tmp_path, [ONNX])


def test_a_worker_that_dies_is_an_error_of_one_line(bundle: Bundle) -> None:
    def kill(step: str) -> None:
        if step == "timing, round 2 of 2":
            for process in multiprocessing.active_children():
                process.kill()

    with pytest.raises(UnavailableError, match="onnxruntime fp32 must answer, it ended with exit code -9"):
        measure_latency(bundle.path, [ONNX], rounds=2, runs=1, on_step=kill)


def test_an_interrupt_ends_the_workers(bundle: Bundle) -> None:
    def interrupt(step: str) -> None:
        if step.startswith("timing"):
            assert len(multiprocessing.active_children()) == 2
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_latency(bundle.path, [ONNX, ONNX], on_step=interrupt)


KILLED = """
import multiprocessing, os, signal, sys
from vitdeploy.assess.benchmark import measure_latency

def die(step):
    if step == "timing, round 2 of 2":
        print(*(process.pid for process in multiprocessing.active_children()), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    measure_latency(sys.argv[1], [("onnxruntime", "fp32")], rounds=2, runs=1, on_step=die)
"""


@pytest.mark.skipif(os.name == "nt", reason="there is no SIGKILL")
def test_workers_end_with_a_parent_that_is_killed(bundle: Bundle, tmp_path: Path) -> None:
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    done = subprocess.run([sys.executable, script, bundle.path], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL
    (worker,) = map(int, done.stdout.split())
    deadline = time.monotonic() + 20
    while _runs(worker):
        assert time.monotonic() < deadline, f"process {worker} outlives its parent"
        time.sleep(0.05)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{process}/stat")  # a container may have nobody who reaps orphans
    return not (status.exists() and status.read_text().rpartition(")")[2].split()[0] == "Z")
