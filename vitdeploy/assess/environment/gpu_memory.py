"""GPU memory of this process, from NVML, the driver's own library."""

from __future__ import annotations

import ctypes
import os
from typing import Any

_LIBRARIES = ("libnvidia-ml.so.1", "nvml.dll")
_MOST_PROCESSES = 256
_UNKNOWN = 2**64 - 1  # NVML_VALUE_NOT_AVAILABLE


class _Process(ctypes.Structure):
    """nvmlProcessInfo_v2_t, which version 3 of the call fills (NVML API reference)."""

    _fields_ = (
        ("pid", ctypes.c_uint),
        ("usedGpuMemory", ctypes.c_ulonglong),
        ("gpuInstanceId", ctypes.c_uint),
        ("computeInstanceId", ctypes.c_uint),
    )


def gpu_memory_bytes(index: int) -> int | None:
    """Memory that this process holds on a GPU now; None if NVML is absent or does not tell.

    In a container with process numbers of its own, NVML does not list this process under its number there.

    Args:
        index: NVML's index of the GPU, which is CUDA's without `CUDA_VISIBLE_DEVICES`.
    """
    for name in _LIBRARIES:
        try:
            library: Any = ctypes.CDLL(name)
        except OSError:
            continue
        if library.nvmlInit_v2() != 0:
            return None
        try:
            return _of_process(library, index)
        finally:
            library.nvmlShutdown()
    return None


def _of_process(library: Any, index: int) -> int | None:
    device = ctypes.c_void_p()
    if library.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(index), ctypes.byref(device)) != 0:
        return None
    count, rows = ctypes.c_uint(_MOST_PROCESSES), (_Process * _MOST_PROCESSES)()
    if library.nvmlDeviceGetComputeRunningProcesses_v3(device, ctypes.byref(count), rows) != 0:
        return None
    used = [int(row.usedGpuMemory) for row in rows[: count.value] if row.pid == os.getpid()]
    return None if not used or _UNKNOWN in used else sum(used)
