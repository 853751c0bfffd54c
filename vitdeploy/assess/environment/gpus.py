"""NVIDIA GPUs of this machine, as the driver reports them; needs no Python package."""

from __future__ import annotations

import ctypes
import dataclasses
import subprocess
from typing import Any

from vitdeploy.errors import DeviceError

_FIELDS = ("name", "memory.total", "compute_cap", "driver_version")
_TIMEOUT_S = 30  # loading the driver can take seconds
_DRIVER_LIBRARIES = ("libcuda.so.1", "nvcuda.dll")


@dataclasses.dataclass(frozen=True)
class GpuDescription:
    """One GPU.

    Attributes:
        name: Product name.
        memory: Total memory, such as "143771 MiB".
        compute_capability: Compute capability, such as "9.0".
        driver: Driver version.
        cuda: Newest CUDA version that the driver supports; "" if unknown.
    """

    name: str
    memory: str
    compute_capability: str
    driver: str
    cuda: str

    def __str__(self) -> str:
        cuda = f", CUDA up to {self.cuda}" if self.cuda else ""
        return f"{self.name}, {self.memory}, compute capability {self.compute_capability}, driver {self.driver}{cuda}"

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def describe_gpus(command: str = "nvidia-smi") -> tuple[GpuDescription, ...]:
    """Describe every GPU; none without an installed driver.

    Raises:
        DeviceError: If a driver is installed but does not respond.
    """
    query = [command, f"--query-gpu={','.join(_FIELDS)}", "--format=csv,noheader"]
    try:
        done = subprocess.run(  # noqa: S603  (the driver's own program, with arguments of ours)
            query, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    except FileNotFoundError:
        return ()
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise DeviceError(f"{command} does not answer: {exc}", what="gpu") from exc
    if done.returncode != 0:
        reason = (done.stdout + done.stderr).strip().partition("\n")[0] or f"exit code {done.returncode}"
        raise DeviceError(f"{command} failed: {reason}", what="gpu", found=done.returncode)
    cuda = _driver_cuda()
    return tuple(_described(line, cuda) for line in done.stdout.splitlines())


def _described(line: str, cuda: str) -> GpuDescription:
    name, memory, compute_capability, driver = line.rsplit(", ", len(_FIELDS) - 1)
    return GpuDescription(name, memory, compute_capability, driver, cuda)


def _driver_cuda() -> str:
    """The driver's newest CUDA version, from CUDA's driver API."""
    number = ctypes.c_int()
    for name in _DRIVER_LIBRARIES:
        try:
            status = ctypes.CDLL(name).cuDriverGetVersion(ctypes.byref(number))
        except OSError:  # no such library here
            continue
        if status == 0:
            return f"{number.value // 1000}.{number.value % 1000 // 10}"  # 1000 * major + 10 * minor
    return ""
