"""CUDA memory, streams and graphs, through cuda-python; callers close what they open."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from vitdeploy.runtimes.device_arrays import DeviceArray
from vitdeploy.trt.gpu import check, cuda_runtime


class Memory:
    """Memory on the current device.

    Args:
        size: Size in bytes, at least 1.

    Attributes:
        address: Start address, a multiple of 256 (CUDA programming guide, "Device Memory Accesses").

    Raises:
        DeviceError: If there is not enough memory.
    """

    def __init__(self, size: int) -> None:
        self._cuda = cuda_runtime()
        self.address = int(check("reserve memory of the GPU", self._cuda.cudaMalloc(size)))

    def close(self) -> None:
        check("free memory of the GPU", self._cuda.cudaFree(self.address))


class Tensor:
    """An array in pinned host memory, with device memory of the same size.

    Attributes:
        array: Host memory; the device memory is at `address`.

    Raises:
        DeviceError: If there is not enough memory.
    """

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self._cuda = cuda_runtime()
        self._size = int(np.prod(shape)) * dtype.itemsize
        self._host = int(check("reserve pinned memory", self._cuda.cudaMallocHost(self._size)))
        try:
            self._memory = Memory(self._size)
        except BaseException:
            self._cuda.cudaFreeHost(self._host)
            raise
        self.address = self._memory.address
        memory = (ctypes.c_uint8 * self._size).from_address(self._host)
        self.array: np.ndarray = np.frombuffer(memoryview(memory).cast("B"), dtype).reshape(shape)

    def to_device(self, stream: Stream) -> None:
        self._copy(self.address, self._host, self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice, stream)

    def to_host(self, stream: Stream) -> None:
        self._copy(self._host, self.address, self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost, stream)

    def close(self) -> None:
        del self.array
        self._memory.close()
        check("free pinned memory", self._cuda.cudaFreeHost(self._host))

    def _copy(self, target: int, source: int, kind: Any, stream: Stream) -> None:
        check("copy an array", self._cuda.cudaMemcpyAsync(target, source, self._size, kind, stream.handle))


class Stream:
    """A non-blocking stream of work for the device.

    Attributes:
        handle: CUDA's handle, for libraries.
    """

    def __init__(self) -> None:
        self._cuda = cuda_runtime()
        flags = self._cuda.cudaStreamNonBlocking
        self.handle = int(check("open a stream", self._cuda.cudaStreamCreateWithFlags(flags)))

    def wait(self) -> None:
        """Wait until all work is complete.

        Raises:
            DeviceError: If some of it failed.
        """
        check("finish the work", self._cuda.cudaStreamSynchronize(self.handle))

    def captured(self, work: Callable[[], None]) -> Graph:
        """Capture the work that `work` submits to this stream as a graph, without running it.

        Raises:
            DeviceError: If some of it cannot be captured.
        """
        mode = self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        check("begin a CUDA graph", self._cuda.cudaStreamBeginCapture(self.handle, mode))
        try:
            work()
        except BaseException:
            code, graph = self._cuda.cudaStreamEndCapture(self.handle)  # may fail as well, and ends the capture
            if int(code) == 0:
                self._cuda.cudaGraphDestroy(graph)
            raise
        graph = check("record a CUDA graph", self._cuda.cudaStreamEndCapture(self.handle))
        try:
            return Graph(check("make a CUDA graph ready", self._cuda.cudaGraphInstantiate(graph, 0)))
        finally:
            check("free a CUDA graph", self._cuda.cudaGraphDestroy(graph))

    def close(self) -> None:
        check("close a stream", self._cuda.cudaStreamDestroy(self.handle))


class Graph:
    """Captured work, which is launched at once instead of kernel by kernel."""

    def __init__(self, executable: Any) -> None:
        self._cuda = cuda_runtime()
        self._executable = executable

    def launch(self, stream: Stream) -> None:
        check("run a CUDA graph", self._cuda.cudaGraphLaunch(self._executable, stream.handle))

    def close(self) -> None:
        check("free a CUDA graph", self._cuda.cudaGraphExecDestroy(self._executable))


@contextlib.contextmanager
def on_device(index: int) -> Iterator[None]:
    """Make a device the calling thread's current one in this block, and restore the previous one afterwards.

    Raises:
        DeviceError: If it cannot be used.
    """
    cuda = cuda_runtime()
    before = int(check("tell the current device", cuda.cudaGetDevice()))
    check(f"use device cuda:{index}", cuda.cudaSetDevice(index))
    try:
        yield
    finally:
        if before != index:  # setting a device initializes CUDA there, which takes memory
            cuda.cudaSetDevice(before)  # an error in the block takes precedence over a failure here


def wait_for(arrays: Iterable[DeviceArray], gpu: int) -> None:
    """Wait until the work queued on a GPU's arrays is complete.

    Raises:
        MissingDependencyError: If cuda-python is not installed.
        DeviceError: If some of it failed.
    """
    with on_device(gpu):
        stream = Stream()
        try:
            for array in arrays:
                array.hold_up(stream.handle)
            stream.wait()
        finally:
            stream.close()


def close_all(*opened: Any) -> None:
    """Close everything in reverse order, even if closing one fails."""
    with contextlib.ExitStack() as stack:
        for resource in opened:
            if resource is not None:
                stack.callback(resource.close)
