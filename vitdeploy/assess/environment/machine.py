"""Describe this machine, for the record beside every measured figure."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

from vitdeploy._version import __version__
from vitdeploy.errors import UsageError
from vitdeploy.system.cpu import session_threads, usable_cpus
from vitdeploy.system.processor import cpu_flags, cpu_name

PACKAGES = (
    "numpy",
    "pillow",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "torch",
    "onnx",
    "onnxscript",
    "transformers",
    "tensorrt",
    "tensorrt-rtx",
    "cuda-bindings",
)
_CPU_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8")


def machine() -> dict[str, str]:
    """Processor, CPUs, threads and versions."""
    flags = cpu_flags()
    return {
        "vitdeploy": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_name(),
        "cpu flags": " ".join(flag for flag in _CPU_FLAGS if flag in flags),
        "cores": str(usable_cpus().logical),
        "default threads": _session_threads(),
    } | {name: installed for name in PACKAGES if (installed := version_of(name))}


def _session_threads() -> str:
    """Default number of threads of an ONNX Runtime session, and the reason."""
    try:
        return str(session_threads())
    except UsageError as exc:
        return str(exc)


def version_of(package: str) -> str:
    """The installed version; "" if not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
