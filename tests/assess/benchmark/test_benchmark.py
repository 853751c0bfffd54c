"""The benchmark: its measurements, and no process that outlives it."""

from __future__ import annotations

import dataclasses
import io
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bundles import make_feeds, tiny_model, write_bundle, write_checkpoint_of
from raising import raises
from told import Told

import vitdeploy
from vitdeploy.assess.benchmark import timer as timing
from vitdeploy.assess.benchmark.benchmark import benchmark
from vitdeploy.assess.benchmark.image_files import image_files
from vitdeploy.assess.benchmark.setting import Load, Setting
from vitdeploy.assess.benchmark.timer import MOST_WINDOWS, WINDOW, Job, Timer
from vitdeploy.assess.data.images import synthetic_images
from vitdeploy.assess.runs.targets import Selected
from vitdeploy.bundle.bundle import Bundle
from vitdeploy.bundle.manifest import MANIFEST
from vitdeploy.errors import BundleError, ImageError, InputError, UsageError
from vitdeploy.images.processor import ImageProcessor
from vitdeploy.runtimes import BACKENDS
from vitdeploy.specs import PixelFormat, PixelStage
from vitdeploy.system.cpu import Cpus, ThreadCount

ONNX = ["onnxruntime"]
REFERENCE = Setting(Selected("reference", "torch", "fp32"))
ONE = Load(1)


@pytest.fixture(autouse=True)
def no_process_is_left() -> Iterator[None]:
    yield
    assert multiprocessing.active_children() == []


def test_every_backend_and_batch_size_is_timed_in_turns(single: Bundle) -> None:
    steps: list[str] = []
    found = benchmark(
        single.path, batch_sizes=(3, 1), threads=1, processes=1, rounds=2, runs=4, progress=Told(steps.append)
    )
    names = [("reference", "torch"), ("onnx-fp32", "onnxruntime")]
    assert [(item.artifact, item.backend, item.batch_size) for item in found.latencies] == [
        (*name, size) for size in (3, 1) for name in names
    ]
    for item in found.latencies:
        assert [len(times) for times in (*item.rounds_ms, *item.image_rounds_ms)] == [4] * 4
        assert all(0 < taken < 60_000 for taken in (*item.times_ms, *item.image_times_ms))
        assert item.load_ms is not None
        assert item.first_ms is not None
        assert item.processing_ms is not None
        assert item.load_ms > 0 < item.first_ms
        assert 0 < item.processing_ms < max(item.image_times_ms)
        assert 1e7 < (item.peak_memory_bytes or 0) < 1e11
    assert [item.details["engine"].split()[0] for item in found.latencies] == ["torch", "onnxruntime"] * 2
    assert (found.latencies[0].details["threads"], found.latencies[1].details["intra_op_threads"]) == (1, 1)
    assert [item.threads and item.threads.count for item in found.latencies] == [1] * 4
    assert (found.latencies[1].threads, found.status) == (ThreadCount(1, "as asked for"), "passed")
    assert (found.settings["images"], found.settings["runs"]) == ("synthetic JPEG files of 640x480 pixels", 4)
    assert "cpu" in found.machine
    assert steps == ["opening reference on torch", "opening onnx-fp32 on onnxruntime",
                     "timing, round 1 of 2", "timing, round 2 of 2"]  # fmt: skip


class Slow:
    """A runtime whose runs take what it is told, in milliseconds, the last of them for ever; and its clock."""

    inputs = ()
    pixels = PixelFormat()
    gpu = None

    def __init__(self, *times: float) -> None:
        self.times = list(times)
        self.calls = 0
        self.now = 0.0

    def run(self, feeds: Any) -> None:
        self.calls += 1
        self.now += 1e-3 * (self.times.pop(0) if len(self.times) > 1 else self.times[0])


def timer(runtime: Slow) -> Timer:
    image = synthetic_images(1, 8, 8)[0].tobytes()
    found = Timer(Job(None, None, "cpu", (image,)))  # type: ignore[arg-type]
    found._runtime = runtime  # type: ignore[assignment]
    found._ready[ONE] = {}
    return found


def test_a_warm_up_ends_when_times_are_steady(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = Slow(*[60.0] * WINDOW, *[40.0] * WINDOW, 20.0)
    monkeypatch.setattr("vitdeploy.assess.benchmark.timer.time.perf_counter", lambda: runtime.now)
    assert timer(runtime).warm_up(ONE)
    assert runtime.calls == 4 * WINDOW
    growing = Slow(*(2.0 * 1.5**window for window in range(MOST_WINDOWS) for _ in range(WINDOW)))
    monkeypatch.setattr("vitdeploy.assess.benchmark.timer.time.perf_counter", lambda: growing.now)
    assert not timer(growing).warm_up(ONE)
    assert growing.calls == MOST_WINDOWS * WINDOW


def test_what_is_timed_is_the_run_and_the_processing_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = Slow(20.0)
    found = timer(runtime)

    def process(self: ImageProcessor, images: Any, **_: Any) -> None:
        assert len(images) == 1
        runtime.now += 0.03

    monkeypatch.setattr(ImageProcessor, "__call__", process)
    monkeypatch.setattr("vitdeploy.assess.benchmark.timer.time.perf_counter", lambda: runtime.now)
    found._processors[None] = ImageProcessor()
    times = found.time(ONE, 4)
    assert runtime.calls == 2 * 5
    assert [len(each) for each in (times.ready_ms, times.images_ms, times.processing_ms)] == [4, 4, 4]
    assert times.ready_ms == pytest.approx([20] * 4)
    assert times.processing_ms == pytest.approx([30] * 4)
    assert times.images_ms == pytest.approx([50] * 4)


@pytest.mark.parametrize(
    ("options", "what", "found"),
    [
        ({"batch_sizes": ()}, "batch_sizes", ()),
        ({"batch_sizes": (1, 0)}, "batch_size", 0),
        ({"batch_sizes": (1, 10**8)}, "batch_size", 10**8),
        ({"rounds": 0}, "rounds", 0),
        ({"runs": 0}, "runs", 0),
        ({"threads": -1}, "threads", -1),
        ({"threads": 1025}, "threads", 1025),
        ({"backends": ["onnxruntime:fp16"]}, "precision", "onnx-fp16"),
        ({"backends": []}, "backends", []),
    ],
)
def test_arguments_are_checked(single: Bundle, options: dict[str, Any], what: str, found: object) -> None:
    with raises(UsageError, what=what, found=found):
        benchmark(single, **options)


def test_bad_input_makes_no_process(single: Bundle, tmp_path: Path) -> None:
    with raises(BundleError, where=tmp_path):
        benchmark(tmp_path)
    with raises(InputError, where=tmp_path, what="images"):
        benchmark(single, images=tmp_path)


def test_an_image_that_cannot_be_read_is_named(single: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").write_bytes(b"no image")
    with raises(ImageError, what=re.compile(r"a\.png$")):
        benchmark(single, images=tmp_path)

    def refused(file: Path, most_bytes: int) -> bytes:
        raise PermissionError(13, "Permission denied", str(file))

    monkeypatch.setattr("vitdeploy.assess.benchmark.image_files.read_regular", refused)
    with raises(InputError, where=tmp_path / "a.png", expected="an image", found="Permission denied"):
        image_files(tmp_path, 1)


def test_no_more_synthetic_images_are_made_than_are_of_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitdeploy.assess.benchmark.image_files._SYNTHETIC_SIZE", (8, 8))
    assert [len(image_files(None, count)[0]) for count in (3, 2**20)] == [3, 64]


def test_a_damaged_artifact_is_the_caller_s_error(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path)
    (bundle.path / bundle.manifest.artifacts[0].files[0].path).write_bytes(b"altered")
    with raises(BundleError, where=bundle.path / "onnx" / "model.onnx"):
        benchmark(bundle, backends=ONNX, rounds=1, runs=1)


def test_what_is_missing_here_is_skipped_and_the_others_go_on(single: Bundle) -> None:
    found = benchmark(single, batch_sizes=(1,), backends=["torch", *ONNX], device="cuda", rounds=1, runs=1)
    if found.status == "passed":
        pytest.skip("this machine has a GPU")
    assert found.latencies == ()
    assert [(item.artifact, item.batch_size) for item in found.skipped] == [("reference", None), ("onnx-fp32", None)]
    assert "CUDA" in found.skipped[1].reason


def test_a_batch_size_that_an_artifact_does_not_take_is_skipped(single: Bundle, tmp_path: Path) -> None:
    shutil.copytree(single.path, tmp_path / "limited")
    manifest = json.loads((tmp_path / "limited" / MANIFEST).read_text())
    manifest["artifacts"][0]["axes"] = {"batch": {"minimum": 2, "optimum": 2, "maximum": 4}}
    (tmp_path / "limited" / MANIFEST).write_text(json.dumps(manifest))
    found = benchmark(tmp_path / "limited", batch_sizes=(1, 2, 8), backends=ONNX, rounds=1, runs=1)
    assert [item.batch_size for item in found.latencies] == [2]
    assert found.latencies[0].first_ms is not None
    assert [(item.batch_size, item.reason.partition(";")[0]) for item in found.skipped] == [
        (1, "the artifact takes a batch from 2 to 4, got 1"), (8, "the artifact takes a batch from 2 to 4, got 8")
    ]  # fmt: skip
    assert found.status == "skipped"


def test_a_process_that_dies_is_skipped_with_its_exit_code(single: Bundle) -> None:
    def kill(step: str) -> None:
        if step == "timing, round 2 of 2":
            for process in multiprocessing.active_children():
                process.kill()

    found = benchmark(single, backends=ONNX, processes=1, rounds=2, runs=1, progress=Told(kill))
    assert (found.status, found.latencies) == ("skipped", ())
    (skipped,) = found.skipped
    assert "onnx-fp32 on onnxruntime ended with exit code -9" in skipped.reason


def test_an_interrupt_ends_the_workers(single: Bundle) -> None:
    def interrupt(step: str) -> None:
        if step.startswith("timing"):
            assert len(multiprocessing.active_children()) == 2
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        benchmark(single, batch_sizes=(1,), progress=Told(interrupt))


def test_a_script_without_its_guard_ends(single: Bundle, tmp_path: Path) -> None:
    """Its processes end before they read their jobs, which are more than a pipe holds."""
    script = tmp_path / "measure.py"
    call = f"vitdeploy.benchmark({str(single.path)!r}, backends=['onnxruntime'], rounds=2, runs=1)"
    script.write_text(f"import vitdeploy\nprint({call}.skipped[0].reason)\n")
    ran = subprocess.run([sys.executable, script], check=False, capture_output=True, text=True, timeout=120)
    assert "bootstrapping phase" in ran.stderr
    assert ran.stdout.rstrip().endswith('if __name__ == "__main__":')


STARTING = """
import multiprocessing, sys
from vitdeploy.cli import main

Process = multiprocessing.get_context("spawn").Process
start = Process.start

def say_and_start(process):
    print("starting", flush=True)
    start(process)

if __name__ == "__main__":
    Process.start = say_and_start
    main(["benchmark", sys.argv[1], "--batch-sizes", "1"])
"""


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM], ids=lambda sent: sent.name)
@pytest.mark.parametrize("delay", [0.0, 0.3])
def test_an_interrupt_of_all_while_workers_start_is_quiet(single: Bundle, sent: signal.Signals, delay: float) -> None:
    """As from a terminal, or from a CI server that ends a job: the signal goes to the whole process group."""
    command = [sys.executable, "-c", STARTING, str(single.path)]
    with subprocess.Popen(
        command, text=True, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "starting\n"
        time.sleep(delay)
        os.killpg(process.pid, sent)
        _, errors = process.communicate(timeout=60)
    assert "Traceback" not in errors, errors
    assert process.returncode == 128 + sent


def test_threads_are_for_backends_that_heed_them(monkeypatch: pytest.MonkeyPatch, single: Bundle) -> None:
    monkeypatch.setitem(BACKENDS, "onnxruntime", BACKENDS["onnxruntime"]._replace(threads_option=None))
    heeding = ["torch", "torchscript", "onnxruntime-tensorrt", "openvino"]
    with raises(UsageError, what="threads", expected=heeding, found="onnxruntime"):
        benchmark(single, backends=ONNX, threads=2)


def test_the_threads_of_torch_are_those_in_force(single: Bundle) -> None:
    before = torch.get_num_threads()  # imported already, as by the script of a user
    try:
        opened = Timer(Job(single, dataclasses.replace(REFERENCE, threads=before + 2), "cpu", ())).open()
        assert opened.details["threads"] == torch.get_num_threads() == before + 2
    finally:
        torch.set_num_threads(before)
    assert Timer(Job(single, REFERENCE, "cpu", ())).open().details["threads"] == before


@pytest.mark.parametrize(
    ("cpus", "variable", "asked", "expected"),
    [
        (Cpus(8, 8, 8, 2.0), "", 0, 2),
        (Cpus(8, 8, 8, 7.0), "", 0, 3),
        (Cpus(8, 8, 8), "", 0, 3),
        (Cpus(8, 8, 8, 2.0), "3", 0, 3),
        (Cpus(8, 8, 8, 2.0), "", 4, 4),
    ],
)
def test_the_worker_of_torch_keeps_within_a_quota(
    monkeypatch: pytest.MonkeyPatch, cpus: Cpus, variable: str, asked: int, expected: int
) -> None:
    """It is a process of the benchmark's own; ONNX Runtime beside it keeps within the quota too."""
    before = torch.get_num_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", variable)
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    monkeypatch.setattr(timing, "usable_cpus", lambda: cpus)
    try:
        torch.set_num_threads(3)
        timing._set_torch_threads(asked)
        assert torch.get_num_threads() == expected
    finally:
        torch.set_num_threads(before)


def test_a_malformed_variable_ends_the_benchmark(monkeypatch: pytest.MonkeyPatch, single: Bundle) -> None:
    monkeypatch.setenv("ORT_INTRA_OP_NUM_THREADS", "all")
    with raises(UsageError, what="ORT_INTRA_OP_NUM_THREADS", found="all"):
        benchmark(single, backends=ONNX, rounds=1, runs=1)


KILLED = """
import multiprocessing, os, signal, sys, threading
from vitdeploy import Progress
from vitdeploy.assess.benchmark.benchmark import benchmark

class Die(Progress):
    def step(self, text):
        if text == "timing, round 1 of 1":
            print(*(process.pid for process in multiprocessing.active_children()), flush=True)
            threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGKILL)).start()  # in the middle of the runs

if __name__ == "__main__":
    benchmark(
        sys.argv[1], batch_sizes=(1,), backends=["onnxruntime"], processes=1, rounds=1, runs=100000, progress=Die()
    )
"""


@pytest.mark.skipif(os.name == "nt", reason="there is no SIGKILL")
def test_workers_end_with_a_parent_that_is_killed(single: Bundle, tmp_path: Path) -> None:
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    done = subprocess.run([sys.executable, script, single.path], capture_output=True, text=True, check=False)
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


@pytest.fixture(scope="module")
def dynamic(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    checkpoint = write_checkpoint_of(tiny_model(), tmp_path_factory.mktemp("dynamic") / "checkpoint")
    graph = vitdeploy.GraphOptions(dynamic_image_size=True)
    return vitdeploy.export(checkpoint, to="onnx", graph=graph, output=checkpoint.parent / "bundle")


@pytest.mark.parametrize("selected", [REFERENCE.selected, Selected("onnx-fp32", "onnxruntime", "fp32")])
def test_images_of_other_sizes_are_timed_and_judged(dynamic: Bundle, selected: Selected) -> None:
    image = io.BytesIO()
    synthetic_images(1, 50, 60)[0].save(image, "PNG")
    timer = Timer(Job(dynamic, Setting(selected), "cpu", (image.getvalue(),), any_size=True))
    timer.open()
    for size in (None, (48, 64)):
        load = Load(2, size)
        assert timer.first_run(load) > 0
        assert [len(times) for times in dataclasses.astuple(timer.time(load, 2))] == [2, 2, 2, 0]
        assert timer._inputs(load)["pixel_values"].shape[2:] == (size or (32, 32))
        assert timer.vectors((image.getvalue(),) * 3, size)["logits"].shape == (3, 3)


def test_sizes_are_refused_where_the_graph_resizes(monkeypatch: pytest.MonkeyPatch) -> None:
    found = timer(Slow(1.0))
    found._processors[None] = ImageProcessor()
    found._runtime.pixels = PixelFormat(PixelStage.DECODED, "nhwc", "uint8")
    with raises(UsageError, what="image_size", found=(8, 8)):
        found.time(Load(1, (8, 8)), 1)


def test_runs_without_transfers_are_timed_where_the_backend_has_a_gpu(
    single: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Arrays of the host stand for those of a GPU."""
    monkeypatch.setattr(timing, "_torch_has", lambda gpu: True)
    monkeypatch.setattr(timing, "_device_name", lambda gpu: "cpu")
    monkeypatch.setattr(timing, "gpu_memory_bytes", lambda gpu: 7)
    timed = Timer(Job(single, Setting(Selected("onnx-fp32", "onnxruntime", "fp32")), "cpu", (), from_files=False))
    timed.open()
    timed._ready[ONE] = make_feeds(tiny_model(), 1)
    assert timed.time(ONE, 3).device_ms == ()
    run_device = timed._runtime.run_device
    written = []

    def counted(feeds: Any, results: Any) -> None:
        timed._runtime.gpu = None  # `run_device` then takes arrays of the host
        run_device(feeds, results)
        timed._runtime.gpu = 0
        written.append({name: value.numpy().copy() for name, value in results.items()})

    monkeypatch.setattr(timed._runtime, "run_device", counted)
    timed._runtime.gpu = 0
    found = timed.time(ONE, 3)
    assert len(found.device_ms) == len(written) - 1 == 3
    assert timed.usage().gpu_memory_bytes == 7
    expected = timed._runtime.run(timed._ready[ONE])
    np.testing.assert_array_equal(written[0]["logits"], expected["logits"])
