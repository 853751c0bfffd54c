"""The contract of every backend."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bundles import CPU_BACKENDS, FLOAT32_TOLERANCE, make_feeds, reference, tiny_model, worst_difference, write_bundle
from engine_machines import gpu_marks
from raising import raises

from vitdeploy.bundle.bundle import Bundle
from vitdeploy.errors import BundleError, DeviceError, UsageError
from vitdeploy.models.signature import input_specs, output_specs
from vitdeploy.models.vit import VisionTransformer
from vitdeploy.runtimes import BACKENDS, open_runtime, runtime_class
from vitdeploy.runtimes.base import Runtime
from vitdeploy.runtimes.options import RuntimeOptions
from vitdeploy.specs import Task

# Each backend, and the file that it opens first.
CASES: dict[str, str] = {
    "torch": "model.safetensors",
    "torchscript": "torchscript/model_fp32.pt",
    "onnxruntime": "onnx/model.onnx",
    "onnxruntime-tensorrt": "onnx/model.onnx",
    "openvino": "openvino/model_fp32.xml",
    "tensorrt": "tensorrt/model_fp32.engine",
    "tensorrt-rtx": "tensorrt-rtx/model_fp32.engine",
}
# ONNX Runtime has no option to keep TensorRT from rounding products of float32 to 11 bits (TF32).
TOLERANCES = dict.fromkeys(CASES, FLOAT32_TOLERANCE) | {"onnxruntime-tensorrt": 2e-3}
MARKS = {name: gpu_marks(name) for name, row in BACKENDS.items() if row.device == "cuda"}
RUNS_HERE = [name for name in CASES if not any(mark.name == "skip" for mark in MARKS.get(name, ()))]

BY_BACKEND = pytest.mark.parametrize(
    "backend", [pytest.param(name, marks=MARKS.get(name, ())) for name in sorted(CASES)]
)


def test_every_backend_of_the_table_is_under_contract() -> None:
    assert set(CASES) == set(BACKENDS)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[Task, Bundle]:
    formats = {CASES[name].partition("/")[0] for name in RUNS_HERE if BACKENDS[name].artifact_formats}
    return {task: write_bundle(tmp_path_factory.mktemp("bundles"), task, formats=sorted(formats)) for task in Task}


@pytest.fixture(scope="module")
def models() -> dict[Task, VisionTransformer]:
    return {task: tiny_model(task) for task in Task}


@pytest.fixture(
    scope="module",
    params=[
        pytest.param((backend, task), marks=MARKS.get(backend, ()), id=f"{backend}-{task.name}")
        for backend in sorted(CASES)
        for task in Task
    ],
)
def opened(request: pytest.FixtureRequest, bundles: dict[Task, Bundle]) -> Iterator[tuple[Runtime, Task]]:
    backend, task = request.param
    with open_runtime(bundles[task], backend) as runtime:
        yield runtime, task


@pytest.fixture
def runtime(opened: tuple[Runtime, Task]) -> Runtime:
    return opened[0]


@pytest.fixture
def model(opened: tuple[Runtime, Task], models: dict[Task, VisionTransformer]) -> VisionTransformer:
    return models[opened[1]]


def test_it_states_the_inputs_and_outputs_of_the_model(runtime: Runtime, model: VisionTransformer) -> None:
    assert runtime.inputs == input_specs(model.config, model.task)
    assert runtime.outputs == output_specs(model)


def test_it_says_what_runs(runtime: Runtime) -> None:
    package = BACKENDS[runtime.backend].package
    assert runtime.details["engine"].startswith(f"{package} ")
    assert pickle.loads(pickle.dumps(runtime.details)) == runtime.details


@pytest.mark.parametrize("batch_size", [1, 2, 7])
def test_it_gives_what_it_states_and_what_the_reference_gives(
    runtime: Runtime, model: VisionTransformer, batch_size: int
) -> None:
    arrays = make_feeds(model, batch_size)
    outputs = runtime.run(arrays)
    assert [(name, str(value.dtype), value.shape) for name, value in outputs.items()] == [
        (spec.name, spec.dtype, (batch_size, *spec.shape[1:])) for spec in runtime.outputs
    ]
    assert worst_difference(outputs, reference(model, arrays)) <= TOLERANCES[runtime.backend]


@pytest.mark.parametrize(
    "change",
    [
        lambda arrays: {},
        lambda arrays: {**arrays, "pixels": 1},
        lambda arrays: {"pixels": arrays["pixel_values"]},
        lambda arrays: {0: 1},
    ],
)
def test_other_names_than_those_of_the_inputs_are_refused(
    runtime: Runtime, model: VisionTransformer, change: Callable[[Mapping[str, Any]], Any]
) -> None:
    given, names = change(make_feeds(model, 2)), [spec.name for spec in runtime.inputs]
    with raises(UsageError, what="inputs", expected=names, found=list(given)):
        runtime.run(given)
    with raises(UsageError, what="inputs", expected=names):
        runtime.run(next(iter(make_feeds(model, 2).values())))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda pixels: pixels.tolist(), "list"),
        (lambda pixels: None, "NoneType"),
        (lambda pixels: np.float32(1), "float32"),
        (lambda pixels: pixels.astype(np.float64), ("float64", (2, 3, 32, 32))),
        (lambda pixels: pixels.astype(np.float16), ("float16", (2, 3, 32, 32))),
        (lambda pixels: pixels.astype(np.uint8), ("uint8", (2, 3, 32, 32))),
        (lambda pixels: pixels.astype(object), ("object", (2, 3, 32, 32))),
        (lambda pixels: pixels.astype(pixels.dtype.newbyteorder()), re.compile("[<>]f4")),
        (lambda pixels: pixels[0], ("float32", (3, 32, 32))),
        (lambda pixels: pixels[None], ("float32", (1, 2, 3, 32, 32))),
        (lambda pixels: pixels[:, :, :-1], ("float32", (2, 3, 31, 32))),
        (lambda pixels: pixels.transpose(0, 2, 3, 1), ("float32", (2, 32, 32, 3))),
        (lambda pixels: pixels[:0], ("float32", (0, 3, 32, 32))),
        (lambda pixels: np.array(1, np.float32), ("float32", ())),
    ],
)
def test_another_type_or_shape_than_stated_is_refused(
    runtime: Runtime, model: VisionTransformer, change: Callable[[np.ndarray], Any], found: object
) -> None:
    arrays = make_feeds(model, 2)
    with raises(UsageError, what="pixel_values", found=found):
        runtime.run({**arrays, "pixel_values": change(arrays["pixel_values"])})


@BY_BACKEND
def test_a_free_axis_has_one_size_in_a_call(
    bundles: dict[Task, Bundle], models: dict[Task, VisionTransformer], backend: str
) -> None:
    task = Task.MASKED_IMAGE_MODELING
    arrays = make_feeds(models[task], 3)
    with (
        open_runtime(bundles[task], backend) as runtime,
        raises(UsageError, what="bool_masked_pos", expected=runtime.inputs[1], found=("bool", (2, 16))),
    ):
        runtime.run({**arrays, "bool_masked_pos": arrays["bool_masked_pos"][:2]})


def read_only(array: np.ndarray) -> np.ndarray:
    array = array.copy()
    array.flags.writeable = False
    return array


def unaligned(array: np.ndarray) -> np.ndarray:
    memory = np.zeros(array.nbytes + 1, np.uint8)
    memory[1:] = np.frombuffer(array.tobytes(), np.uint8)
    return memory[1:].view(array.dtype).reshape(array.shape)


@pytest.mark.parametrize(
    "lay_out",
    [
        lambda array: np.repeat(array, 2, axis=-1)[..., ::2],
        lambda array: np.ascontiguousarray(array[::-1])[::-1],
        np.asfortranarray,
        read_only,
        lambda array: np.broadcast_to(array[:1], array.shape),
        unaligned,
    ],
    ids=["strided", "reversed", "fortran", "read-only", "broadcast", "unaligned"],
)
def test_any_layout_in_memory_will_do_and_stays_as_it_is(
    runtime: Runtime, model: VisionTransformer, lay_out: Callable[[np.ndarray], np.ndarray]
) -> None:
    arrays = {name: lay_out(array) for name, array in make_feeds(model, 3).items()}
    plain = {name: np.array(array, order="C") for name, array in arrays.items()}
    flags = {name: str(array.flags) for name, array in arrays.items()}
    for name, value in runtime.run(arrays).items():
        np.testing.assert_array_equal(value, runtime.run(plain)[name])
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, plain[name])
        assert str(array.flags) == flags[name]


def test_outputs_are_the_callers_own(runtime: Runtime, model: VisionTransformer) -> None:
    arrays = make_feeds(model, 2)
    outputs = runtime.run(arrays)
    kept = {name: value.copy() for name, value in outputs.items()}
    others = runtime.run(make_feeds(model, 2, seed=1))
    for name, value in outputs.items():
        assert type(value) is np.ndarray
        assert value.flags.c_contiguous
        np.testing.assert_array_equal(value, kept[name])
        assert not np.array_equal(value, others[name])
        assert not any(np.shares_memory(value, array) for array in (*arrays.values(), *others.values()))
        value[:] = 0
    again = runtime.run(arrays)
    for name, value in again.items():
        np.testing.assert_array_equal(value, kept[name])


def test_threads_get_what_a_single_one_gets(runtime: Runtime, model: VisionTransformer) -> None:
    calls = [make_feeds(model, 1 + seed % 3, seed) for seed in range(24)]
    serial = [runtime.run(arrays) for arrays in calls]
    with ThreadPoolExecutor(4) as pool:
        parallel = list(pool.map(runtime.run, calls))
    for found, want in zip(parallel, serial, strict=True):
        assert worst_difference(found, want) <= TOLERANCES[runtime.backend]


def on_its_device(runtime: Runtime, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Copies of the arrays where the runtime takes them, as torch's tensors."""
    device = "cpu" if runtime.gpu is None else f"cuda:{runtime.gpu}"
    return {name: torch.from_numpy(array.copy()).to(device) for name, array in arrays.items()}


def test_arrays_on_its_device_are_read_and_written_where_they_lie(runtime: Runtime, model: VisionTransformer) -> None:
    for batch_size in (1, 3, 1):
        arrays = make_feeds(model, batch_size, seed=batch_size)
        expected = runtime.run(arrays)
        feeds = on_its_device(runtime, arrays)
        results = on_its_device(runtime, {name: np.full_like(array, 7) for name, array in expected.items()})
        runtime.run_device(feeds, results)
        assert worst_difference({name: each.cpu().numpy() for name, each in results.items()}, expected) == 0
    with raises(UsageError, what="outputs", found=[]):
        runtime.run_device(feeds, {})
    name = runtime.outputs[0].name
    with raises(UsageError, what=name, expected=runtime.outputs[0]):
        runtime.run_device(feeds, {**results, name: torch.cat([results[name]] * 2)})
    with raises(UsageError, what="pixel_values", expected="contiguous"):
        runtime.run_device({**feeds, "pixel_values": feeds["pixel_values"].transpose(2, 3)}, results)
    if runtime.gpu is None:
        written = {name: np.empty_like(array) for name, array in expected.items()}
        runtime.run_device(arrays, written)
        assert worst_difference(written, expected) == 0
    else:
        with raises(UsageError, what="pixel_values", expected="cuda:0"):
            runtime.run_device(arrays, results)


@BY_BACKEND
def test_closing(bundles: dict[Task, Bundle], models: dict[Task, VisionTransformer], backend: str) -> None:
    arrays = make_feeds(models[Task.CLASSIFICATION], 1)
    with open_runtime(bundles[Task.CLASSIFICATION], backend) as runtime:
        outputs = runtime.run(arrays)
    with raises(UsageError, what="runtime", found="closed"):
        runtime.run(arrays)
    runtime.close()
    assert np.isfinite(outputs["logits"]).all()
    with pytest.raises(KeyError), open_runtime(bundles[Task.CLASSIFICATION], backend) as runtime:
        raise KeyError
    with raises(UsageError, what="runtime", found="closed"):
        runtime.run(arrays)


@BY_BACKEND
def test_two_runtimes_do_not_disturb_each_other(
    bundles: dict[Task, Bundle], models: dict[Task, VisionTransformer], backend: str
) -> None:
    arrays = make_feeds(models[Task.CLASSIFICATION], 2)
    with open_runtime(bundles[Task.CLASSIFICATION], backend) as first:
        with open_runtime(bundles[Task.CLASSIFICATION], backend) as second:
            want = second.run(arrays)
        assert worst_difference(first.run(arrays), want) <= TOLERANCES[backend]


@pytest.mark.parametrize("duplicate", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_runtime_stays_in_its_process(runtime: Runtime, duplicate: Callable[[object], object]) -> None:
    with pytest.raises(TypeError):
        duplicate(runtime)


@BY_BACKEND
@pytest.mark.parametrize("option", ["threads", "path", "model"])
def test_an_unknown_option_is_answered_with_the_known_ones(
    bundles: dict[Task, Bundle], backend: str, option: str
) -> None:
    known = tuple(field.name for field in dataclasses.fields(runtime_class(backend).options_type))
    assert known
    with raises(UsageError, what=option, expected=known):
        open_runtime(bundles[Task.CLASSIFICATION], backend, {option: 1})
    with raises(UsageError, what="options", found=RuntimeOptions()):
        open_runtime(bundles[Task.CLASSIFICATION], backend, RuntimeOptions())


@BY_BACKEND
@pytest.mark.parametrize(
    "device", ["", "CPU", "cpu:", "cpu:x", "cpu:0", "cuda:", "cuda:x", "cuda:-1", "meta", "banana"]
)
def test_a_malformed_device_is_a_usage_error(bundles: dict[Task, Bundle], backend: str, device: str) -> None:
    with raises(UsageError, what="device", found=device):
        open_runtime(bundles[Task.CLASSIFICATION], backend, device=device)


@BY_BACKEND
@pytest.mark.parametrize("device", ["cuda:99", f"cuda:{10**30}"])
def test_a_device_that_is_not_there_is_a_device_error(bundles: dict[Task, Bundle], backend: str, device: str) -> None:
    with raises(DeviceError):
        open_runtime(bundles[Task.CLASSIFICATION], backend, device=device)


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_cuda_without_a_gpu_is_a_device_error(bundles: dict[Task, Bundle], backend: str) -> None:
    if BACKENDS[backend].package == "torch":
        import torch

        present = torch.cuda.is_available()
    else:
        import onnxruntime

        built = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
        present = built and BACKENDS[backend].package == "onnxruntime"
    if present:
        pytest.skip("this machine has what the test wants to be absent; test_gpu.py covers it")
    with raises(DeviceError) as caught:
        open_runtime(bundles[Task.CLASSIFICATION], backend, device="cuda")
    assert caught.value.what in ("device", "providers")


@BY_BACKEND
def test_an_unknown_precision_is_a_usage_error(bundles: dict[Task, Bundle], backend: str) -> None:
    with raises(UsageError) as caught:
        open_runtime(bundles[Task.CLASSIFICATION], backend, precision="banana")
    assert "banana" in str(caught.value)


@BY_BACKEND
@pytest.mark.parametrize("damage", ["flipped", "truncated", "removed"])
def test_a_damaged_artifact_is_a_bundle_error(
    bundles: dict[Task, Bundle], tmp_path: Path, backend: str, damage: str
) -> None:
    source = bundles[Task.CLASSIFICATION]
    folder = shutil.copytree(source.path, tmp_path / "copy")
    path = folder / CASES[backend]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "removed":
        path.unlink()
    else:
        path.write_bytes(content if damage == "flipped" else content[: len(content) // 2])
    with raises(BundleError) as caught:
        open_runtime(type(source).open(folder), backend)
    assert path.name in str(caught.value)


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_the_probe_finds_the_cpu_ready(backend: str) -> None:
    problems = runtime_class(backend).probe()
    assert [problem for name, problem in problems.items() if name.lower().startswith("cpu")] == [None]
    assert all(problem is None or (problem and "\n" not in problem) for problem in problems.values())
