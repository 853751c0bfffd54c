"""A CUDA runtime and an engine library in the host's memory: what an engine's runtime does with them is seen.

They are no proof that an engine runs; `tests/runtimes/test_engine_gpu.py` is, where there is a GPU.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import types
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

_OUT_OF_MEMORY = 2  # cudaErrorMemoryAllocation


class FakeCuda:
    """The functions of `cuda.bindings.runtime` that are used, with one device.

    Attributes:
        live: what is open, by CUDA's handle of it.
        room: how many allocations there is room for.
        copies: how many copies were asked for.
    """

    cudaStreamNonBlocking = 1  # noqa: N815  (CUDA's names)
    cudaMemcpyKind = types.SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)  # noqa: N815
    cudaStreamCaptureMode = types.SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)  # noqa: N815

    def __init__(self) -> None:
        self.live: dict[int, Any] = {}
        self.room = 1000
        self.copies = 0
        self.capturing: dict[int, list[Callable[[], object]]] = {}
        self._handles = itertools.count(1)

    def submit(self, stream: int, work: Callable[[], object]) -> None:
        if stream in self.capturing:
            self.capturing[stream].append(work)
        else:
            work()

    def _open(self, what: Any) -> tuple[int, int]:
        handle = next(self._handles)
        self.live[handle] = what
        return 0, handle

    def _close(self, handle: int) -> tuple[int]:
        del self.live[handle]
        return (0,)

    def _allocate(self, size: int) -> tuple[int, int | None]:
        if self.room == 0:
            return _OUT_OF_MEMORY, None
        self.room -= 1
        memory = ctypes.create_string_buffer(size)
        self.live[ctypes.addressof(memory)] = memory
        return 0, ctypes.addressof(memory)

    cudaMalloc = cudaMallocHost = _allocate  # noqa: N815
    cudaFree = cudaFreeHost = cudaStreamDestroy = cudaGraphDestroy = cudaGraphExecDestroy = _close  # noqa: N815

    def cudaGetDeviceCount(self) -> tuple[int, int]:  # noqa: N802
        return 0, 1

    def cudaDriverGetVersion(self) -> tuple[int, int]:  # noqa: N802
        return 0, 13010

    def cudaGetDeviceProperties(self, index: int) -> tuple[int, Any]:  # noqa: N802
        return 0, types.SimpleNamespace(name=b"Fake GPU\0\0", major=8, minor=9)

    def cudaGetErrorString(self, code: int) -> tuple[int, bytes]:  # noqa: N802
        return 0, {_OUT_OF_MEMORY: b"out of memory"}[code]

    def cudaSetDevice(self, index: int) -> tuple[int]:  # noqa: N802
        return (0,)

    def cudaMemcpyAsync(self, target: int, source: int, size: int, kind: int, stream: int) -> tuple[int]:  # noqa: N802
        self.copies += 1
        self.submit(stream, functools.partial(ctypes.memmove, target, source, size))
        return (0,)

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[int, int]:  # noqa: N802
        return self._open("stream")

    def cudaStreamSynchronize(self, stream: int) -> tuple[int]:  # noqa: N802
        return (0,)

    def cudaStreamBeginCapture(self, stream: int, mode: int) -> tuple[int]:  # noqa: N802
        self.capturing[stream] = []
        return (0,)

    def cudaStreamEndCapture(self, stream: int) -> tuple[int, int]:  # noqa: N802
        return self._open(self.capturing.pop(stream))

    def cudaGraphInstantiate(self, graph: int, flags: int) -> tuple[int, int]:  # noqa: N802
        return self._open(self.live[graph])

    def cudaGraphLaunch(self, graph: int, stream: int) -> tuple[int]:  # noqa: N802
        for work in self.live[graph]:
            work()
        return (0,)


class OnTheGpu:
    """An array that says that it is on a GPU, in the memory of an array of numpy or torch.

    Attributes:
        streams: that were made to wait for it, and -1 where none was.
    """

    def __init__(self, array: Any, device: tuple[int, int] = (2, 0)) -> None:
        self.array, self.device = array, device
        self.streams: list[int] = []

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device

    def __dlpack__(self, *, stream: int) -> object:
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
    """An execution context of `FakeEngine`: "y" is the sum of each row of "x"."""

    def __init__(self, engine: FakeEngine) -> None:
        self.engine, self.addresses = engine, {}  # type: ignore[var-annotated]
        self.shape: tuple[int, ...] = ()
        self.profile = -1

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self.profile = index
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        low, _, high = self.engine.profiles[self.profile]
        self.shape = shape
        return low[0] <= shape[0] <= high[0]

    def infer_shapes(self) -> list[str]:
        return []

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return {"x": self.shape, "y": self.shape[:1]}[name]

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        self.engine.executed.append(self.profile)
        if self.engine.fails:
            self.engine.logger.log("Severity.ERROR", "the kernel\ncannot run")
            return False
        self.engine.cuda.submit(stream, self._compute)
        return True

    def _compute(self) -> None:
        rows, columns = self.shape
        x = np.ctypeslib.as_array((ctypes.c_float * (rows * columns)).from_address(self.addresses["x"]))
        y = np.ctypeslib.as_array((ctypes.c_float * rows).from_address(self.addresses["y"]))
        y[:] = x.reshape(rows, columns).sum(1)


class FakeEngine:
    """Takes "x" (batch, 4) and gives "y" (batch), both float32."""

    num_io_tensors = 2

    def __init__(self, cuda: FakeCuda, logger: Any, config: Any) -> None:
        self.cuda, self.logger, self.config = cuda, logger, config
        self.profiles = [((1, 4), (1, 4), (1, 4)), ((1, 4), (4, 4), (8, 4))]
        self.num_optimization_profiles = len(self.profiles)
        self.executed: list[int] = []
        self.contexts = 0
        self.fails = False

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
        self.contexts += 1
        return FakeContext(self)


class FakeCache:
    """A runtime cache of TensorRT-RTX."""

    def __init__(self) -> None:
        self.content = b""

    def deserialize(self, content: bytes) -> bool:
        self.content = content
        return content != b"broken"

    def serialize(self) -> bytes:
        return self.content + b"+kernels"


def fake_library(cuda: FakeCuda, *, rtx: bool) -> Any:
    """What a runtime uses of `tensorrt`, or of `tensorrt_rtx`; the engine that it loads is its `engine`."""
    library = types.SimpleNamespace(
        __version__="1.0",
        ILogger=type("ILogger", (), {}),
        TensorIOMode=types.SimpleNamespace(INPUT="input", OUTPUT="output"),
        nptype=lambda dtype: np.dtype(dtype).type,
        engine=None,
        refitted=[],
        validity=(0, 0),
    )
    config = types.SimpleNamespace()

    class Runtime:
        engine_host_code_allowed = False

        def __init__(self, logger: Any) -> None:
            self.logger = logger

        def deserialize_cuda_engine(self, content: bytes) -> FakeEngine | None:
            if content == b"broken":
                self.logger.log("Severity.ERROR", "this is no engine")
                return None
            library.engine = FakeEngine(cuda, self.logger, config)
            return library.engine  # type: ignore[no-any-return]

    class Refitter:
        def __init__(self, engine: Any, logger: Any) -> None: ...

        def refit_cuda_engine(self) -> bool:
            return True

    class OnnxParserRefitter:
        def __init__(self, refitter: Any, logger: Any) -> None: ...

        def refit_from_file(self, path: str) -> bool:
            library.refitted.append(path)
            return path.endswith(".onnx")

    library.Runtime, library.Refitter, library.OnnxParserRefitter = Runtime, Refitter, OnnxParserRefitter
    if rtx:
        config.cuda_graph_strategy, config.cache = None, None
        config.create_runtime_cache = FakeCache
        config.set_runtime_cache = lambda cache: setattr(config, "cache", cache)
        library.IRuntimeCache = FakeCache
        library.CudaGraphStrategy = types.SimpleNamespace(WHOLE_GRAPH_CAPTURE="whole")
        library.EngineValidity = types.SimpleNamespace(INVALID=2)
        library.EngineInvalidityDiagnostics = types.SimpleNamespace(
            __members__={"VERSION_MISMATCH": 1, "UNSUPPORTED_CC": 2}
        )
        Runtime.engine_header_size = 4  # type: ignore[attr-defined]
        Runtime.get_engine_validity = lambda _, header: library.validity  # type: ignore[attr-defined]
    return library
