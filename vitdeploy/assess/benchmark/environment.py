"""Describe this machine, and probe the backends on it."""

from __future__ import annotations

import dataclasses
import importlib
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from vitdeploy._version import __version__
from vitdeploy.errors import UnavailableError, UsageError
from vitdeploy.runtimes import BACKENDS, runtime_class
from vitdeploy.system.cpu import session_threads, usable_cpus

_PACKAGES = (
    "numpy",
    "pillow",
    "onnxruntime",
    "onnxruntime-gpu",
    "torch",
    "onnx",
    "onnxscript",
    "transformers",
    "tensorrt",
    "tensorrt-rtx",
    "cuda-bindings",
)
_CPU_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8")


@dataclasses.dataclass(frozen=True)
class BackendCheck:
    """Whether a backend ran a small computation on a device; "" where the engine itself is missing or does not load.

    `note` is the engine's version, or what is missing and what to do.
    """

    backend: str
    device: str
    ready: bool
    note: str

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def check_backends() -> list[BackendCheck]:
    """Try every backend on every device or provider that its engine lists."""
    checks = []
    for name, backend in BACKENDS.items():
        try:
            cls = runtime_class(name)
        except UnavailableError as exc:
            checks.append(BackendCheck(name, "", False, str(exc)))
            continue
        # Not the metadata's version: onnxruntime also comes in packages of other names.
        engine = f"{backend.package} {importlib.import_module(backend.package).__version__}"
        for device, problem in cls.probe().items():
            checks.append(BackendCheck(name, device, problem is None, problem or engine))
    return checks


def machine() -> dict[str, str]:
    """Processor, CPUs, threads and versions, to stand beside every figure that is measured."""
    flags = _cpu_info("flags").split()
    return {
        "vitdeploy": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_info("model name") or platform.processor() or "unknown",
        "cpu flags": " ".join(flag for flag in _CPU_FLAGS if flag in flags),
        "cores": str(usable_cpus().logical),
        "default threads": _session_threads(),
    } | {name: installed for name in _PACKAGES if (installed := version_of(name))}


def _session_threads() -> str:
    """The threads that an ONNX Runtime session gets unless it is given a number, and why."""
    try:
        return str(session_threads())
    except UsageError as exc:
        return str(exc)


def version_of(package: str) -> str:
    """The installed version; "" where there is none."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _cpu_info(key: str) -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")
