"""The ONNX Runtime backend's own options: each is in force, or an error."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import re
import shutil
import sys
import types
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from bundles import FLOAT32_TOLERANCE, export_graph, make_feeds, reference, tiny_model, worst_difference
from onnx import TensorProto, helper
from raising import raises
from small_graphs import graph_of

from vitdeploy.bundle.bundle import Bundle
from vitdeploy.errors import BundleError, DeviceError, UsageError
from vitdeploy.exporting.graph_options import GraphOptions
from vitdeploy.exporting.options import SourceOptions
from vitdeploy.exporting.workflow import export
from vitdeploy.runtimes import open_runtime
from vitdeploy.runtimes.onnxrt import runtime as onnxrt
from vitdeploy.runtimes.onnxrt import session as onnxrt_session
from vitdeploy.runtimes.onnxrt.options import OnnxRuntimeOptions
from vitdeploy.runtimes.onnxrt.runtime import OnnxRuntime
from vitdeploy.runtimes.onnxrt.session import CPU, CUDA, TENSORRT
from vitdeploy.runtimes.onnxrt.shape_nodes import shape_nodes
from vitdeploy.specs import TensorSpec
from vitdeploy.system.cpu import Cpus, ThreadCount

AZURE = "AzureExecutionProvider"
NEEDS_NO_CUDA = pytest.mark.skipif(CUDA in ort.get_available_providers(), reason="this onnxruntime was built with CUDA")
NEEDS_RECORD = pytest.mark.skipif(not onnxrt._KEEPS_RECORD, reason="this onnxruntime does not tell where nodes run")
NEEDS_AZURE = pytest.mark.skipif(AZURE not in ort.get_available_providers(), reason="only some wheels list Azure")
PROBE_FEEDS = {"x": np.ones((2, 2), np.float32)}


@pytest.fixture
def probe() -> Path:
    return Path(str(resources.files("vitdeploy.runtimes") / "probe.onnx"))


def write_cast(path: Path, dtype: int) -> Path:
    """A model that gives its input in another type."""
    name = onnx.TensorProto.DataType.Name(dtype).lower()
    ir.save(graph_of(f"g (float[n] x) => ({name}[n] y) {{ y = Cast<to = {dtype}>(x) }}"), path)
    return path


@pytest.mark.parametrize("providers", [(), [], (CPU, CPU), CPU])
def test_providers_that_are_no_list_of_different_names(providers: Any) -> None:
    with raises(UsageError, what="providers", found=providers):
        OnnxRuntimeOptions(providers=providers)


@pytest.mark.parametrize(
    "name", [pytest.param(CUDA, marks=NEEDS_NO_CUDA), "BananaExecutionProvider", "cpuexecutionprovider", ""]
)
@pytest.mark.parametrize("beside", [(), (CPU,)])
def test_a_provider_that_onnxruntime_lacks(probe: Path, name: str, beside: tuple[str, ...]) -> None:
    with raises(DeviceError, what="providers", found=name) as caught:
        OnnxRuntime(probe, OnnxRuntimeOptions(providers=(name, *beside)))
    assert ("vitdeploy[onnxruntime-gpu]" in str(caught.value.hint)) == (name == CUDA)


@NEEDS_AZURE
@pytest.mark.parametrize(
    ("keeps_record", "found"),
    [
        pytest.param(True, ["MatMul ''"], marks=NEEDS_RECORD),
        (False, re.compile("fallback to CPU EP has been explicitly disabled")),
    ],
)
def test_a_provider_that_is_listed_but_takes_no_node(
    monkeypatch: pytest.MonkeyPatch, probe: Path, keeps_record: bool, found: object, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(onnxrt, "_KEEPS_RECORD", keeps_record)
    with raises(DeviceError, what="providers", where=str(probe), found=found, hint=onnxrt_session.INSTEAD_OF_CPU):
        OnnxRuntime(probe, OnnxRuntimeOptions(providers=(AZURE,), log_severity=4))
    assert capfd.readouterr() == ("", "")


class OnCuda:
    """An onnxruntime whose CUDA provider takes each node, but for those in `left`; they run on the CPU.

    Attributes:
        left: name and operator of each.
        providers: of the session, as it was asked for.
        config: which of the two ways to hold nodes to their place it was asked for.
    """

    def __init__(self) -> None:
        self.left: Sequence[tuple[str, str]] = ()
        self.providers: list[str] = []
        self.config: list[str] = []

    def parts(self) -> Iterator[Any]:
        for name, nodes in ((CUDA, [("taken", "Softmax")]), (CPU, self.left)):
            found = [types.SimpleNamespace(name=node, op_type=operator, domain="") for node, operator in nodes]
            yield types.SimpleNamespace(ep_name=name, get_nodes=lambda found=found: found)


@pytest.fixture
def on_cuda(monkeypatch: pytest.MonkeyPatch) -> OnCuda:
    found, session = OnCuda(), ort.InferenceSession

    class OnTheCpu(session):  # type: ignore[misc, valid-type]  # onnxruntime has no types
        def __init__(self, path: Path, options: Any, *, providers: Any, **rest: object) -> None:
            found.providers, found.config = [name for name, _ in providers], []
            for key in ("disable_cpu_ep_fallback", "record_ep_graph_assignment_info"):
                with contextlib.suppress(RuntimeError):  # it was not set
                    assert options.get_session_config_entry(f"session.{key}") == "1"
                    found.config.append(key)
            super().__init__(path, providers=[CPU])

        def get_providers(self) -> list[str]:
            return [CUDA, CPU]

        def get_provider_graph_assignment_info(self) -> list[Any]:
            return list(found.parts())

    monkeypatch.setattr(ort, "get_available_providers", lambda: [CUDA, CPU])
    monkeypatch.setattr(ort, "InferenceSession", OnTheCpu)
    monkeypatch.setattr(onnxrt, "_KEEPS_RECORD", True)
    return found


@pytest.fixture(scope="module")
def any_size(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A graph that takes images of any size."""
    folder = tmp_path_factory.mktemp("any_size")
    return folder / export_graph(tiny_model(), folder, dynamic_image_size=True).files[0]


def test_shapes_may_be_computed_on_the_cpu_and_nothing_else(any_size: Path, on_cuda: OnCuda) -> None:
    nodes = [(node.name, node.op_type) for node in onnx.load(any_size).graph.node]
    shapes = [node for node in nodes if node in shape_nodes(any_size)]
    on_cuda.left = shapes
    with OnnxRuntime(any_size, OnnxRuntimeOptions(providers=(CUDA,))) as runtime:
        assert runtime.gpu == 0
        assert runtime.threads is None
        assert runtime.details["providers"] == [CUDA]
        assert on_cuda.providers == [CUDA, CPU], "or ONNX Runtime warns of the shapes"
        assert on_cuda.config == ["record_ep_graph_assignment_info"]
    others = [node for node in nodes if node not in shapes]
    assert {"Conv", "Pad", "Resize", "MatMul", "Softmax", "Mul", "Reshape", "Concat"} <= {kind for _, kind in others}
    for name, operator in others:
        on_cuda.left = [*shapes, (name, operator)]
        with raises(DeviceError, where=str(any_size), expected=(CUDA,), found=[f"{operator} {name!r}"]):
            OnnxRuntime(any_size, OnnxRuntimeOptions(providers=(CUDA,)))


def test_several_nodes_on_the_cpu(any_size: Path, on_cuda: OnCuda) -> None:
    on_cuda.left = [(f"node_{index}", "Erf") for index in range(5)]
    with raises(DeviceError, found=[f"Erf 'node_{index}'" for index in range(5)]) as caught:
        OnnxRuntime(any_size, OnnxRuntimeOptions(providers=(CUDA,)))
    assert "and 2 more" in str(caught.value)
    with OnnxRuntime(any_size, OnnxRuntimeOptions(providers=(CUDA, CPU))):
        assert on_cuda.config == [], "the CPU was asked for too"


def test_an_onnxruntime_that_tells_no_places_is_strict(
    monkeypatch: pytest.MonkeyPatch, any_size: Path, on_cuda: OnCuda
) -> None:
    monkeypatch.setattr(onnxrt, "_KEEPS_RECORD", False)
    with OnnxRuntime(any_size, OnnxRuntimeOptions(providers=(CUDA,))):
        assert (on_cuda.providers, on_cuda.config) == ([CUDA], ["disable_cpu_ep_fallback"])


@pytest.mark.parametrize("provider", [CUDA, TENSORRT])
def test_libraries_of_python_packages_are_loaded_once_and_quietly(
    monkeypatch: pytest.MonkeyPatch, probe: Path, provider: str, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded = []

    def preload(*arguments: object) -> None:
        loaded.append(arguments)
        print("Failed to load libcufft.so.12")

    monkeypatch.setattr(ort, "preload_dlls", preload, raising=False)
    monkeypatch.setattr(ort, "get_available_providers", lambda: [AZURE, CPU])
    onnxrt_session._preload_libraries.cache_clear()
    OnnxRuntime(probe).close()
    assert loaded == []
    for _ in range(2):
        with raises(DeviceError, what="providers", found=provider):
            OnnxRuntime(probe, OnnxRuntimeOptions(providers=(provider,)))
    assert loaded == [()]
    assert capsys.readouterr() == ("", "")
    monkeypatch.delattr(ort, "preload_dlls")
    onnxrt_session._preload_libraries.cache_clear()
    with raises(DeviceError, what="providers", found=provider):
        OnnxRuntime(probe, OnnxRuntimeOptions(providers=(provider,)))


def test_a_session_that_fails_is_not_tried_on_another_provider(
    monkeypatch: pytest.MonkeyPatch, probe: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """ONNX Runtime's Python class would print a banner on stdout, and try the CPU."""
    tried = []

    def fail(self: object, providers: object, *rest: object) -> None:
        tried.append(providers)
        raise RuntimeError("no such library\nmore")

    monkeypatch.setattr(ort.InferenceSession, "_create_inference_session", fail)
    with raises(BundleError, where=str(probe), found="no such library"):
        OnnxRuntime(probe)
    assert tried == [[(CPU, {})]]
    assert capfd.readouterr() == ("", "")


@NEEDS_AZURE
def test_a_provider_that_takes_no_node_may_stand_beside_the_cpu(probe: Path) -> None:
    with OnnxRuntime(probe, OnnxRuntimeOptions(providers=(AZURE, CPU))) as runtime:
        assert runtime.details["providers"] == [AZURE, CPU]
        assert runtime.run(PROBE_FEEDS)


def test_a_provider_that_onnxruntime_drops(monkeypatch: pytest.MonkeyPatch, probe: Path) -> None:
    """As it does with CUDA where the driver is missing; the wheel here has no such provider."""
    monkeypatch.setattr(ort, "get_available_providers", lambda: [CUDA, CPU])
    session = ort.InferenceSession

    def without_cuda(path: Path, options: object, providers: object, **rest: object) -> object:
        return session(path, providers=[CPU])

    monkeypatch.setattr(ort, "InferenceSession", without_cuda)
    with raises(DeviceError, what="providers", expected=(CUDA, CPU), found=[CPU], hint=re.compile("pip install")):
        OnnxRuntime(probe, OnnxRuntimeOptions(providers=(CUDA, CPU)))


def test_options_of_a_provider_that_was_not_asked_for(probe: Path) -> None:
    with raises(UsageError, what="provider_options", expected=(CPU,), found=CUDA):
        OnnxRuntime(probe, OnnxRuntimeOptions(provider_options={CUDA: {"device_id": 0}}))


def test_options_that_onnxruntime_would_ignore(probe: Path) -> None:
    with raises(UsageError, what="provider_options", found=("banana",)):
        OnnxRuntime(probe, OnnxRuntimeOptions(provider_options={CPU: {"banana": 1}}))
    OnnxRuntime(probe, OnnxRuntimeOptions(provider_options={CPU: {}})).close()


def test_a_device_and_providers_that_contradict_each_other(bundle: Bundle) -> None:
    with raises(UsageError, what="providers", found=(CPU,)):
        open_runtime(bundle, "onnxruntime", {"providers": (CPU,)}, device="cuda")
    with raises(UsageError, what="device_id", found=0):
        open_runtime(bundle, "onnxruntime", {"provider_options": {CUDA: {"device_id": 0}}}, device="cuda:1")


def test_a_device_index_reaches_the_provider(monkeypatch: pytest.MonkeyPatch, bundle: Bundle) -> None:
    asked: list[OnnxRuntimeOptions] = []
    monkeypatch.setattr(OnnxRuntime, "__init__", lambda self, path, options: asked.append(options))
    options = OnnxRuntimeOptions(provider_options={CUDA: {"gpu_mem_limit": 2**30}})
    OnnxRuntime.from_bundle(bundle, options, precision="fp32", device="cuda:1")
    defaults = {"cudnn_conv_algo_search": "HEURISTIC", "use_tf32": "0"}
    own = {"cudnn_conv_algo_search": "EXHAUSTIVE", "use_tf32": "1"}
    options = OnnxRuntimeOptions(provider_options={CUDA: own})
    OnnxRuntime.from_bundle(bundle, options, precision="fp32", device="cuda")
    assert asked == [
        OnnxRuntimeOptions((CUDA,), {CUDA: {"device_id": 1, **defaults, "gpu_mem_limit": 2**30}}),
        OnnxRuntimeOptions((CUDA,), {CUDA: {"device_id": 0, **own}}),
    ]


def threads_of_this_process() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
@pytest.mark.parametrize(("intra", "inter", "more"), [(1, 0, 0), (3, 0, 2), (1, 1, 0), (1, 3, 2), (2, 3, 3)])
def test_thread_counts_are_the_threads_that_start(model_file: Path, intra: int, inter: int, more: int) -> None:
    """A pool of n has n - 1 threads of its own, the caller being the last."""
    arrays = make_feeds(tiny_model(), 2)
    expected = reference(tiny_model(), arrays)  # torch's own threads are started by now
    before = threads_of_this_process()
    with OnnxRuntime(model_file, OnnxRuntimeOptions(intra_op_threads=intra, inter_op_threads=inter)) as runtime:
        assert threads_of_this_process() - before == more
        options = runtime._session.get_session_options()
        assert options.intra_op_num_threads == intra
        parallel = options.execution_mode == ort.ExecutionMode.ORT_PARALLEL
        assert parallel == (inter > 1)
        assert worst_difference(runtime.run(arrays), expected) <= FLOAT32_TOLERANCE
    assert threads_of_this_process() == before


@pytest.mark.parametrize(
    ("cpus", "asked", "threads", "spinning"),
    [
        (Cpus(16, 16, 8), 0, 8, True),
        (Cpus(8, 8, 8, 1.5), 0, 2, False),
        (Cpus(8, 8, 8, 2.0), 0, 2, True),
        (Cpus(8, 8, 8, 1.0), 0, 1, True),
        (Cpus(8, 8, 8, 0.5), 0, 1, False),
        (Cpus(8, 8, 8, 1.5), 3, 3, False),
        (Cpus(2, 8, 2, 4.0), 0, 2, True),
    ],
)
def test_the_session_fits_the_cpus(
    monkeypatch: pytest.MonkeyPatch, probe: Path, cpus: Cpus, asked: int, threads: int, spinning: bool
) -> None:
    """0 is the default, and is never left to ONNX Runtime, which knows neither quota nor mask."""
    monkeypatch.delenv("ORT_INTRA_OP_NUM_THREADS", raising=False)
    for module in ("system.cpu", "runtimes.onnxrt.runtime"):
        monkeypatch.setattr(f"vitdeploy.{module}.usable_cpus", lambda: cpus)
    expected = ThreadCount(asked, "as asked for") if asked else cpus.threads
    with OnnxRuntime(probe, OnnxRuntimeOptions(intra_op_threads=asked)) as runtime:
        options = runtime._session.get_session_options()
        assert options.intra_op_num_threads == threads
        assert options.get_session_config_entry("session.intra_op.allow_spinning") == str(int(spinning))
        assert runtime.threads == expected
        assert runtime.details["intra_op_threads"] == threads
        assert runtime.details["threads_reason"] == expected.reason
        assert runtime.details["allow_spinning"] is spinning
    with OnnxRuntime(probe, OnnxRuntimeOptions(allow_spinning=True)) as runtime:
        assert runtime.details["allow_spinning"] is True


def test_the_variable_that_sets_the_threads(monkeypatch: pytest.MonkeyPatch, probe: Path) -> None:
    monkeypatch.setenv("ORT_INTRA_OP_NUM_THREADS", "3")
    for asked, threads in ((0, 3), (2, 2)):
        with OnnxRuntime(probe, OnnxRuntimeOptions(intra_op_threads=asked)) as runtime:
            assert runtime._session.get_session_options().intra_op_num_threads == threads
    monkeypatch.setenv("ORT_INTRA_OP_NUM_THREADS", "many")
    with raises(UsageError) as caught:
        OnnxRuntime(probe)
    assert "ORT_INTRA_OP_NUM_THREADS" in str(caught.value)
    OnnxRuntime(probe, OnnxRuntimeOptions(intra_op_threads=2)).close()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such a name")
def test_a_folder_whose_name_is_no_utf_8(probe: Path, tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"\xff")
    folder.mkdir()
    shutil.copy(probe, folder / "model.onnx")
    with raises(UsageError) as caught:
        OnnxRuntime(folder / "model.onnx")
    assert "UTF-8" in str(caught.value)


@pytest.mark.parametrize("spinning", [True, False])
def test_spinning(probe: Path, spinning: bool) -> None:
    with OnnxRuntime(probe, OnnxRuntimeOptions(allow_spinning=spinning)) as runtime:
        options = runtime._session.get_session_options()
        for pool in ("intra_op", "inter_op"):
            assert options.get_session_config_entry(f"session.{pool}.allow_spinning") == str(int(spinning))


@pytest.mark.parametrize("prepack", [True, False])
def test_weights_that_are_laid_out_anew(probe: Path, prepack: bool) -> None:
    with OnnxRuntime(probe, OnnxRuntimeOptions(prepack=prepack)) as runtime:
        options = runtime._session.get_session_options()
        assert options.get_session_config_entry("session.disable_prepacking") == str(int(not prepack))
        assert runtime.details["prepack"] is prepack


NOT_NUMBERS: tuple[Any, ...] = (-1, 2**31, 1.5, "2", True)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *itertools.product(["intra_op_threads", "inter_op_threads", "parallel_runs"], (*NOT_NUMBERS, None)),
        *(("log_severity", value) for value in NOT_NUMBERS),  # None is its default
        *itertools.product(["allow_spinning", "io_binding"], ("no", 1)),
        ("graph_optimization", "O3"),
    ],
)
def test_values_that_cannot_be(option: str, value: Any) -> None:
    with raises(UsageError, what=option, found=value):
        OnnxRuntimeOptions(**{option: value})


def test_graph_optimization_levels(model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More of it leaves fewer nodes and the same answer; the exporter left nothing for "basic"."""
    session = ort.InferenceSession
    saved = tmp_path / "optimized.onnx"

    def saving(path: Path, options: ort.SessionOptions, **rest: object) -> object:
        options.optimized_model_filepath = str(saved)
        return session(path, options, **rest)

    monkeypatch.setattr(ort, "InferenceSession", saving)
    model = tiny_model()
    arrays = make_feeds(model, 2)
    counts = []
    for level in ("disabled", "basic", "extended", "all"):
        # ONNX Runtime warns that a file of the last levels is for this machine alone.
        with OnnxRuntime(model_file, OnnxRuntimeOptions(graph_optimization=level, log_severity=3)) as runtime:
            assert runtime.details["graph_optimization"] == level
            assert worst_difference(runtime.run(arrays), reference(model, arrays)) <= FLOAT32_TOLERANCE
        counts.append(len(onnx.load(saved).graph.node))
    assert counts[0] == len(onnx.load(model_file).graph.node)
    assert counts[0] >= counts[1] > max(counts[2:])  # "all" may add a node that lays memory out for the processor


def test_io_binding_changes_nothing_but_the_way(bundle: Bundle) -> None:
    arrays = make_feeds(tiny_model(), 3)
    found = []
    for io_binding, expected in ((None, False), (False, False), (True, True)):
        with open_runtime(bundle, "onnxruntime", {"io_binding": io_binding}) as runtime:
            assert runtime.details["io_binding"] is expected
            first, second = runtime.run(arrays)["logits"], runtime.run({"pixel_values": -arrays["pixel_values"]})
            assert first.flags.writeable
            assert not np.shares_memory(first, second["logits"])
            found.append(first)
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


def test_external_data(tmp_path: Path) -> None:
    model = tiny_model()
    exported = export_graph(model, tmp_path, max_bytes=0)
    assert exported.files == ("onnx/model.onnx", "onnx/model.onnx.data")
    arrays = make_feeds(model, 2)
    with OnnxRuntime(tmp_path / exported.files[0]) as runtime:
        assert worst_difference(runtime.run(arrays), reference(model, arrays)) <= FLOAT32_TOLERANCE
    (tmp_path / exported.files[1]).unlink()
    with raises(BundleError, where=str(tmp_path / exported.files[0])):
        OnnxRuntime(tmp_path / exported.files[0], OnnxRuntimeOptions(log_severity=4))


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x00" * 64, b"\xff" * 64, "half", "one byte less"])
def test_a_file_that_is_no_model(
    model_file: Path, tmp_path: Path, content: bytes | str, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = model_file.read_bytes()
    if isinstance(content, str):
        content = whole[: len(whole) // 2] if content == "half" else whole[:-1]
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with raises(BundleError, where=str(path)):
        OnnxRuntime(path)
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("name", ["absent.onnx", "."])
def test_a_path_that_is_no_file(tmp_path: Path, name: str) -> None:
    with raises(BundleError, where=str(tmp_path / name), expected="an ONNX file"):
        OnnxRuntime(tmp_path / name)


@pytest.mark.parametrize("dtype", ["INT8", "UINT16", "INT32", "UINT64", "DOUBLE", "FLOAT16", "BOOL"])
def test_types_that_numpy_has(tmp_path: Path, dtype: str) -> None:
    number = onnx.TensorProto.DataType.Value(dtype)
    numpy_dtype = onnx.helper.tensor_dtype_to_np_dtype(number)
    with OnnxRuntime(write_cast(tmp_path / "cast.onnx", number)) as runtime:
        assert runtime.outputs == (TensorSpec("y", numpy_dtype.name, ("n",)),)
        assert runtime.run({"x": np.array([0, 1], np.float32)})["y"].dtype == numpy_dtype


def test_a_type_that_numpy_lacks_does_not_open(tmp_path: Path) -> None:
    path = write_cast(tmp_path / "cast.onnx", onnx.TensorProto.BFLOAT16)
    with raises(BundleError, what="y", where=str(path), found="tensor(bfloat16)"):
        OnnxRuntime(path)


def test_a_run_that_fails_is_not_tried_on_the_cpu(probe: Path) -> None:
    with OnnxRuntime(probe) as runtime:
        assert runtime._session._enable_fallback is False


def test_a_failure_while_running_is_a_device_error(probe: Path) -> None:
    with OnnxRuntime(probe) as runtime, raises(DeviceError, what="onnxruntime"):
        runtime._run({"x": np.ones((2, 2), np.float64)})


def test_a_good_session_says_nothing(model_file: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with OnnxRuntime(model_file) as runtime:
        runtime.run(make_feeds(tiny_model(), 2))
    assert capfd.readouterr() == ("", "")


def test_a_relu_before_float8_stays(tmp_path: Path) -> None:
    """ONNX Runtime 1.32 drops it, as if the lowest value of float8 were 0."""
    value = functools.partial(helper.make_tensor_value_info, elem_type=TensorProto.FLOAT, shape=["batch", 4])
    nodes = [
        helper.make_node("Relu", ["x"], ["positive"]),
        helper.make_node("QuantizeLinear", ["positive", "scale", "zero"], ["quantized"]),
        helper.make_node("DequantizeLinear", ["quantized", "scale", "zero"], ["y"]),
    ]
    weights = [
        helper.make_tensor("scale", TensorProto.FLOAT, [], [0.25]),
        helper.make_tensor("zero", TensorProto.FLOAT8E4M3FN, [], [0.0]),
    ]
    graph = helper.make_graph(nodes, "relu", [value("x")], [value("y")], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, tmp_path / "relu.onnx")
    with OnnxRuntime(tmp_path / "relu.onnx") as runtime:
        y = runtime.run({"x": np.array([[-1, -0.5, 0.5, 1]], np.float32)})["y"]
    assert y.tolist() == [[0, 0, 0.5, 1]]


@pytest.mark.parametrize("io_binding", [False, True])
def test_memory_goes_back_after_each_run_if_asked(bundle: Bundle, io_binding: bool) -> None:
    def shrunk(settings: ort.RunOptions | None) -> str:
        return "" if settings is None else settings.get_run_config_entry("memory.enable_memory_arena_shrinkage")

    arrays = make_feeds(tiny_model(), 3)
    outputs = {"logits": np.empty((3, 3), np.float32)}
    found, asked = [], []
    for shrinks in (False, True):
        options = {"shrink_memory": shrinks, "io_binding": io_binding}
        with open_runtime(bundle, "onnxruntime", options) as runtime:
            assert isinstance(runtime, OnnxRuntime)
            assert runtime.details["shrink_memory"] is shrinks
            found.append(runtime.run(arrays)["logits"])
            runtime.run_device(arrays, outputs)
            np.testing.assert_array_equal(outputs["logits"], found[-1])
            asked.append(shrunk(runtime._run_options))
    np.testing.assert_array_equal(found[0], found[1])
    assert asked == ["", "cpu:0"]


def test_only_the_memory_of_the_cpu_goes_back(probe: Path) -> None:
    with raises(UsageError, what="shrink_memory", expected=(CPU,), found=(CUDA,)):
        OnnxRuntime(probe, OnnxRuntimeOptions(providers=(CUDA,), shrink_memory=True))


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
def test_external_data_is_mapped_where_it_is_not_laid_out_anew(tmp_path: Path) -> None:
    def mapped() -> bool:
        return str(data) in Path("/proc/self/maps").read_text(encoding="utf-8")

    place = tmp_path / "out"
    source = SourceOptions(random_weights="vit-tiny-patch16-32")
    exported = export(output=place, source=source, graph=GraphOptions(external_data=True))
    files = [record.path for record in exported.artifact("onnx", "fp32").files]
    assert files == ["onnx/model.onnx", "onnx/model.onnx.data"]
    data = (place / files[1]).resolve()
    assert not mapped()
    images = {"pixel_values": np.ones((2, 3, 32, 32), np.float32)}
    with open_runtime(exported, "onnxruntime", {"prepack": False}) as runtime:
        assert mapped()
        first = runtime.run(images)["logits"]
    assert not mapped()
    with open_runtime(exported, "onnxruntime") as runtime:
        np.testing.assert_allclose(runtime.run(images)["logits"], first, rtol=0, atol=1e-5)  # sums of another order
