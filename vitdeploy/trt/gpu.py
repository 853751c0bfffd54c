"""GPUs of this machine, through cuda-python: an engine runs without torch."""

from __future__ import annotations

import dataclasses
from typing import Any

from vitdeploy.errors import DeviceError
from vitdeploy.system.imports import load_package


@dataclasses.dataclass(frozen=True)
class Gpu:
    """One GPU.

    Attributes:
        index: CUDA device index.
        compute_capability: Compute capability, such as "8.9".
        driver: Newest CUDA version that the driver supports, such as "13.0".
    """

    index: int
    name: str
    compute_capability: str
    driver: str


def cuda_runtime() -> Any:
    """The CUDA runtime module of cuda-python, whose functions return an error code and then their results.

    Raises:
        MissingDependencyError: If it is not installed.
    """
    return load_package("cuda.bindings.runtime", "using a GPU without torch", "cuda")


def check(what: str, result: tuple[Any, ...]) -> Any:
    """The result of a CUDA runtime call: none, one value, or several.

    Args:
        what: Action, such as "reserve device memory".

    Raises:
        DeviceError: If it failed.
    """
    code, *values = result
    if int(code) != 0:
        _, text = cuda_runtime().cudaGetErrorString(code)
        raise DeviceError(f"CUDA failed to {what}: {text.decode()} (error {int(code)})", what=what, found=int(code))
    return values[0] if len(values) == 1 else tuple(values) or None


def find_gpus() -> list[Gpu]:
    cuda = cuda_runtime()
    try:
        count = check("find an NVIDIA GPU", cuda.cudaGetDeviceCount())
    except DeviceError as exc:
        raise DeviceError(str(exc), what="gpu", found=exc.found, hint="use a machine with one and its driver") from exc
    version = check("tell the driver's version", cuda.cudaDriverGetVersion())
    driver = f"{version // 1000}.{version % 1000 // 10}"  # 1000 * major + 10 * minor, CUDA runtime API
    properties = [check("describe the GPU", cuda.cudaGetDeviceProperties(index)) for index in range(count)]
    names = [gpu.name.decode().rstrip("\0") for gpu in properties]
    return [Gpu(at, names[at], f"{gpu.major}.{gpu.minor}", driver) for at, gpu in enumerate(properties)]


def find_gpu(index: int | None = None) -> Gpu:
    """The GPU with that index. Default: the first.

    Raises:
        MissingDependencyError, DeviceError: As `find_gpus`; or if there are fewer GPUs.
    """
    gpus = find_gpus()
    if not (index or 0) < len(gpus):
        names = ", ".join(gpu.name for gpu in gpus) or "none"
        raise DeviceError(
            f"this machine has no cuda:{index or 0}, it has {len(gpus)}: {names}",
            what="device", expected=len(gpus), found=index or 0,
        )  # fmt: skip
    return gpus[index or 0]
