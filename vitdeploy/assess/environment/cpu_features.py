"""CPU support for fast computation in lower precisions."""

from __future__ import annotations

import dataclasses
from typing import Any

from vitdeploy.system.processor import cpu_flags

# By Linux's names in /proc/cpuinfo: arch/x86/include/asm/cpufeatures.h, Documentation/arch/arm64/elf_hwcaps.rst.
_INSTRUCTIONS = {
    "int8": {
        "amx_int8": "AMX",
        "avx512_vnni": "AVX-512 VNNI",
        "avx_vnni": "AVX-VNNI",
        "avx_vnni_int8": "AVX-VNNI-INT8",
        "i8mm": "Arm I8MM",
        "asimddp": "Arm dot product",
    },
    "bf16": {"amx_bf16": "AMX", "avx512_bf16": "AVX-512 BF16", "bf16": "Arm BF16"},
}
_ABSENT = {"int8": "no VNNI, AMX or dot product: often no faster than fp32", "bf16": "no instructions for it"}


@dataclasses.dataclass(frozen=True)
class FastPrecision:
    """CPU support for one precision.

    Attributes:
        precision: "int8" or "bf16".
        fast: True if the CPU has fast instructions; None if the system does not report them.
        instructions: Available instruction sets.
    """

    precision: str
    fast: bool | None
    instructions: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.fast is None:
            return "unknown (this system does not list the CPU's instructions)"
        return f"yes ({', '.join(self.instructions)})" if self.fast else f"no ({_ABSENT[self.precision]})"

    def to_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "instructions": list(self.instructions)}


def fast_precisions(cpuinfo: str | None = None) -> tuple[FastPrecision, ...]:
    """Precisions below float32 whose speed depends on the CPU."""
    flags = cpu_flags() if cpuinfo is None else cpu_flags(cpuinfo)
    return tuple(
        FastPrecision(precision, bool(found) if flags else None, found)
        for precision, names in _INSTRUCTIONS.items()
        for found in [tuple(instructions for flag, instructions in names.items() if flag in flags)]
    )
