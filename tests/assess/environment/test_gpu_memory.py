"""GPU memory of this process, as NVML tells it; no GPU is needed."""

from __future__ import annotations

import ctypes
import os
from typing import Any

import pytest

from vitdeploy.assess.environment.gpu_memory import gpu_memory_bytes


class Nvml:
    """NVML with these processes (number and bytes) on GPU 1."""

    def __init__(self, *processes: tuple[int, int], starts: int = 0, lists: int = 0) -> None:
        self.processes, self.starts, self.lists = processes, starts, lists
        self.open = 0

    def nvmlInit_v2(self) -> int:  # noqa: N802
        self.open += self.starts == 0
        return self.starts

    def nvmlShutdown(self) -> int:  # noqa: N802
        self.open -= 1
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index: Any, handle: Any) -> int:  # noqa: N802
        return 0 if index.value == 1 else 2

    def nvmlDeviceGetComputeRunningProcesses_v3(self, handle: Any, count: Any, rows: Any) -> int:  # noqa: N802
        count._obj.value = len(self.processes)
        for row, (pid, used) in zip(rows, self.processes, strict=False):
            row.pid, row.usedGpuMemory = pid, used
        return self.lists


@pytest.mark.parametrize(
    ("library", "index", "expected"),
    [
        (Nvml((1, 50), (os.getpid(), 700), (os.getpid(), 30)), 1, 730),
        (Nvml((1, 50)), 1, None),
        (Nvml((os.getpid(), 2**64 - 1)), 1, None),
        (Nvml((os.getpid(), 700)), 0, None),
        (Nvml((os.getpid(), 700), lists=3), 1, None),
        (Nvml(starts=9), 1, None),
    ],
)
def test_memory_is_that_of_this_process(
    monkeypatch: pytest.MonkeyPatch, library: Nvml, index: int, expected: int | None
) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    assert gpu_memory_bytes(index) == expected
    assert library.open == 0


def test_a_machine_without_the_driver_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> Any:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", absent)
    assert gpu_memory_bytes(0) is None
