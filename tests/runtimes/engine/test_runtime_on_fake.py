"""The engine runtime on a fake of CUDA and of the library."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import threading
import time
import types
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_cuda import FakeCuda, OfAnOlderLibrary, OnTheGpu, aligned
from fake_engines import INPUTS, OUTPUTS, opener, patched_cuda
from forking import Outcome, in_child
from raising import raises

from vitdeploy.bundle.manifest import Artifact, FileRecord
from vitdeploy.errors import (
    BundleError,
    DeviceError,
    InputError,
    OtherHardwareError,
    OutputError,
    UsageError,
    VitDeployError,
)
from vitdeploy.runtimes import device_arrays
from vitdeploy.runtimes.device_arrays import view
from vitdeploy.runtimes.engine import cache as engine_cache
from vitdeploy.runtimes.engine.cuda_memory import wait_for
from vitdeploy.runtimes.engine.options import KERNEL_SPECIALIZATIONS, EngineRuntimeOptions
from vitdeploy.runtimes.engine.runtime import EngineRuntime
from vitdeploy.specs import PixelFormat, TensorSpec

Open = Callable[..., EngineRuntime]

REFUSED_WEIGHTS = (("wrong", "the count of 'w' differs"), ("lacks", "it lacks layer.0.bias"))  # by a file's content


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCuda]:
    with patched_cuda(monkeypatch) as fake:
        yield fake


@pytest.fixture(params=["tensorrt", "tensorrt-rtx"])
def open_engine(request: pytest.FixtureRequest, cuda: FakeCuda, tmp_path: Path) -> Open:
    return opener(cuda, tmp_path, request.param)


@pytest.fixture
def open_rtx(cuda: FakeCuda, tmp_path: Path) -> Open:
    """TensorRT-RTX alone, which compiles on the machine that runs the engine."""
    return opener(cuda, tmp_path, "tensorrt-rtx")


def rows(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(seed).standard_normal((count, 4), np.float32)}


def assert_sums(runtime: EngineRuntime, feeds: dict[str, np.ndarray]) -> None:
    np.testing.assert_array_equal(runtime.run(feeds)["y"], feeds["x"].sum(1))


def records_itself(runtime: EngineRuntime) -> bool:
    return runtime.backend == "tensorrt-rtx"


def test_every_shape_has_a_context_and_the_profile_that_is_nearest(open_engine: Open, cuda: FakeCuda) -> None:
    with open_engine() as runtime:
        for count in (1, 3, 8, 3, 1, 8):
            assert_sums(runtime, rows(count, count))
        engine = runtime.library.engine
        assert engine.contexts == 3
        assert [profile for profile, _ in engine.executed[:3]] == [0, 1, 1]
        assert runtime.details["device"] == "cuda:1 Fake GPU"
        assert runtime.details["profiles"] == 2


def test_the_second_run_of_a_shape_is_recorded_and_replayed_from_then_on(open_engine: Open, cuda: FakeCuda) -> None:
    with open_engine() as runtime:
        engine = runtime.library.engine
        for seed in range(5):
            assert_sums(runtime, rows(4, seed))
            graphs = len(cuda.of_kind("executable"))
            # The library's own graphs are not seen.
            assert graphs == (0 if records_itself(runtime) else min(seed, 1))
        assert len(engine.executed) == (5 if records_itself(runtime) else 2)
        if records_itself(runtime):
            assert engine.config.cuda_graph_strategy == "whole"


def test_a_shape_that_is_seen_once_is_run_once(open_engine: Open, cuda: FakeCuda) -> None:
    with open_engine() as runtime:
        for count in range(1, 9):
            assert_sums(runtime, rows(count))
        assert len(runtime.library.engine.executed) == 8
        assert cuda.of_kind("executable") == []


def test_without_graphs_every_run_is_executed(open_engine: Open) -> None:
    with open_engine(cuda_graphs=False) as runtime:
        for seed in range(5):
            assert_sums(runtime, rows(4, seed))
        assert len(runtime.library.engine.executed) == 5
        assert getattr(runtime.library.engine.config, "cuda_graph_strategy", None) is None


@pytest.mark.parametrize(
    ("a_row_needs", "the_largest_needs", "expected"),
    [(1000, 8000, {1: 1000, 3: 3000}), (0, 8000, {1: 8000, 3: 8000}), (0, 0, {1: None, 3: None})],
)
def test_scratch_is_what_a_shape_needs(
    open_engine: Open, cuda: FakeCuda, a_row_needs: int, the_largest_needs: int, expected: dict[int, int | None]
) -> None:
    with open_engine() as runtime:
        engine = runtime.library.engine
        engine.scratch, engine.device_memory_size_v2 = a_row_needs, the_largest_needs
        for count, size in expected.items():
            before = [each.size for each in cuda.of_kind("device memory")]
            for seed in range(3):
                assert_sums(runtime, rows(count, seed))
            now = [each.size for each in cuda.of_kind("device memory")][len(before) :]
            assert sorted(now) == sorted([16 * count, 4 * count, *([] if size is None else [size])])


def test_memory_of_shapes_beyond_those_kept_is_freed(open_engine: Open, cuda: FakeCuda) -> None:
    with open_engine(shapes_kept=2) as runtime:
        assert_sums(runtime, rows(1))
        one = len(cuda.live)
        for count in (2, 3, 4, 5):
            assert_sums(runtime, rows(count))
        assert len(cuda.live) == 2 * one
        assert_sums(runtime, rows(5))
        assert runtime.library.engine.contexts == 5
        assert_sums(runtime, rows(1))
        assert runtime.library.engine.contexts == 6


def test_threads_do_not_share_a_context(open_engine: Open) -> None:
    calls = [rows(1 + seed % 3, seed) for seed in range(60)]
    with open_engine() as runtime:
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(runtime.run, calls))
        assert runtime.library.engine.contexts <= 4 * 3
    for outputs, feeds in zip(found, calls, strict=True):
        np.testing.assert_array_equal(outputs["y"], feeds["x"].sum(1))


def test_what_fails_says_why_and_leaves_nothing(open_engine: Open, cuda: FakeCuda) -> None:
    with open_engine() as runtime:
        assert_sums(runtime, rows(2))
        kept = len(cuda.live)
        runtime.library.engine.fails = True
        with raises(DeviceError, what="run", found="the kernel cannot run"):
            runtime.run(rows(3))
        assert len(cuda.live) == kept
        runtime.library.engine.fails = False
        for room in range(5):  # two arrays have memory of both kinds, and there is scratch
            cuda.room = room
            with raises(DeviceError, what=re.compile("^reserve .*memory"), found=2):
                runtime.run(rows(3))
            assert len(cuda.live) == kept
        cuda.room = 100
        assert_sums(runtime, rows(3))


def test_shapes_that_the_engine_cannot_work_out(open_engine: Open, cuda: FakeCuda) -> None:
    with open_engine() as runtime:
        engine = runtime.library.engine
        engine.unspecified = ["x"]
        with raises(DeviceError, what="infer the shapes of its outputs"):
            runtime.run(rows(2))
        engine.shapes_fail = True
        with raises(DeviceError, what="infer_shapes", found="the shapes"):
            runtime.run(rows(2))
        assert engine.executed == []
        assert cuda.live == {}
        engine.unspecified, engine.shapes_fail = [], False
        assert_sums(runtime, rows(2))


@pytest.mark.parametrize(
    ("refused", "call"),
    [
        ("profile", "take profile 1"),
        ("shape", "take 'x' (2, 4)"),
        ("x", "take the memory of 'x'"),
        ("y", "take the memory of 'y'"),
    ],
)
def test_a_call_that_a_context_refuses_leaves_nothing(
    open_engine: Open, cuda: FakeCuda, refused: str, call: str
) -> None:
    with open_engine() as runtime:
        runtime.library.engine.refuses = refused
        with raises(DeviceError, what=call):
            runtime.run(rows(2))
        assert runtime.library.engine.executed == []
        assert cuda.live == {}


def test_a_capture_that_fails_is_ended(open_engine: Open, cuda: FakeCuda) -> None:
    with open_engine() as runtime:
        assert_sums(runtime, rows(2))
        runtime.library.engine.fails = True
        with raises(DeviceError, what="run", found="the kernel cannot run"):
            runtime.run(rows(2))
        assert cuda.capturing is None
        runtime.library.engine.fails = False
        assert_sums(runtime, rows(2))


def test_a_failed_run_on_arrays_of_the_gpu_is_told(open_engine: Open) -> None:
    with open_engine() as runtime:
        assert_sums(runtime, rows(2))
        runtime.library.engine.fails = True
        with raises(DeviceError, what="run", found="the kernel cannot run"):
            runtime.run_device(*on_the_gpu(2))


def test_a_shape_that_no_profile_takes(open_engine: Open) -> None:
    with open_engine() as runtime, raises(UsageError, what="shapes", found={"x": (9, 4)}) as caught:
        runtime.run(rows(9))
    assert "(1, 4) to (8, 4)" in str(caught.value)


def test_an_engine_of_another_model_is_refused(open_engine: Open, tmp_path: Path) -> None:
    for specs in (
        {"inputs": (TensorSpec("z", "float32", ("batch", 4)),)},
        {"inputs": (TensorSpec("x", "float16", ("batch", 4)),)},
        {"inputs": (TensorSpec("x", "float32", ("batch", 5)),)},
        {"outputs": (TensorSpec("y", "float32", ("batch", 1)),)},
        {"outputs": ()},
    ):
        with raises(BundleError, what="inputs and outputs", where=str(tmp_path / "x.engine")):
            open_engine(**specs)


def test_an_engine_that_does_not_load_is_a_device_error(open_engine: Open, tmp_path: Path) -> None:
    open_engine().close()
    (tmp_path / "x.engine").write_bytes(b"broken")
    with raises(DeviceError, where=str(tmp_path / "x.engine"), found="this is no engine"):
        open_engine()


def test_what_the_library_says_of_an_engine_is_told(open_rtx: Open) -> None:
    with open_rtx() as runtime:
        library = runtime.library
    library.validity = (2, 3)
    with raises(OtherHardwareError, found="VERSION_MISMATCH, UNSUPPORTED_CC"):
        open_rtx()
    library.validity = (2, 1)
    with raises(DeviceError, found="VERSION_MISMATCH"):
        open_rtx()


def test_a_stripped_engine_is_given_its_weights(open_engine: Open, tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    file.write_text("3")
    with open_engine(weights=file) as runtime:
        feeds = rows(2)
        np.testing.assert_array_equal(runtime.run(feeds)["y"], feeds["x"].sum(1) * 3)
    for content, reason in (*REFUSED_WEIGHTS, ("fails", "out of memory")):
        file.write_text(content)
        with raises(DeviceError, what="weights", found=reason):
            open_engine(weights=file)


def test_an_engine_is_given_other_weights(open_engine: Open, cuda: FakeCuda, tmp_path: Path) -> None:
    file, feeds = tmp_path / "model.onnx", rows(2)
    with open_engine(takes_weights=True) as runtime:
        for weight in (1, 2, 5):
            file.write_text(str(weight))
            runtime.refit(file)
            assert len(cuda.live) == 0, "graphs of the weights before are gone"
            assert runtime.details["weights"] == str(file)
            for _ in range(3):
                np.testing.assert_array_equal(runtime.run(feeds)["y"], feeds["x"].sum(1) * weight)
        for content, reason in REFUSED_WEIGHTS:
            file.write_text(content)
            with raises(UsageError, what="weights", where=str(file), found=reason):
                runtime.refit(file)
            np.testing.assert_array_equal(runtime.run(feeds)["y"], feeds["x"].sum(1) * 5)
        with raises(InputError, where=str(tmp_path / "none.onnx"), found="No such file or directory"):
            runtime.refit(tmp_path / "none.onnx")
        file.write_text("fails")
        with raises(DeviceError, what="weights", found="out of memory"):
            runtime.refit(file)
        with raises(UsageError, what="runtime", found="closed"):
            runtime.run(feeds)
    assert cuda.live == {}
    with raises(UsageError, what="runtime", found="closed"):
        runtime.refit(file)


def test_an_engine_that_takes_no_other_weights(open_engine: Open, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_text("2")
    for takes_weights, refittable in ((False, True), (True, False)):
        with open_engine(takes_weights=takes_weights) as runtime:
            runtime.library.engine.refittable = refittable
            with raises(UsageError, what="refit"):
                runtime.refit(tmp_path / "model.onnx")
            assert_sums(runtime, rows(2))


def test_weights_change_between_runs(open_engine: Open, tmp_path: Path) -> None:
    """While runs overlap without end; what a run gives is of one weight."""
    weights = range(1, 9)
    for weight in weights:
        (tmp_path / f"{weight}.onnx").write_text(str(weight))
    stop = threading.Event()
    until = time.monotonic() + 60
    found: list[float] = []

    def run_on(runtime: EngineRuntime, seed: int) -> None:
        feeds = rows(4, seed)
        while not stop.is_set() and time.monotonic() < until:
            times = runtime.run(feeds)["y"] / feeds["x"].sum(1)
            np.testing.assert_allclose(times, times[0], rtol=1e-6)
            found.append(round(float(times[0]), 3))

    with open_engine(takes_weights=True) as runtime, ThreadPoolExecutor(3) as pool:
        running = [pool.submit(run_on, runtime, seed) for seed in range(3)]
        try:
            for weight in weights:
                runtime.refit(tmp_path / f"{weight}.onnx")
        finally:
            stop.set()
        assert time.monotonic() < until, "it waited for a moment in which nothing ran"
        for process in running:
            process.result()
    assert set(found) <= {float(weight) for weight in weights}


@pytest.mark.parametrize("allowed", [True, False])
def test_code_of_an_engine_runs_where_it_is_allowed_alone(open_engine: Open, allowed: bool) -> None:
    with open_engine(host_code=allowed) as runtime:
        assert runtime.library.host_code is allowed


def test_kernels_for_the_very_sizes_are_compiled_at_once_unless_asked(open_engine: Open) -> None:
    for asked in (None, *KERNEL_SPECIALIZATIONS):
        options = {} if asked is None else {"kernel_specialization": asked}
        with open_engine() as runtime:
            refused = asked is not None and not records_itself(runtime)
        if refused:
            with raises(UsageError, what="kernel_specialization", found=asked):
                open_engine(**options)
            continue
        with open_engine(**options) as runtime:
            expected = (asked or "eager") if records_itself(runtime) else None
            assert runtime.details["kernel_specialization"] == expected
            config = runtime.library.engine.config
            assert getattr(config, "dynamic_shapes_kernel_specialization_strategy", None) == expected
    with raises(UsageError, what="kernel_specialization", found="EAGER"):
        open_engine(kernel_specialization="EAGER")


def test_tensorrt_has_no_runtime_cache(cuda: FakeCuda, tmp_path: Path) -> None:
    with raises(UsageError, what="runtime_cache", found=str(tmp_path / "cache")):
        opener(cuda, tmp_path, "tensorrt")(runtime_cache=tmp_path / "cache")


def test_the_runtime_cache_is_read_and_written(open_rtx: Open, tmp_path: Path) -> None:
    path = tmp_path / "cache"
    open_rtx().close()
    assert not path.exists()
    for times in (1, 2):
        with open_rtx(runtime_cache=path) as runtime:
            assert runtime.details["runtime_cache"] == str(path)
        assert path.read_bytes() == b"+kernels" * times


def test_a_runtime_cache_that_cannot_be_used(open_rtx: Open, tmp_path: Path) -> None:
    """One that the user has named is refused; another is replaced."""
    path = tmp_path / "cache"
    path.write_bytes(b"broken")
    with raises(DeviceError, what="runtime_cache", where=str(path)):
        open_rtx(runtime_cache=path)
    assert path.read_bytes() == b"broken"
    open_rtx(cache=path).close()
    assert path.read_bytes() == b"+kernels", "nothing of the broken one is left"
    path.unlink()
    path.mkdir()
    with raises(InputError, where=str(path), found="Is a directory"):
        open_rtx(runtime_cache=path)
    open_rtx(cache=path).close()
    (tmp_path / "file").write_bytes(b"")
    nowhere = tmp_path / "file" / "cache"
    with open_rtx(cache=nowhere) as runtime:
        assert_sums(runtime, rows(2))
    runtime = open_rtx(runtime_cache=nowhere)
    assert_sums(runtime, rows(2))  # its result is worth more
    with raises(OutputError, where=str(nowhere)):
        runtime.close()


def test_a_library_without_a_use_for_its_runtime_cache(open_rtx: Open, tmp_path: Path) -> None:
    runtime = open_rtx(runtime_cache=tmp_path / "cache")
    library = runtime.library
    library.engine.config.cache.serialize = lambda: None
    with raises(OutputError, what="runtime_cache", where=str(tmp_path / "cache")):
        runtime.close()
    library.takes_cache = False
    with raises(DeviceError, what="runtime_cache", found="it does not say why"):
        open_rtx()


def test_what_was_compiled_is_saved_while_the_runtime_is_open(
    open_rtx: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, now = tmp_path / "cache", [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with open_rtx(runtime_cache=path) as runtime:
        assert not path.exists()
        assert_sums(runtime, rows(1))
        assert path.read_bytes() == b"+kernels"
        path.unlink()
        assert_sums(runtime, rows(1))
        now[0] += engine_cache.SAVE_EVERY_S
        assert_sums(runtime, rows(1))
        assert not path.exists(), "nothing is new"
        now[0] += engine_cache.SAVE_EVERY_S - 1
        assert_sums(runtime, rows(2))
        assert path.exists()
        path.unlink()
        assert_sums(runtime, rows(3))
        assert not path.exists(), "it was saved just now"
        now[0] += engine_cache.SAVE_EVERY_S
        assert_sums(runtime, rows(3))
        assert path.exists()


def test_what_was_compiled_is_saved_when_nothing_runs(
    open_rtx: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_cache, "SAVE_EVERY_S", 0.0)
    calls = [rows(1 + seed % 8, seed) for seed in range(80)]
    saves = []
    with open_rtx(runtime_cache=tmp_path / "cache", shapes_kept=1) as runtime:
        cache: Any = runtime._cache
        save = cache.save

        def noted() -> None:
            saves.append(len(runtime._running))
            save()

        monkeypatch.setattr(cache, "save", noted)
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(runtime.run, calls))
    for outputs, feeds in zip(found, calls, strict=True):
        np.testing.assert_array_equal(outputs["y"], feeds["x"].sum(1))
    assert len(saves) > 8
    assert set(saves[:-1]) == {1}, "who saves, alone"


def bundle_of(kind: type[EngineRuntime], folder: Path, **options: Any) -> Any:
    """A stand-in for a bundle with the engine in a folder."""
    rtx = kind.backend == "tensorrt-rtx"
    built = {"gpu": "Fake GPU", "compute_capability": "8.9", "hardware_compatibility": "none"}
    artifact = Artifact(
        format=kind.backend, precision="fp32", files=(FileRecord.of(folder, "x.engine"),), inputs=INPUTS,
        outputs=OUTPUTS, pixels=PixelFormat(), axes={}, options=options, validation={},
        tools={"tensorrt_rtx" if rtx else "tensorrt": "1.0"},
        hardware={
            "platform": f"{platform.system()} {platform.machine()}",
            **({"compute_capabilities": ["portable"]} if rtx else built),
        },
    )  # fmt: skip
    content = (folder / "x.engine").read_bytes()
    return types.SimpleNamespace(path=folder, artifact=lambda *_: artifact, read=lambda _: content)


def test_compiled_kernels_are_kept_for_the_user_(
    open_engine: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_engine() as runtime:
        kind = type(runtime)
    monkeypatch.setenv("VITDEPLOY_CACHE", str(tmp_path / "kept"))
    named = tmp_path.with_name(f"{tmp_path.name}-named")  # outside the bundle
    opened: dict[str, Any] = {
        "bundle": bundle_of(kind, tmp_path), "options": EngineRuntimeOptions(), "precision": "fp32", "device": "cuda",
    }  # fmt: skip
    if kind.backend == "tensorrt":
        kind.from_bundle(**opened).close()
        assert not (tmp_path / "kept").exists()
        return
    for times in (1, 2):
        with kind.from_bundle(**opened) as runtime:
            where = runtime.details["runtime_cache"]
        (kept,) = (tmp_path / "kept" / "tensorrt-rtx").iterdir()
        assert (str(kept), kept.read_bytes()) == (where, b"+kernels" * times)
    with kind.from_bundle(**{**opened, "options": EngineRuntimeOptions(runtime_cache=False)}) as runtime:
        assert runtime.details["runtime_cache"] is None
    with kind.from_bundle(**{**opened, "options": EngineRuntimeOptions(runtime_cache=named)}) as runtime:
        assert runtime.details["runtime_cache"] == str(named)
    assert kept.read_bytes() == b"+kernels" * 2
    kept.write_bytes(b"broken")
    kind.from_bundle(**opened).close()
    assert kept.read_bytes() == b"+kernels"
    monkeypatch.setenv("VITDEPLOY_CACHE", str(tmp_path / "x.engine"))  # no folder
    with kind.from_bundle(**opened) as runtime:
        assert runtime.details["runtime_cache"] is None


@pytest.mark.parametrize("given", [True, False])
def test_what_an_engine_was_built_with_says_what_it_may(
    open_engine: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: bool
) -> None:
    monkeypatch.setenv("VITDEPLOY_CACHE", str(tmp_path / "kept"))
    (tmp_path / "model.onnx").write_text("2")
    with open_engine() as runtime:
        kind = type(runtime)
    bundle = bundle_of(kind, tmp_path, version_compatible=given, refit=given)
    with kind.from_bundle(bundle, EngineRuntimeOptions(), precision="fp32", device="cuda:1") as runtime:
        assert runtime.library.host_code is given
        if given:
            runtime.refit(tmp_path / "model.onnx")
        else:
            with raises(UsageError, what="refit"):
                runtime.refit(tmp_path / "model.onnx")


def test_a_stripped_engine_is_not_given_weights_of_another_artifact(open_engine: Open, tmp_path: Path) -> None:
    with open_engine() as runtime:
        kind = type(runtime)
    bundle = bundle_of(kind, tmp_path, strip_weights=True, onnx_sha256=["0" * 64])
    with raises(BundleError, where=str(tmp_path / "x.engine"), expected=["0" * 64]):
        kind.from_bundle(bundle, EngineRuntimeOptions(), precision="fp32", device="cuda:1")


def on_the_gpu(count: int, seed: int = 0) -> tuple[dict[str, OnTheGpu], dict[str, OnTheGpu]]:
    """Inputs, and room for the results."""
    results = aligned(np.full(count, np.nan, np.float32))
    return {"x": OnTheGpu(aligned(rows(count, seed)["x"]))}, {"y": OnTheGpu(results)}


@pytest.mark.parametrize("graphs", [True, False])
def test_arrays_on_the_gpu_are_used_where_they_lie(open_engine: Open, cuda: FakeCuda, graphs: bool) -> None:
    with open_engine(cuda_graphs=graphs) as runtime:
        assert_sums(runtime, rows(3))
        copies = cuda.copies
        for seed in range(3):
            feeds, results = on_the_gpu(3, seed)
            runtime.run_device(feeds, results)
            np.testing.assert_array_equal(results["y"].array, feeds["x"].array.sum(1))
            _, stream = runtime.library.engine.executed[-1]
            for array in (feeds["x"], results["y"]):
                assert array.streams == [-1, stream], "what is queued there is waited for, by the one that works on it"
        assert cuda.copies == copies
        assert runtime.library.engine.contexts == 1
        kept = results["y"].array.copy()
        for seed in range(3, 6):  # in its own memory again
            assert_sums(runtime, rows(3, seed))
        np.testing.assert_array_equal(results["y"].array, kept)


def test_arrays_of_torch_and_axes_of_one_element(open_engine: Open) -> None:
    with open_engine() as runtime:
        x, y = (torch.from_numpy(aligned(array)) for array in (rows(1)["x"], np.zeros(1, np.float32)))
        runtime.run_device({"x": OnTheGpu(x)}, {"y": OnTheGpu(y)})
        np.testing.assert_array_equal(y.numpy(), x.numpy().sum(1))
        one = np.lib.stride_tricks.as_strided(aligned(rows(1)["x"]), (1, 4), (800, 4))
        runtime.run_device({"x": OnTheGpu(one)}, {"y": OnTheGpu(y)})
        np.testing.assert_array_equal(y.numpy(), one.sum(1))


def test_the_plan_outlives_what_the_caller_did_wrong(open_engine: Open, cuda: FakeCuda) -> None:
    """Here: to give an output of another shape, which only the engine knows."""
    with open_engine(outputs=(TensorSpec("y", "float32", ("other",)),)) as runtime:
        for seed in range(2):
            assert_sums(runtime, rows(3, seed))
        kept = len(cuda.live)
        feeds, results = on_the_gpu(3)[0], on_the_gpu(2)[1]
        with raises(UsageError, what="y", expected=(3,), found=(2,)):
            runtime.run_device(feeds, results)
        assert len(cuda.live) == kept
        assert_sums(runtime, rows(3, 2))
        assert runtime.library.engine.contexts == 1


def test_read_only_arrays_are_inputs_alone(open_engine: Open) -> None:
    x, y = aligned(rows(3)["x"]), aligned(np.zeros(3, np.float32))
    x.flags.writeable = False
    with open_engine() as runtime:
        runtime.run_device({"x": OnTheGpu(x)}, {"y": OfAnOlderLibrary(y)})
        np.testing.assert_array_equal(y, x.sum(1))
        immutable = OfAnOlderLibrary(y)
        immutable.read_only = True  # as JAX's arrays say
        frozen = aligned(y)
        frozen.flags.writeable = False
        for array in (OnTheGpu(frozen), immutable):
            with raises(UsageError, what="y", found="read-only"):
                runtime.run_device({"x": OnTheGpu(x)}, {"y": array})


def test_arrays_of_the_host_that_are_read_only() -> None:
    array = np.zeros(3, np.float32)
    assert view("x", array, None, writable=True).address == array.ctypes.data
    array.flags.writeable = False
    assert view("x", array, None).address == array.ctypes.data
    with raises(UsageError, what="x", found="read-only"):
        view("x", array, None, writable=True)


def test_a_capsule_of_a_later_dlpack_is_refused() -> None:
    array = OnTheGpu(aligned(np.zeros(3, np.float32)))
    capsule = array.__dlpack__(stream=-1, max_version=(1, 0))
    version = ctypes.c_uint32.from_address(device_arrays._capsule_pointer(capsule, b"dltensor_versioned"))
    assert version.value == 1
    version.value = 2
    array.__dlpack__ = lambda **_: capsule  # type: ignore[method-assign]
    with raises(UsageError, what="x", expected="a capsule", found=re.compile(r"DLPack 2\.\d+")):
        view("x", array, 1)
    version.value = 1


def test_what_is_queued_on_arrays_is_waited_for(cuda: FakeCuda) -> None:
    done = []

    class Queued(OnTheGpu):
        def __dlpack__(self, *, stream: int, max_version: tuple[int, int]) -> object:
            if stream != -1:
                assert cuda.device == 1
                cuda.submit(stream, lambda: done.append(stream))
            return super().__dlpack__(stream=stream, max_version=max_version)

    arrays = [view("x", Queued(aligned(rows(3)["x"])), 1) for _ in range(2)]
    wait_for(arrays, 1)
    assert len(done) == 2
    assert len(set(done)) == 1


def test_the_device_before_is_the_one_after(open_engine: Open, cuda: FakeCuda) -> None:
    """Also where what was asked for fails; of the main thread the fixture sees to it."""

    def work() -> int:
        cuda.cudaSetDevice(0)
        runtime = open_engine()
        assert_sums(runtime, rows(2))
        runtime.run_device(*on_the_gpu(2))
        runtime.library.engine.fails = True
        with raises(DeviceError, what="run"):
            runtime.run(rows(3))
        runtime.close()
        return cuda.device

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(work).result() == 0
    cuda.cudaSetDevice(1)
    with open_engine() as runtime:
        assert_sums(runtime, rows(2))
    assert cuda.device == 1
    cuda.cudaSetDevice(0)


def test_threads_with_arrays_on_the_gpu(open_engine: Open) -> None:
    calls = [on_the_gpu(1 + seed % 3, seed) for seed in range(40)]
    with open_engine() as runtime, ThreadPoolExecutor(4) as pool:
        for _ in pool.map(lambda call: runtime.run_device(*call), calls):
            pass
    for feeds, results in calls:
        np.testing.assert_array_equal(results["y"].array, feeds["x"].array.sum(1))


WIDE = np.zeros((3, 8), np.float32)
REFUSED: list[tuple[Any, dict[str, Any]]] = [
    ([[1.0] * 4] * 3, {"expected": "DLPack"}),
    (WIDE[:, :4], {"expected": "cuda:1", "found": (1, 0)}),
    (OnTheGpu(WIDE[:, :4], (2, 0)), {"expected": "cuda:1", "found": (2, 0)}),
    (OnTheGpu(WIDE[:, :4]), {"expected": "contiguous", "found": [8, 1]}),
    (OnTheGpu(aligned(WIDE[:, :4], 4)), {"expected": 256}),
    (OnTheGpu(aligned(WIDE[:, :5])), {"found": ("float32", (3, 5))}),
    (OnTheGpu(aligned(WIDE[:0, :4])), {"found": ("float32", (0, 4))}),
    (OnTheGpu(aligned(WIDE[:, :4].astype(np.float16))), {"found": ("float16", (3, 4))}),
    (OnTheGpu(torch.zeros(3, 4, dtype=torch.bfloat16)), {"expected": "a type of numpy", "found": (4, 16, 1)}),
    (OnTheGpu(torch.zeros(3, 4, requires_grad=True)), {"expected": "a capsule", "found": re.compile("gradient")}),
    (
        OnTheGpu(types.SimpleNamespace(__dlpack__=lambda **_: object())),
        {"expected": "a capsule", "found": re.compile("^PyCapsule_GetPointer")},
    ),
]


@pytest.mark.parametrize(("array", "fields"), REFUSED)
def test_arrays_that_are_refused(open_engine: Open, array: Any, fields: dict[str, Any]) -> None:
    _, results = on_the_gpu(3)
    with open_engine() as runtime:
        with raises(UsageError, what="x", **fields):
            runtime.run_device({"x": array}, results)
        assert np.isnan(results["y"].array).all()
        assert_sums(runtime, rows(3))


def test_results_that_are_refused(open_engine: Open) -> None:
    feeds, results = on_the_gpu(3)
    with open_engine() as runtime:
        wrong: list[tuple[dict[str, OnTheGpu], str, object]] = [
            ({}, "outputs", []),
            ({"z": results["y"]}, "outputs", ["z"]),
            ({"y": on_the_gpu(2)[1]["y"]}, "y", ("float32", (2,))),
            ({"y": OnTheGpu(aligned(np.zeros(3)))}, "y", ("float64", (3,))),
        ]
        for given, what, found in wrong:
            with raises(UsageError, what=what, found=found):
                runtime.run_device(feeds, given)
        for names in ({}, {"z": feeds["x"]}):
            with raises(UsageError, what="inputs", expected=["x"], found=list(names)):
                runtime.run_device(names, results)
        with raises(UsageError, what="shapes", found={"x": (9, 4)}):
            runtime.run_device(*on_the_gpu(9))
        runtime.library.engine.fails = True
        with raises(DeviceError, what="run", found="the kernel cannot run"):
            runtime.run_device(feeds, results)
        runtime.library.engine.fails = False
        runtime.run_device(feeds, results)
        np.testing.assert_array_equal(results["y"].array, feeds["x"].array.sum(1))
    with raises(UsageError, what="runtime", found="closed"):
        runtime.run_device(feeds, results)


@pytest.mark.parametrize("value", [0, -1, True, 1.5, None])
def test_shapes_kept_must_be_a_number(open_engine: Open, value: Any) -> None:
    with raises(UsageError, what="shapes_kept", found=value):
        open_engine(shapes_kept=value)


@pytest.mark.parametrize(
    ("device", "error", "found"), [("cpu", DeviceError, "cpu"), ("cuda:2", DeviceError, 2), ("gpu", UsageError, "gpu")]
)
def test_a_device_that_is_not_there(open_engine: Open, device: str, error: type[VitDeployError], found: object) -> None:
    with raises(error, what="device", found=found):
        open_engine(device=device)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_does_not_touch_the_gpu(open_engine: Open, cuda: FakeCuda) -> None:
    with open_engine() as runtime:
        assert_sums(runtime, rows(4))
        before = len(cuda.live)

        def closes() -> int:
            with runtime:
                pass
            return len(cuda.live)

        with runtime._gate, runtime._plans._lock:
            assert in_child(closes) == Outcome(before, 0)
            refused = in_child(lambda: runtime.run(rows(4))["y"].tolist())
        assert "CUDA does not work in a forked process" in refused.answer
        assert_sums(runtime, rows(4))
