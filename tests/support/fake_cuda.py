"""A CUDA runtime and an engine library in the host's memory: what an engine's runtime does with them is seen.

What a stream is given is done when it is waited for, not before; to use what is of another device than the thread's
current one, or memory of another kind, is an AssertionError. So is to break a rule that the libraries' documentation
states, where they leave undefined what happens then; each rule has its source beside it. "Header" is NvInferRuntime.h
of TensorRT 10, "guide" its Developer Guide, "docstring" that of tensorrt-rtx 1.7's Python bindings. Only a GPU shows
whether the libraries do as they say: `tests/runtimes/engine/test_engine_gpu.py` does, where there is one.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import itertools
import threading
import types
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

_OUT_OF_MEMORY = 2  # cudaErrorMemoryAllocation
_ALIGNMENT = 256  # of cudaMalloc


@dataclasses.dataclass
class Opened:
    """An open resource.

    Attributes:
        kind: "device memory", "pinned memory", "stream", "graph" or "executable".
        device: That was current when it was opened.
        size: Of memory, in bytes.
        flags: Of a stream.
        work: That waits in a stream, or is in a graph.
        keep: What must live as long.
    """

    kind: str
    device: int
    size: int = 0
    flags: int = 0
    work: list[Callable[[], object]] = dataclasses.field(default_factory=list)
    keep: Any = None


class FakeCuda:
    """The functions of `cuda.bindings.runtime` that are used, with two devices.

    Attributes:
        live: What is open, by CUDA's handle or address of it.
        streams: Every stream that was opened.
        room: How many allocations there is room for.
        copies: How many copies were asked for.
    """

    cudaStreamNonBlocking = 1  # noqa: N815  (CUDA's names)
    cudaMemcpyKind = types.SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)  # noqa: N815
    cudaStreamCaptureMode = types.SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)  # noqa: N815

    def __init__(self) -> None:
        self.live: dict[int, Opened] = {}
        self.streams: list[Opened] = []
        self.room = 1000
        self.copies = 0
        self._thread = threading.local()
        self._lock = threading.Lock()  # of what waits in streams
        self._handles = itertools.count(1000)  # none is one of DLPack's streams, or the number of a device

    @property
    def device(self) -> int:
        """The calling thread's current device."""
        return getattr(self._thread, "device", 0)

    @property
    def capturing(self) -> int | None:
        """The stream from which the calling thread captures."""
        return getattr(self._thread, "capturing", None)

    def of_kind(self, kind: str) -> list[Opened]:
        return [each for each in list(self.live.values()) if each.kind == kind]

    def opened(self, handle: int, kind: str) -> Opened:
        """Something of that kind that is open, on the current device."""
        found = self.live.get(handle)
        assert found is not None, f"{handle} is not open"
        assert found.kind == kind, f"{handle} is a {found.kind}, not a {kind}"
        assert found.device == self.device, f"a {kind} of device {found.device} is used on {self.device}"
        return found

    def submit(self, stream: int, work: Callable[[], object]) -> None:
        queue = self.opened(stream, "stream")
        assert self.capturing in (None, stream), "another stream is being captured"
        with self._lock:
            queue.work.append(work)

    def _do(self, stream: Opened) -> None:
        """All that waits in a stream."""
        with self._lock:
            for work in stream.work:
                work()
            stream.work.clear()

    def _open(self, kind: str, **attributes: Any) -> tuple[int, int]:
        handle = next(self._handles)
        self.live[handle] = Opened(kind, self.device, **attributes)
        return 0, handle

    def _close(self, handle: int, kind: str) -> tuple[int]:
        self.opened(handle, kind)
        del self.live[handle]
        return (0,)

    def _allocate(self, kind: str, size: int) -> tuple[int, int | None]:
        assert self.capturing is None, "memory cannot be reserved while work is captured"
        assert size > 0
        if self.room == 0:
            return _OUT_OF_MEMORY, None
        self.room -= 1
        memory = ctypes.create_string_buffer(size + _ALIGNMENT)
        address = ctypes.addressof(memory)
        address += -address % _ALIGNMENT
        self.live[address] = Opened(kind, self.device, size=size, keep=memory)
        return 0, address

    def _free(self, address: int, kind: str) -> tuple[int]:
        for stream in self.of_kind("stream"):  # memory is freed when the device has done all
            if stream.device == self.live[address].device:
                self._do(stream)
        return self._close(address, kind)

    def cudaMalloc(self, size: int) -> tuple[int, int | None]:  # noqa: N802
        return self._allocate("device memory", size)

    def cudaMallocHost(self, size: int) -> tuple[int, int | None]:  # noqa: N802
        return self._allocate("pinned memory", size)

    def cudaFree(self, address: int) -> tuple[int]:  # noqa: N802
        return self._free(address, "device memory")

    def cudaFreeHost(self, address: int) -> tuple[int]:  # noqa: N802
        return self._free(address, "pinned memory")

    def cudaGetDeviceCount(self) -> tuple[int, int]:  # noqa: N802
        return 0, 2

    def cudaDriverGetVersion(self) -> tuple[int, int]:  # noqa: N802
        return 0, 13010

    def cudaGetDeviceProperties(self, index: int) -> tuple[int, Any]:  # noqa: N802
        return 0, types.SimpleNamespace(name=b"Fake GPU\0\0", major=8, minor=9)

    def cudaGetErrorString(self, code: int) -> tuple[int, bytes]:  # noqa: N802
        return 0, {_OUT_OF_MEMORY: b"out of memory"}[code]

    def cudaGetDevice(self) -> tuple[int, int]:  # noqa: N802
        return 0, self.device

    def cudaSetDevice(self, index: int) -> tuple[int]:  # noqa: N802
        assert index in (0, 1)
        self._thread.device = index
        return (0,)

    def cudaMemcpyAsync(self, target: int, source: int, size: int, kind: int, stream: int) -> tuple[int]:  # noqa: N802
        ends = {1: ("device memory", "pinned memory"), 2: ("pinned memory", "device memory")}[kind]
        for address, end in zip((target, source), ends, strict=True):
            assert self.opened(address, end).size >= size
        self.copies += 1
        self.submit(stream, functools.partial(ctypes.memmove, target, source, size))
        return (0,)

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[int, int]:  # noqa: N802
        _, handle = self._open("stream", flags=flags)
        self.streams.append(self.live[handle])
        return 0, handle

    def cudaStreamDestroy(self, stream: int) -> tuple[int]:  # noqa: N802
        return self._close(stream, "stream")  # which waits for nothing

    def cudaStreamSynchronize(self, stream: int) -> tuple[int]:  # noqa: N802
        assert self.capturing is None, "a stream cannot be waited for while work is captured"
        self._do(self.opened(stream, "stream"))
        return (0,)

    def cudaStreamBeginCapture(self, stream: int, mode: int) -> tuple[int]:  # noqa: N802
        assert mode == self.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        assert self.opened(stream, "stream").work == []
        self._thread.capturing = stream
        return (0,)

    def cudaStreamEndCapture(self, stream: int) -> tuple[int, int]:  # noqa: N802
        assert self.capturing == stream
        self._thread.capturing = None
        queue = self.opened(stream, "stream")
        work, queue.work = queue.work, []
        return self._open("graph", work=work)

    def cudaGraphInstantiate(self, graph: int, flags: int) -> tuple[int, int]:  # noqa: N802
        return self._open("executable", work=self.opened(graph, "graph").work)

    def cudaGraphLaunch(self, executable: int, stream: int) -> tuple[int]:  # noqa: N802
        for work in self.opened(executable, "executable").work:
            self.submit(stream, work)
        return (0,)

    def cudaGraphDestroy(self, graph: int) -> tuple[int]:  # noqa: N802
        return self._close(graph, "graph")

    def cudaGraphExecDestroy(self, executable: int) -> tuple[int]:  # noqa: N802
        return self._close(executable, "executable")


class OnTheGpu:
    """An array that says that it is on a GPU, in the memory of an array of numpy or torch.

    Attributes:
        streams: That were made to wait for it, and -1 where none was.
    """

    def __init__(self, array: Any, device: tuple[int, int] = (2, 1)) -> None:
        self.array, self.device = array, device
        self.streams: list[int] = []

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device

    def __dlpack__(self, *, stream: int, max_version: tuple[int, int]) -> object:
        assert max_version == (1, 0)
        self.streams.append(stream)
        return self.array.__dlpack__(max_version=max_version)


class OfAnOlderLibrary(OnTheGpu):
    """One whose capsules have no flags.

    Attributes:
        read_only: What its `__cuda_array_interface__` says.
    """

    read_only = False

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {"data": (0, self.read_only)}

    def __dlpack__(self, *, stream: int) -> object:  # type: ignore[override]
        self.streams.append(stream)
        return self.array.__dlpack__()


def aligned(array: np.ndarray, beyond: int = 0) -> np.ndarray:
    """A copy that begins so many bytes beyond a multiple of 256."""
    room = np.zeros(array.nbytes + 512, np.uint8)
    start = -room.ctypes.data % 256 + beyond
    copy = room[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


class FakeContext:
    """An execution context of `FakeEngine`: "y" is the sum of each row of "x", times the engine's weight."""

    def __init__(self, engine: FakeEngine) -> None:
        self.engine = engine
        self.addresses: dict[str, int] = {}
        self.shape: tuple[int, ...] | None = None
        self.profile: int | None = None
        self.switching: int | None = None  # the stream that still copies what the profile needs
        self.scratch = (0, 0)
        self.was_run = False

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        if self.engine.refuses == "profile":  # header: false where it is out of range
            return False
        self.profile, self.switching = index, stream
        self.shape = None  # TensorRT 8, active_optimization_profile: a switch makes the shapes before it void
        self.engine.cuda.submit(stream, self._switched)  # docstring: it may copy on the stream
        return True

    def _switched(self) -> None:
        self.switching = None

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert self.profile is not None, "header, setOptimizationProfileAsync: it is called before setInputShape"
        low, _, high = self.engine.profiles[self.profile]
        fits = all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True))
        if self.engine.refuses == "shape" or not fits:
            return False
        self.shape, self.was_run = shape, False
        return True

    def infer_shapes(self) -> list[str]:
        """Docstring: the names of what is not specified enough; RuntimeError where it fails otherwise."""
        if self.engine.shapes_fail:
            raise RuntimeError("the shapes\ncontradict each other")
        return ["x"] if self.shape is None else self.engine.unspecified

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        shape = (-1, 4) if self.shape is None else self.shape  # header: -1 before setInputShape
        return {"x": shape, "y": shape[:1]}[name]

    def update_device_memory_size_for_shapes(self) -> int:
        # TensorRT-RTX's sample of a custom allocator: 0 unless the profile and all shapes are set.
        return 0 if self.shape is None else self.engine.scratch * self.shape[0]

    def set_device_memory(self, address: int, size: int) -> None:
        assert address % 256 == 0, "docstring: aligned to 256 bytes"
        assert self.engine.cuda.opened(address, "device memory").size >= size
        assert size >= self.update_device_memory_size_for_shapes(), "docstring: at least what these shapes need"
        self.scratch = address, size

    def set_tensor_address(self, name: str, address: int) -> bool:
        assert address % 256 == 0, "header: the pointer has at least an alignment of 256 bytes"
        if self.engine.refuses == name:  # header: false where the name is no input or output
            return False
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        engine = self.engine
        assert engine.cuda.device == engine.device, "the engine is on another device"
        assert stream != 0, "docstring: the default stream makes the library wait for the device"
        assert self.switching in (None, stream), "header: a stream that is not in step with the switch of the profile"
        engine.executed.append((self.profile, stream))
        why = None
        if engine.fails:
            why = "the kernel\ncannot run"
        elif self.shape is None:
            why = "not all shapes are specified"
        elif set(self.addresses) != {"x", "y"}:
            why = "an address is not set"
        elif engine.device_memory_size_v2 > 0 and self.scratch[1] == 0:
            why = "noDeviceMemory"  # pytorch/TensorRT#4600
        elif engine.cuda.capturing is not None and not self.was_run:
            why = "what a shape needs is not set up yet"  # guide, "CUDA Graphs": run once before a capture
        if self.shape is None or why is not None:
            engine.logger.log("Severity.ERROR", why)
            return False
        self.was_run = True
        engine.cuda.submit(stream, functools.partial(self._compute, dict(self.addresses), *self.shape))
        return True

    def _compute(self, addresses: dict[str, int], rows: int, columns: int) -> None:
        address, size = self.scratch
        if size:
            assert self.engine.cuda.live[address].size == size
            ctypes.memset(address, 255, size)
        x = np.ctypeslib.as_array((ctypes.c_float * (rows * columns)).from_address(addresses["x"]))
        y = np.ctypeslib.as_array((ctypes.c_float * rows).from_address(addresses["y"]))
        y[:] = x.reshape(rows, columns).sum(1) * self.engine.weight


class FakeEngine:
    """Takes "x" (batch, 4) and gives "y" (batch), both float32.

    Attributes:
        executed: The profile and the stream of each time that a context was executed.
        contexts: How many there were.
        scratch: Bytes that a row needs.
        device_memory_size_v2: Bytes that the largest of all shapes needs.
        refuses: "profile", "shape" or the name of a tensor, which its contexts then do not take.
        shapes_fail: Whether no shapes can be inferred.
        unspecified: The names of what `infer_shapes` cannot do without.
    """

    num_io_tensors = 2

    def __init__(self, cuda: FakeCuda, logger: Any, config: Any) -> None:
        self.cuda, self.logger, self.config = cuda, logger, config
        self.device = cuda.device
        self.profiles = [((1, 4), (1, 4), (1, 4)), ((1, 4), (4, 4), (8, 4))]
        self.num_optimization_profiles = len(self.profiles)
        self.executed: list[tuple[int | None, int]] = []
        self.contexts = 0
        self.fails = self.shapes_fail = False
        self.unspecified: list[str] = []
        self.refuses: str | None = None
        self.scratch = 1000
        self.device_memory_size_v2 = 8000
        self.refittable = True
        self.weight = 1.0

    def get_tensor_name(self, index: int) -> str:
        return "xy"[index]

    def get_tensor_mode(self, name: str) -> str:
        return {"x": "input", "y": "output"}[name]

    def get_tensor_dtype(self, name: str) -> str:
        return "float32"

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return {"x": (-1, 4), "y": (-1,)}[name]

    def get_tensor_profile_shape(self, name: str, index: int) -> tuple[tuple[int, ...], ...]:
        return self.profiles[index]

    def create_runtime_config(self) -> Any:
        return self.config

    def create_execution_context(self, config: Any) -> FakeContext:
        assert config.allocation == "user"
        assert self.cuda.device == self.device, "the engine is on another device"
        self.contexts += 1
        return FakeContext(self)


class FakeCache:
    """A runtime cache of TensorRT-RTX."""

    def __init__(self) -> None:
        self.content = b""

    def deserialize(self, content: bytes) -> bool:
        if content == b"broken":
            return False
        self.content = content
        return True

    def serialize(self) -> bytes:
        return self.content + b"+kernels"


def fake_library(cuda: FakeCuda, *, rtx: bool) -> Any:
    """The part of `tensorrt`, or of `tensorrt_rtx`, that a runtime uses.

    Its `engine` is the one that was loaded, with its runtime's `engine_host_code_allowed` then as `host_code`; a file
    with weights has a number in it, which is the engine's new weight, or what is wrong with it.
    """
    library = types.SimpleNamespace(
        __version__="1.0",
        ILogger=type("ILogger", (), {}),
        TensorIOMode=types.SimpleNamespace(INPUT="input", OUTPUT="output"),
        ExecutionContextAllocationStrategy=types.SimpleNamespace(USER_MANAGED="user"),
        nptype=lambda dtype: np.dtype(dtype).type,
        engine=None,
        host_code=None,
        validity=(0, 0),
        takes_cache=True,
    )
    config = types.SimpleNamespace(allocation="static")
    config.set_execution_context_allocation_strategy = lambda strategy: setattr(config, "allocation", strategy)

    def set_runtime_cache(cache: FakeCache) -> bool:
        config.cache = cache
        return bool(library.takes_cache)

    class Runtime:
        engine_host_code_allowed = False

        def __init__(self, logger: Any) -> None:
            self.logger = logger

        def deserialize_cuda_engine(self, content: bytes) -> FakeEngine | None:
            if content == b"broken":
                self.logger.log("Severity.ERROR", "this is no engine")
                return None
            library.host_code = self.engine_host_code_allowed
            library.engine = FakeEngine(cuda, self.logger, config)
            return library.engine  # type: ignore[no-any-return]

    class Refitter:
        def __init__(self, engine: FakeEngine, logger: Any) -> None:
            self.engine, self.logger = engine, logger
            self.given = ""

        def get_missing_weights(self) -> list[str]:
            return ["layer.0.bias"] if self.given == "lacks" else []

        def refit_cuda_engine(self) -> bool:
            assert all(stream.work == [] for stream in cuda.streams), "the engine is at work"
            assert cuda.device == self.engine.device
            if self.given == "fails":
                self.logger.log("Severity.ERROR", "out of memory")
                return False
            self.engine.weight = float(self.given)
            return True

    class OnnxParserRefitter:
        def __init__(self, refitter: Refitter, logger: Any) -> None:
            self.refitter = refitter
            self.num_errors = 0

        def refit_from_file(self, path: str) -> bool:
            self.refitter.given = Path(path).read_text(encoding="utf-8")
            self.num_errors = int(self.refitter.given == "wrong")
            return self.refitter.given != "wrong"

        def get_error(self, index: int) -> Any:
            return types.SimpleNamespace(desc=lambda: "the count of\n'w' differs")

    library.Runtime, library.Refitter, library.OnnxParserRefitter = Runtime, Refitter, OnnxParserRefitter
    if rtx:
        config.cuda_graph_strategy, config.cache = None, None
        config.dynamic_shapes_kernel_specialization_strategy = "lazy"
        config.create_runtime_cache = FakeCache
        config.set_runtime_cache = set_runtime_cache
        library.ComputeCapability = types.SimpleNamespace()
        library.CudaGraphStrategy = types.SimpleNamespace(WHOLE_GRAPH_CAPTURE="whole")
        library.DynamicShapesKernelSpecializationStrategy = types.SimpleNamespace(
            EAGER="eager", LAZY="lazy", NONE="none"
        )
        library.EngineValidity = types.SimpleNamespace(INVALID=2)
        library.EngineInvalidityDiagnostics = types.SimpleNamespace(
            __members__={"VERSION_MISMATCH": 1, "UNSUPPORTED_CC": 2}, UNSUPPORTED_CC=2
        )
        Runtime.engine_header_size = 4  # type: ignore[attr-defined]
        Runtime.get_engine_validity = lambda _, header: library.validity  # type: ignore[attr-defined]
    return library
