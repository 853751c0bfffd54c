"""Arrays of other libraries through DLPack, on the GPU or the host, without a copy.

The structures are those of DLPack's `dlpack.h`; the protocol is the Python array API standard's.
"""

from __future__ import annotations

import ctypes
import dataclasses
import math
from typing import Any

import numpy as np

from vitdeploy.errors import UsageError, first_line

_VERSION = (1, 0)  # the first whose capsules have flags
_READ_ONLY = 1  # DLPACK_FLAG_BITMASK_READ_ONLY
_NO_STREAM = -1  # argument of `__dlpack__`: no synchronization
_ON_GPU = (2, 13)  # kDLCUDA, kDLCUDAManaged
_ON_HOST = (1, 3)  # kDLCPU, kDLCUDAHost
# numpy's types, by DLPack's code (kDLInt, kDLUInt, kDLFloat, kDLBool) and bits.
_DTYPES = {
    (code, bits): np.dtype(f"{letter}{bits // 8}")
    for code, letter, sizes in (
        (0, "i", (8, 16, 32, 64)),
        (1, "u", (8, 16, 32, 64)),
        (2, "f", (16, 32, 64)),
        (6, "b", (8,)),
    )
    for bits in sizes
}
_MOST_AXES = 64  # of numpy's arrays


class _DLTensor(ctypes.Structure):
    """DLTensor, the first field of a DLManagedTensor."""

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


class _DLManagedTensorVersioned(ctypes.Structure):
    """DLManagedTensorVersioned, in capsules named "dltensor_versioned"."""

    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("manager_ctx", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("dl_tensor", _DLTensor),
    )


_is_capsule = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_IsValid", ctypes.pythonapi)
)
_capsule_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)


@dataclasses.dataclass(frozen=True)
class DeviceArray:
    """A view of an array.

    Attributes:
        address: Address of the first element.
        shape: Shape of the contiguous array.
        source: Owner of the memory.
        capsule: Keeps the memory alive. It is never consumed, so it releases the memory itself.
    """

    address: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    source: Any
    capsule: object

    def hold_up(self, stream: int) -> None:
        """Make a GPU stream wait for work that the array's library has queued on it."""
        _share(self.source, stream)


def view(name: str, array: Any, gpu: int | None, alignment: int = 1, *, writable: bool = False) -> DeviceArray:
    """A view of an array.

    Args:
        name: Name for messages.
        array: Array of numpy, torch, CuPy, JAX or another library with DLPack.
        gpu: Index of the GPU that must hold it; None for the host.
        alignment: Required alignment of its address, in bytes.
        writable: True if it will be written to.

    Raises:
        UsageError: If it has no DLPack, is on another device, is not contiguous and aligned, has a type that numpy
            lacks, or is read-only although it will be written to.
    """

    def refused(problem: str, expected: object, found: object, hint: str | None = None) -> UsageError:
        return UsageError(f"'{name}' {problem}", what=name, expected=expected, found=found, hint=hint)

    if not hasattr(array, "__dlpack__") or not hasattr(array, "__dlpack_device__"):
        raise refused(f"is no array with DLPack, but a {type(array).__name__}", "DLPack", type(array).__name__)
    try:
        kind, index = map(int, array.__dlpack_device__())
    except Exception as exc:  # any exception of its library
        reason = f"{type(exc).__name__}: {first_line(exc)}"
        raise refused(f"does not say which device it is on: {reason}", "a device", reason) from exc
    if kind not in _ON_HOST if gpu is None else kind not in _ON_GPU or index != gpu:
        device = "the host" if gpu is None else f"cuda:{gpu}"
        problem = f"is on number {index} of DLPack's device type {kind}, not on {device}"
        raise refused(problem, device, (kind, index), "move it there, or call run")
    try:
        capsule = _share(array, None if gpu is None else _NO_STREAM)
        tensor, read_only = _opened(capsule, array)
    except Exception as exc:  # likewise: for example, if it requires gradients
        raise refused(f"cannot be shared through DLPack: {first_line(exc)}", "a capsule", first_line(exc)) from exc
    if writable and read_only:
        raise refused("is read-only", "writable", "read-only", "give another array")
    if not 0 <= tensor.ndim <= _MOST_AXES or (tensor.ndim and not tensor.shape):
        raise refused(f"has a DLPack capsule of {tensor.ndim} axes and no shape", "a shape", None)
    if (tensor.code, tensor.bits) not in _DTYPES or tensor.lanes != 1:
        problem = f"has DLPack's type {tensor.code} with {tensor.bits} bits, which numpy lacks"
        raise refused(problem, "a type of numpy", (tensor.code, tensor.bits, tensor.lanes))
    shape = tuple(tensor.shape[: tensor.ndim])
    address = (tensor.data or 0) + tensor.byte_offset
    if min(shape, default=0) < 0 or (all(shape) and not tensor.data):
        raise refused(f"has a DLPack capsule of shape {shape} at {address:#x}", "memory", (shape, address))
    strides = tensor.strides[: tensor.ndim] if tensor.strides else None
    if strides is not None and not _contiguous(shape, strides):
        raise refused(f"is not contiguous: its strides are {strides}", "contiguous", strides, "copy it")
    if address % alignment and all(shape):  # the address of an empty array is meaningless
        problem = f"does not begin at a multiple of {alignment} bytes, as new arrays do"
        raise refused(problem, alignment, address, "copy it")
    return DeviceArray(address, _DTYPES[tensor.code, tensor.bits], shape, array, capsule)


def _share(array: Any, stream: int | None) -> object:
    """Its capsule, with flags if its library supports them."""
    try:
        return array.__dlpack__(stream=stream, max_version=_VERSION)
    except TypeError:  # a library older than the array API standard of 2023
        return array.__dlpack__(stream=stream)


def _opened(capsule: object, array: Any) -> tuple[_DLTensor, bool]:
    """The tensor in a capsule, and its read-only flag.

    Raises:
        ValueError: If it is not a DLPack capsule, or has a later version.
    """
    if not _is_capsule(capsule, b"dltensor_versioned"):
        return _DLTensor.from_address(_capsule_pointer(capsule, b"dltensor")), _is_read_only(array)
    managed = _DLManagedTensorVersioned.from_address(_capsule_pointer(capsule, b"dltensor_versioned"))
    if managed.major != _VERSION[0]:  # only its first fields are known
        raise ValueError(f"it is of DLPack {managed.major}.{managed.minor}, {_VERSION[0]}.x was asked for")
    return managed.dl_tensor, bool(managed.flags & _READ_ONLY)


def _is_read_only(array: Any) -> bool:
    """True if another protocol says read-only, for capsules without flags: JAX's arrays all are (jax-ml/jax#40789)."""
    interface = getattr(array, "__cuda_array_interface__", None)
    if interface is not None:
        return bool(interface["data"][1])
    try:
        return memoryview(array).readonly
    except TypeError:  # it has no buffer
        return False


def _contiguous(shape: tuple[int, ...], strides: list[int]) -> bool:
    """True for row-major without gaps; the stride of an axis of length 1 is ignored."""
    return all(
        size == 1 or stride == math.prod(shape[axis + 1 :])
        for axis, (size, stride) in enumerate(zip(shape, strides, strict=True))
    )
