"""Arrays of other libraries, on the GPU or the host, by DLPack: their memory is used where it lies.

The structures are those of DLPack's `dlpack.h`; the protocol is the Python array API standard's.
"""

from __future__ import annotations

import ctypes
import dataclasses
import math
from typing import Any

import numpy as np

from vitdeploy.errors import UsageError, first_line

_NO_STREAM = -1  # of `__dlpack__`: nothing is to be waited for
_ON_GPU = (2, 13)  # kDLCUDA, kDLCUDAManaged
_ON_HOST = (1, 3)  # kDLCPU, kDLCUDAHost
_KINDS = {0: "i", 1: "u", 2: "f", 6: "b"}  # kDLInt, kDLUInt, kDLFloat, kDLBool: numpy's letters


class _DLTensor(ctypes.Structure):
    """DLTensor, with which a DLManagedTensor begins."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


_capsule_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)


@dataclasses.dataclass(frozen=True)
class DeviceArray:
    """A view of an array.

    Attributes:
        address: of the first element.
        dtype: of its elements.
        shape: of the array, which is contiguous.
        source: whose memory it is.
        capsule: keeps the memory from being freed. Nobody takes it over, so that it frees what it holds itself.
    """

    address: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    source: Any
    capsule: object

    def hold_up(self, stream: int) -> None:
        """Make a stream of the GPU wait for what its library has queued on the array."""
        self.source.__dlpack__(stream=stream)


def view(name: str, array: Any, gpu: int | None, alignment: int = 1) -> DeviceArray:
    """A view of an array.

    Args:
        name: to be told where it does not fit.
        array: of numpy, torch, CuPy, JAX or another library with DLPack.
        gpu: the number of the GPU that it must be on; None for the host.
        alignment: of its address, in bytes.

    Raises:
        UsageError: it has no DLPack, or is somewhere else, or not contiguous and aligned, or of a type without numpy's.
    """
    if not hasattr(array, "__dlpack__") or not hasattr(array, "__dlpack_device__"):
        raise UsageError(f"'{name}' must be an array that is shared through DLPack, got {type(array).__name__}")
    kind, index = array.__dlpack_device__()
    if kind not in _ON_HOST if gpu is None else kind not in _ON_GPU or index != gpu:
        raise UsageError(
            f"'{name}' must be on {'the host' if gpu is None else f'cuda:{gpu}'}, is on number {int(index)} of "
            f"DLPack's device type {int(kind)}; move it there, or call run"
        )
    try:
        capsule = array.__dlpack__(stream=None if gpu is None else _NO_STREAM)
        pointer = _capsule_pointer(capsule, b"dltensor")
    except (BufferError, RuntimeError, TypeError, ValueError) as exc:  # one that requires gradients, for example
        raise UsageError(f"'{name}' must be shared through DLPack, is not: {first_line(exc)}") from exc
    tensor = _DLTensor.from_address(pointer)
    if tensor.code not in _KINDS or tensor.lanes != 1 or tensor.bits not in (8, 16, 32, 64):
        raise UsageError(
            f"'{name}' must be of a type that numpy has, is of DLPack's type {tensor.code} with {tensor.bits} bits"
        )
    shape = tuple(tensor.shape[: tensor.ndim])
    address = (tensor.data or 0) + tensor.byte_offset
    if tensor.strides and not _contiguous(shape, tensor.strides[: tensor.ndim]):
        raise UsageError(f"'{name}' must be contiguous, its strides are {tensor.strides[: tensor.ndim]}; copy it")
    if address % alignment and all(shape):  # where an array of no elements lies means nothing
        raise UsageError(f"'{name}' must begin at a multiple of {alignment} bytes, as new arrays do, does not; copy it")
    return DeviceArray(address, np.dtype(f"{_KINDS[tensor.code]}{tensor.bits // 8}"), shape, array, capsule)


def _contiguous(shape: tuple[int, ...], strides: list[int]) -> bool:
    """Whether rows lie one behind the other; along an axis of one element nothing is stepped over."""
    return all(
        size == 1 or stride == math.prod(shape[axis + 1 :])
        for axis, (size, stride) in enumerate(zip(shape, strides, strict=True))
    )
