"""What the backends that run on torch share: devices, and arrays on their way to a device and back."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.dlpack import from_dlpack

from vitdeploy.errors import DeviceError, UsageError, first_line
from vitdeploy.runtimes.base import parse_device

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from vitdeploy.runtimes.device_arrays import DeviceArray


def open_device(name: str) -> torch.device:
    """The device of that name; "cuda" is the one that torch has chosen for this thread, by its number.

    Raises:
        UsageError: the name is none of a device.
        DeviceError: torch cannot use it.
    """
    parse_device(name)
    try:
        return torch.empty(1, device=torch.device(name)).device
    except (RuntimeError, AssertionError) as exc:  # torch asserts that it was built for the device
        raise DeviceError(f"device {name!r} must be one that torch can use: {first_line(exc)}") from exc


def probe_devices() -> dict[str, str | None]:
    """Multiply two matrices on each device: None, or why it failed."""
    names = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    found: dict[str, str | None] = {}
    for name in names:
        try:
            torch.ones(2, 2, device=name).matmul(torch.ones(2, 2, device=name)).cpu()
            found[name] = None
        except RuntimeError as exc:
            found[name] = first_line(exc)
    return found


def to_tensors(feeds: Mapping[str, np.ndarray], device: torch.device) -> dict[str, Tensor]:
    """The arrays on the device; torch cannot take every layout, and warns of read-only memory: those are copied."""
    arrays = {name: np.require(array, requirements=("C", "A", "W")) for name, array in feeds.items()}
    return {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}


def to_array(value: Tensor) -> np.ndarray:
    """A tensor of any device as a contiguous array."""
    return value.cpu().contiguous().numpy()


def gpu_of(device: torch.device) -> int | None:
    """The number of the GPU; None for the host."""
    return None if device.type == "cpu" else device.index or 0


def as_tensors(arrays: Mapping[str, DeviceArray]) -> dict[str, Tensor]:
    """The arrays themselves, in whose memory the tensors are; torch's stream waits for what is queued on them."""
    return {name: from_dlpack(array.source) for name, array in arrays.items()}


def write(name: str, value: Tensor, target: Tensor) -> None:
    """Put an output where it is wanted.

    Raises:
        UsageError: that has another shape.
    """
    if value.shape != target.shape:
        raise UsageError(f"expected '{name}' {tuple(value.shape)} to write to, got {tuple(target.shape)}")
    target.copy_(value)


def finish(device: torch.device) -> None:
    """Wait until all that this thread has queued on a device is done."""
    if device.type != "cpu":
        torch.cuda.current_stream(device).synchronize()


class _PlainConvolutions:
    """Keeps cuDNN from rounding the factors of float32 convolutions to the 11 bits of TF32, as it does by default.

    The setting is the process's: it is put back when the last block of all threads ends.
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
                except RuntimeError:  # whoever set what torch has had since 2.9 cannot read this one
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
