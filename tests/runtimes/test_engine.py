"""What the runtime of engines does with CUDA and the library, seen on a fake of both; refusals, on the real ones."""

from __future__ import annotations

import platform
import types
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from fake_cuda import FakeCuda, OnTheGpu, aligned, fake_library
from vitdeploy import gpu
from vitdeploy.errors import BundleError, DeviceError, UsageError
from vitdeploy.manifest import Artifact, FileRecord
from vitdeploy.runtimes import cuda_memory
from vitdeploy.runtimes.engine import EngineRuntime
from vitdeploy.specs import PixelFormat, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Open = Callable[..., EngineRuntime]

INPUTS = (TensorSpec("x", "float32", ("batch", 4)),)
OUTPUTS = (TensorSpec("y", "float32", ("batch",)),)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda()
    for module in (gpu, cuda_memory):
        monkeypatch.setattr(module, "cuda_runtime", lambda: fake)
    return fake


@pytest.fixture(params=["tensorrt", "tensorrt-rtx"])
def open_engine(request: pytest.FixtureRequest, cuda: FakeCuda, tmp_path: Path) -> Open:
    class Fake(EngineRuntime):
        backend = request.param
        library = fake_library(cuda, rtx=request.param == "tensorrt-rtx")

    (tmp_path / "x.engine").write_bytes(b"an engine")

    def opened(inputs: Any = INPUTS, outputs: Any = OUTPUTS, weights: Any = None, **options: Any) -> EngineRuntime:
        return Fake(tmp_path / "x.engine", inputs, outputs, weights, **options)

    return opened


def rows(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(seed).standard_normal((count, 4), np.float32)}


def assert_sums(runtime: EngineRuntime, feeds: dict[str, np.ndarray]) -> None:
    np.testing.assert_array_equal(runtime.run(feeds)["y"], feeds["x"].sum(1))


def test_every_shape_has_a_context_and_the_profile_that_is_nearest(open_engine: Open, cuda: FakeCuda) -> None:
    with open_engine() as runtime:
        for count in (1, 3, 8, 3, 1, 8):
            assert_sums(runtime, rows(count, count))
        engine = runtime.library.engine
        assert engine.contexts == 3
        assert set(engine.executed) == {0, 1}
        assert engine.executed[0] == 0
        assert runtime.details["device"] == "cuda:0 Fake GPU"
        assert runtime.details["profiles"] == 2
    assert cuda.live == {}


def test_what_is_recorded_once_is_replayed(open_engine: Open, cuda: FakeCuda) -> None:
    with open_engine() as runtime:
        for seed in range(5):
            assert_sums(runtime, rows(4, seed))
        records_itself = runtime.backend == "tensorrt-rtx"
        # The first run is one that nothing records, then one that is recorded; the library's own graphs are not seen.
        assert len(runtime.library.engine.executed) == (6 if records_itself else 2)
        if records_itself:
            assert runtime.library.engine.config.cuda_graph_strategy == "whole"


def test_without_graphs_every_run_is_executed(open_engine: Open) -> None:
    with open_engine(cuda_graphs=False) as runtime:
        for seed in range(5):
            assert_sums(runtime, rows(4, seed))
        assert len(runtime.library.engine.executed) == 6
        assert getattr(runtime.library.engine.config, "cuda_graph_strategy", None) is None


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
    assert cuda.live == {}


def test_threads_do_not_share_a_context(open_engine: Open, cuda: FakeCuda) -> None:
    calls = [rows(1 + seed % 3, seed) for seed in range(60)]
    with open_engine() as runtime:
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(runtime.run, calls))
        assert runtime.library.engine.contexts <= 4 * 3
    for outputs, feeds in zip(found, calls, strict=True):
        np.testing.assert_array_equal(outputs["y"], feeds["x"].sum(1))
    assert cuda.live == {}


def test_what_fails_says_why_and_leaves_nothing(open_engine: Open, cuda: FakeCuda) -> None:
    with open_engine() as runtime:
        assert_sums(runtime, rows(2))
        kept = len(cuda.live)
        runtime.library.engine.fails = True
        with pytest.raises(DeviceError, match=r"the engine must run: the kernel cannot run$"):
            runtime.run(rows(3))
        assert len(cuda.live) == kept
        runtime.library.engine.fails = False
        cuda.room = 1
        with pytest.raises(DeviceError, match=r"CUDA must reserve memory of the GPU: out of memory \(error 2\)"):
            runtime.run(rows(3))
        assert len(cuda.live) == kept
        cuda.room = 100
        assert_sums(runtime, rows(3))
    assert cuda.live == {}


def test_a_shape_that_no_profile_takes(open_engine: Open) -> None:
    with open_engine() as runtime, pytest.raises(UsageError) as caught:
        runtime.run(rows(9))
    assert str(caught.value) == (
        "the engine takes 'x' (1, 4) to (1, 4); or 'x' (1, 4) to (8, 4), got 'x' (9, 4); give what it takes, or build "
        "it with another --batch"
    )


def test_an_engine_of_another_model_is_refused(open_engine: Open) -> None:
    for specs in (
        {"inputs": (TensorSpec("z", "float32", ("batch", 4)),)},
        {"inputs": (TensorSpec("x", "float16", ("batch", 4)),)},
        {"inputs": (TensorSpec("x", "float32", ("batch", 5)),)},
        {"outputs": (TensorSpec("y", "float32", ("batch", 1)),)},
        {"outputs": ()},
    ):
        with pytest.raises(BundleError, match=r"must take and give what its manifest says.*build it again"):
            open_engine(**specs)


def test_an_engine_that_does_not_load_is_a_device_error(open_engine: Open, tmp_path: Path) -> None:
    open_engine().close()
    (tmp_path / "x.engine").write_bytes(b"broken")
    with pytest.raises(DeviceError, match=r"x\.engine must load with .*: this is no engine; build it again"):
        open_engine()


def test_what_the_library_says_of_an_engine_is_told(open_engine: Open) -> None:
    with open_engine() as runtime:
        library, rtx = runtime.library, runtime.backend == "tensorrt-rtx"
    library.validity = (2, 3)
    if rtx:
        with pytest.raises(DeviceError, match="is not: VERSION_MISMATCH, UNSUPPORTED_CC; build it again"):
            open_engine()
    else:
        open_engine().close()


def test_a_stripped_engine_is_given_its_weights(open_engine: Open, tmp_path: Path) -> None:
    with open_engine(weights=tmp_path / "model.onnx") as runtime:
        assert runtime.library.refitted == [str(tmp_path / "model.onnx")]
    with pytest.raises(DeviceError, match="must take the weights of"):
        open_engine(weights=tmp_path / "other.bin")


def test_the_runtime_cache_is_read_and_written(open_engine: Open, tmp_path: Path) -> None:
    path = tmp_path / "cache"
    with open_engine() as runtime:
        rtx = runtime.backend == "tensorrt-rtx"
    assert not path.exists()
    if not rtx:
        with pytest.raises(UsageError, match=r"tensorrt 1\.0 has no runtime_cache; leave it out"):
            open_engine(runtime_cache=path)
        return
    for times in (1, 2):
        with open_engine(runtime_cache=path) as runtime:
            assert runtime.details["runtime_cache"] == str(path)
        assert path.read_bytes() == b"+kernels" * times
    path.write_bytes(b"broken")
    with pytest.raises(DeviceError, match=r"cache must be a runtime cache of tensorrt-rtx 1\.0, is not: .*; remove it"):
        open_engine(runtime_cache=path)


def test_compiled_kernels_are_kept_for_the_user_(
    open_engine: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_engine() as runtime:
        kind = type(runtime)
    monkeypatch.setenv("VITDEPLOY_CACHE", str(tmp_path / "kept"))
    rtx = kind.backend == "tensorrt-rtx"
    built = {"gpu": "Fake GPU", "compute_capability": "8.9", "hardware_compatibility": "none"}
    artifact = Artifact(
        format=kind.backend, precision="fp32", files=(FileRecord.of(tmp_path, "x.engine"),), inputs=INPUTS,
        outputs=OUTPUTS, pixels=PixelFormat(), axes={}, options={}, validation={},
        tools={"tensorrt_rtx" if rtx else "tensorrt": "1.0"},
        hardware={
            "platform": f"{platform.system()} {platform.machine()}",
            **({"compute_capabilities": ["portable"]} if rtx else built),
        },
    )  # fmt: skip
    bundle: Any = types.SimpleNamespace(
        path=tmp_path, artifact=lambda *_: artifact, verified=lambda _: [tmp_path / "x.engine"]
    )
    if not rtx:
        kind.from_bundle(bundle, precision="fp32", device="cuda").close()
        assert not (tmp_path / "kept").exists()
        return
    for times in (1, 2):
        with kind.from_bundle(bundle, precision="fp32", device="cuda") as runtime:
            where = runtime.details["runtime_cache"]
        (kept,) = (tmp_path / "kept" / "tensorrt-rtx").iterdir()
        assert (str(kept), kept.read_bytes()) == (where, b"+kernels" * times)
    with kind.from_bundle(bundle, precision="fp32", device="cuda", runtime_cache=False) as runtime:
        assert runtime.details["runtime_cache"] is None
    monkeypatch.setenv("VITDEPLOY_CACHE", str(tmp_path / "x.engine"))  # no folder
    with kind.from_bundle(bundle, precision="fp32", device="cuda") as runtime:
        assert runtime.details["runtime_cache"] is None
    assert kept.read_bytes() == b"+kernels" * 2


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
            for array in (feeds["x"], results["y"]):
                assert cuda.live[array.streams[-1]] == "stream", "what is queued there is waited for"
            assert feeds["x"].streams[0] == -1
        assert cuda.copies == copies
        assert runtime.library.engine.contexts == 1
        kept = results["y"].array.copy()
        for seed in range(3, 6):  # in its own memory again
            assert_sums(runtime, rows(3, seed))
        np.testing.assert_array_equal(results["y"].array, kept)
    assert cuda.live == {}


def test_arrays_of_torch_and_axes_of_one_element(open_engine: Open) -> None:
    with open_engine() as runtime:
        x, y = (torch.from_numpy(aligned(array)) for array in (rows(1)["x"], np.zeros(1, np.float32)))
        runtime.run_device({"x": OnTheGpu(x)}, {"y": OnTheGpu(y)})
        np.testing.assert_array_equal(y.numpy(), x.numpy().sum(1))
        one = np.lib.stride_tricks.as_strided(aligned(rows(1)["x"]), (1, 4), (800, 4))
        runtime.run_device({"x": OnTheGpu(one)}, {"y": OnTheGpu(y)})
        np.testing.assert_array_equal(y.numpy(), one.sum(1))


def test_threads_with_arrays_on_the_gpu(open_engine: Open, cuda: FakeCuda) -> None:
    calls = [on_the_gpu(1 + seed % 3, seed) for seed in range(40)]
    with open_engine() as runtime, ThreadPoolExecutor(4) as pool:
        for _ in pool.map(lambda call: runtime.run_device(*call), calls):
            pass
    for feeds, results in calls:
        np.testing.assert_array_equal(results["y"].array, feeds["x"].array.sum(1))
    assert cuda.live == {}


WIDE = np.zeros((3, 8), np.float32)
REFUSED: list[tuple[Any, str]] = [
    ([[1.0] * 4] * 3, "'x' must be an array that is shared through DLPack, got list"),
    (WIDE[:, :4], "'x' must be on cuda:0, is on number 0 of DLPack's device type 1; move it there, or call run"),
    (OnTheGpu(WIDE[:, :4], (2, 1)), "'x' must be on cuda:0, is on number 1 of DLPack's device type 2"),
    (OnTheGpu(WIDE[:, :4]), r"'x' must be contiguous, its strides are \[8, 1\]; copy it"),
    (OnTheGpu(aligned(WIDE[:, :4], 4)), "'x' must begin at a multiple of 256 bytes"),
    (OnTheGpu(aligned(WIDE[:, :5])), r"expected float32 'x' \(batch, 4\), got float32 \(3, 5\)"),
    (OnTheGpu(aligned(WIDE[:0, :4])), r"expected float32 'x' \(batch, 4\), got float32 \(0, 4\)"),
    (OnTheGpu(aligned(WIDE[:, :4].astype(np.float16))), r"expected float32 'x' \(batch, 4\), got float16 \(3, 4\)"),
    (
        OnTheGpu(torch.zeros(3, 4, dtype=torch.bfloat16)),
        "must be of a type that numpy has, is of DLPack's type 4 with 16",
    ),
    (OnTheGpu(torch.zeros(3, 4, requires_grad=True)), "'x' must be shared through DLPack, is not: .*gradient"),
    (
        OnTheGpu(types.SimpleNamespace(__dlpack__=object)),
        "'x' must be shared through DLPack, is not: PyCapsule_GetPointer",
    ),
]


@pytest.mark.parametrize(("array", "message"), REFUSED)
def test_arrays_that_are_refused(open_engine: Open, cuda: FakeCuda, array: Any, message: str) -> None:
    _, results = on_the_gpu(3)
    with open_engine() as runtime:
        with pytest.raises(UsageError, match=message):
            runtime.run_device({"x": array}, results)
        assert np.isnan(results["y"].array).all()
        assert_sums(runtime, rows(3))
    assert cuda.live == {}


def test_results_that_are_refused(open_engine: Open, cuda: FakeCuda) -> None:
    feeds, results = on_the_gpu(3)
    with open_engine() as runtime:
        for wrong, message in (
            ({}, "outputs must be y, got none"),
            ({"z": results["y"]}, "outputs must be y, got z"),
            ({"y": on_the_gpu(2)[1]["y"]}, r"expected float32 'y' \(batch\), got float32 \(2,\) with batch=3; give an"),
            ({"y": OnTheGpu(aligned(np.zeros(3)))}, r"expected float32 'y' \(batch\), got float64 \(3,\) with batch=3"),
        ):
            with pytest.raises(UsageError, match=message):
                runtime.run_device(feeds, wrong)
        for names in ({}, {"z": feeds["x"]}):
            with pytest.raises(UsageError, match="inputs must be x, got"):
                runtime.run_device(names, results)
        with pytest.raises(UsageError, match="the engine takes 'x'"):
            runtime.run_device(*on_the_gpu(9))
        runtime.library.engine.fails = True
        with pytest.raises(DeviceError, match="the engine must run: the kernel cannot run"):
            runtime.run_device(feeds, results)
        runtime.library.engine.fails = False
        runtime.run_device(feeds, results)
        np.testing.assert_array_equal(results["y"].array, feeds["x"].array.sum(1))
    with pytest.raises(UsageError, match="this one is closed"):
        runtime.run_device(feeds, results)
    assert cuda.live == {}


@pytest.mark.parametrize("value", [0, -1, True, 1.5, None])
def test_shapes_kept_must_be_a_number(open_engine: Open, value: Any) -> None:
    with pytest.raises(UsageError, match="shapes_kept must be a whole number from 1 up"):
        open_engine(shapes_kept=value)


@pytest.mark.parametrize(
    ("device", "error", "message"),
    [
        ("cpu", DeviceError, "runs on an NVIDIA GPU alone, got device 'cpu'; give cuda, or cuda:N"),
        ("cuda:1", DeviceError, "device cuda:1 must be a GPU of this machine, which has 1: Fake GPU"),
        ("gpu", UsageError, "device must be one of cpu, cuda, cuda:N; got 'gpu'"),
    ],
)
def test_a_device_that_is_not_there(open_engine: Open, device: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        open_engine(device=device)
