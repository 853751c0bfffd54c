"""The processor of this machine: its name, its instruction sets, and what is usable of it."""

from __future__ import annotations

import platform
from pathlib import Path

from vitdeploy.system.cpu import usable_cpus

_CPUINFO = "/proc/cpuinfo"
# Instruction sets that decide which precision is fast, by Linux's names in /proc/cpuinfo.
_DECISIVE = (
    "avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "avx512_fp16", "amx_int8", "amx_bf16", "asimddp",
    "i8mm", "bf16",
)  # fmt: skip


def cpu_flags(cpuinfo: str = _CPUINFO) -> frozenset[str]:
    """Instruction sets of the first CPU, by kernel name; empty if the system does not report them."""
    return frozenset((_cpu_info(cpuinfo, "flags") or _cpu_info(cpuinfo, "Features")).split())


def cpu_name(cpuinfo: str = _CPUINFO) -> str:
    """The CPU's model name."""
    return _cpu_info(cpuinfo, "model name") or platform.processor() or "unknown"


def processor_identity() -> dict[str, str]:
    """The CPU, its instruction sets, and the CPUs that this process may use: measured times depend on them."""
    flags, cpus = cpu_flags(), usable_cpus()
    return {
        "cpu": cpu_name(),
        "cpu flags": " ".join(flag for flag in _DECISIVE if flag in flags),
        "cpus": str(cpus.logical) if cpus.quota is None else f"{cpus.logical}, quota {cpus.quota:g}",
    }


def _cpu_info(cpuinfo: str, key: str) -> str:
    path = Path(cpuinfo)
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    pairs = (line.partition(":") for line in lines)
    return next((value.strip() for name, _, value in pairs if name.strip() == key), "")
