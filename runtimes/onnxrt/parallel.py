"""Run the images of a batch in parallel, each in a run of its own."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, TypeVar

from vitdeploy.errors import UsageError
from vitdeploy.runtimes.onnxrt.session import CPU
from vitdeploy.system.cpu import ThreadCount, session_threads, usable_cpus
from vitdeploy.system.forks import ThreadPool

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy as np

    from vitdeploy.runtimes.device_arrays import DeviceArray
    from vitdeploy.runtimes.onnxrt.options import OnnxRuntimeOptions
    from vitdeploy.specs import TensorSpec

T = TypeVar("T")
R = TypeVar("R")


class ParallelRuns:
    """Threads that each run one image at a time, in one session whose operators have one thread.

    They are shared by all callers, so that there are never more of them than asked for.
    """

    def __init__(self, threads: int) -> None:
        self._threads, self._pool = threads, ThreadPool("vitdeploy-run")

    def map(self, function: Callable[[T], R], parts: Sequence[T]) -> list[R]:
        """Results in order; the first error is raised once the runs in progress have ended."""
        return list(self._pool.map(function, parts, threads=self._threads))

    def close(self) -> None:
        """Wait for the threads' end."""
        self._pool.close()


def run_threads(options: OnnxRuntimeOptions) -> ThreadCount | None:
    """Number of images that run at a time; None if a batch is one run.

    Raises:
        UsageError: If other options exclude it: a GPU, or several threads inside an operator.
    """
    if options.parallel_runs == 1:
        return None
    if tuple(options.providers or (CPU,)) != (CPU,):
        raise UsageError(
            f"parallel_runs needs {CPU} alone, got {', '.join(options.providers or ())}",
            what="parallel_runs", expected=(CPU,), found=options.providers, hint="leave it out",
        )  # fmt: skip
    for name in ("intra_op_threads", "inter_op_threads"):
        if getattr(options, name) > 1:
            raise UsageError(
                f"parallel_runs has one thread a run, {name} asks for {getattr(options, name)}",
                what=name, expected=1, found=getattr(options, name), hint=f"leave {name} or parallel_runs out",
            )  # fmt: skip
    if options.parallel_runs:
        return ThreadCount(options.parallel_runs, "runs of one thread, as asked for")
    threads = session_threads()
    return ThreadCount(threads.count or usable_cpus().workers, f"runs of one thread; {threads.reason}")


def check_batches(tensors: Sequence[TensorSpec]) -> None:
    """Raise UsageError unless every input and output has a dynamic batch as its first axis."""
    axes = {spec.shape[0] if spec.shape else None for spec in tensors}
    if len(axes) > 1 or not all(isinstance(axis, str) for axis in axes):
        raise UsageError(
            "parallel_runs needs a dynamic batch as the first axis of every input and output",
            what="parallel_runs", expected="batch", found=tuple(map(str, tensors)), hint="leave it out",
        )  # fmt: skip


def images(feeds: Mapping[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """Views of each image's arrays, as batches of 1."""
    count = len(next(iter(feeds.values())))
    return [{name: array[index : index + 1] for name, array in feeds.items()} for index in range(count)]


def device_images(arrays: Mapping[str, DeviceArray]) -> list[dict[str, DeviceArray]]:
    """The same for arrays of `run_device`, which are contiguous."""
    count = next(iter(arrays.values())).shape[0]
    return [{name: _image(array, index) for name, array in arrays.items()} for index in range(count)]


def _image(array: DeviceArray, index: int) -> DeviceArray:
    shape = (1, *array.shape[1:])
    stride = array.dtype.itemsize * math.prod(shape)
    return dataclasses.replace(array, shape=shape, address=array.address + index * stride)
