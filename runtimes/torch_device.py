"""Base class of the torch backends: devices, and copies of arrays to a device and back."""

from __future__ import annotations

import abc
import contextlib
import os
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from vitdeploy.errors import DeviceError, UsageError, first_line
from vitdeploy.runtimes.base import Runtime
from vitdeploy.runtimes.device_arrays import DeviceArray
from vitdeploy.runtimes.options import parse_device
from vitdeploy.system.cpu import ThreadCount, usable_cpus
from vitdeploy.system.forks import call_with_threads


def open_device(name: str) -> torch.device:
    """The device of that name; "cuda" becomes the index of torch's current device in this thread.

    Raises:
        UsageError: If it is not a device name.
        DeviceError: If torch cannot use it.
    """
    parse_device(name)
    try:
        return torch.empty(1, device=torch.device(name)).device
    except (RuntimeError, AssertionError) as exc:  # torch asserts that it was built for the device
        reason = first_line(exc)
        raise DeviceError(f"torch cannot use device {name!r}: {reason}", what="device", found=name) from exc


def probe_devices() -> dict[str, str | None]:
    """Multiply two matrices on each device: None for success, or the reason for failure."""
    names = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    problems: dict[str, str | None] = {}
    for name in names:
        try:
            torch.ones(2, 2, device=name).matmul(torch.ones(2, 2, device=name)).cpu()
            problems[name] = None
        except RuntimeError as exc:
            problems[name] = first_line(exc)
    return problems


def torch_threads() -> ThreadCount:
    """The number of torch's threads in this process, with the reason.

    The number is global to the process, so the runtimes do not change it. torch's default respects the affinity mask
    and `OMP_NUM_THREADS`, but no cgroup quota; if it exceeds the quota, the reason includes the remedy.
    """
    count, cpus = torch.get_num_threads(), usable_cpus()
    reason = "OMP_NUM_THREADS" if os.environ.get("OMP_NUM_THREADS") == str(count) else "torch's setting for the process"
    if not cpus.limited:
        return ThreadCount(count, reason)
    allowed = cpus.threads
    if count > allowed.count:
        reason += f", too many: call torch.set_num_threads({allowed.count})"
    return ThreadCount(count, f"{reason}; {allowed.reason}")


def to_tensors(feeds: Mapping[str, np.ndarray], device: torch.device) -> dict[str, Tensor]:
    """The arrays on the device. Layouts that torch cannot take and read-only memory, of which it warns, are copied."""
    arrays = {name: np.require(array, requirements=("C", "A", "W")) for name, array in feeds.items()}
    return {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}


def to_array(value: Tensor) -> np.ndarray:
    """A tensor on any device as a contiguous array."""
    return value.cpu().contiguous().numpy()


class _PlainConvolutions:
    """Prevents cuDNN from rounding float32 convolutions to TF32 (11 bits), its default.

    The setting is global to the process; it is restored when the last block in any thread ends.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._blocks = 0
        self._place: tuple[Any, str] = _OF_CUDNN
        self._before: Any = None

    def __enter__(self) -> None:
        with self._lock:
            if self._blocks == 0:
                plain: object = False
                self._place = _OF_CUDNN
                try:
                    self._before = getattr(*self._place)
                except RuntimeError:  # cannot read a setting made with the API of torch 2.9 and later
                    self._place, plain = (_CUDNN.conv, "fp32_precision"), "ieee"
                    self._before = getattr(*self._place)
                setattr(*self._place, plain)
            self._blocks += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._blocks -= 1
            if self._blocks == 0:
                setattr(*self._place, self._before)


_CUDNN: Any = torch.backends.cudnn
_OF_CUDNN = (_CUDNN, "allow_tf32")
plain_convolutions = _PlainConvolutions()


class TorchRuntime(Runtime):
    """Base class of runtimes on torch.

    Args:
        device: "cpu", "cuda" or "cuda:1".

    Raises:
        DeviceError: If the device is not available.
        UsageError: If the device is unknown.
    """

    def __init__(self, device: str) -> None:
        super().__init__()
        self._device = open_device(device)
        self._thread_details: dict[str, Any] = {}  # for `details`: none on a GPU
        if self._device.type == "cpu":
            self.threads = torch_threads()
            self._thread_details = {"threads": self.threads.count, "threads_reason": self.threads.reason}
        else:
            self.gpu = self._device.index

    @classmethod
    def probe(cls) -> dict[str, str | None]:
        return probe_devices()

    @abc.abstractmethod
    def _outputs(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The model's outputs by name, for inputs on its device; `tensors` may have additional entries."""

    def _why(self, exc: RuntimeError) -> str:
        return first_line(exc)

    def _lost_in_fork(self) -> str | None:
        return None if self.gpu is None else "CUDA does not work in a forked process"

    def _run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        if self.gpu is not None:
            return self._run_here(feeds)
        return call_with_threads(self._run_here, feeds)

    def _run_device(self, arrays: Mapping[str, DeviceArray]) -> None:
        if self.gpu is not None:  # this thread's current stream
            self._run_device_here(arrays)
        else:
            call_with_threads(self._run_device_here, arrays)

    def _run_here(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        with self._inference():
            outputs = self._outputs(to_tensors(feeds, self._device))
            return {name: to_array(value) for name, value in outputs.items()}

    def _run_device_here(self, arrays: Mapping[str, DeviceArray]) -> None:
        with self._inference():
            # In the arrays' memory; torch's stream waits for the work queued on them.
            tensors = {name: from_dlpack(array.source) for name, array in arrays.items()}
            for name, value in self._outputs(tensors).items():
                target = tensors[name]
                if value.shape != target.shape:
                    expected, given = tuple(value.shape), tuple(target.shape)
                    raise UsageError(
                        f"expected '{name}' {expected} to write to, got {given}",
                        what=name,
                        expected=expected,
                        found=given,
                    )
                target.copy_(value)
            if self.gpu is not None:
                torch.cuda.current_stream(self._device).synchronize()

    @contextlib.contextmanager
    def _inference(self) -> Iterator[None]:
        plain = contextlib.nullcontext() if self.gpu is None else plain_convolutions
        try:
            with torch.inference_mode(), plain:
                yield
        except RuntimeError as exc:  # out of memory, or no compiler for torch.compile
            reason = self._why(exc)
            raise DeviceError(
                f"torch failed to run the model on {self._device}: {reason}", what="torch", found=reason
            ) from exc
