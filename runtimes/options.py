"""Run-time options of a backend, and its device."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vitdeploy.errors import DeviceError, UsageError
from vitdeploy.system.option_fields import check_options

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclasses.dataclass(frozen=True)
class RuntimeOptions:
    """Base class of all backends' options, one dataclass each; a value validates itself on creation."""

    def __post_init__(self) -> None:
        check_options(self)

    @classmethod
    def of(cls, backend: str, given: RuntimeOptions | Mapping[str, Any] | None) -> Self:
        """The options of a backend, from an options value or from keyword arguments.

        Raises:
            UsageError: If an option is unknown or invalid, or the value belongs to another backend.
        """
        if type(given) is cls:
            return given
        if given is not None and not isinstance(given, Mapping):
            raise UsageError(
                f"the {backend} backend takes {cls.__name__}, got {type(given).__name__}",
                what="options", expected=cls.__name__, found=given,
            )  # fmt: skip
        known = tuple(field.name for field in dataclasses.fields(cls))
        for name in given or {}:
            if name not in known:
                raise UsageError(
                    f"options of the {backend} backend are {', '.join(known)}; got {name!r}", what=name, expected=known
                )
        return cls(**(given or {}))


def parse_device(name: str) -> tuple[str, int | None]:
    """Kind and index of "cpu", "cuda" or "cuda:1".

    Raises:
        UsageError: If it is none of these.
    """
    match = re.fullmatch(r"cpu|cuda(?::([0-9]+))?", name)
    if match is None:
        raise UsageError(f"unknown device {name!r}; known: cpu, cuda, cuda:N", what="device", found=name)
    index = match[1]
    return name.partition(":")[0], None if index is None else int(index)


def cuda_index(backend: str, device: str) -> int | None:
    """Index of "cuda" or "cuda:1", for a backend that runs on GPUs only.

    Raises:
        UsageError: If it is not a device.
        DeviceError: If it is the CPU.
    """
    kind, index = parse_device(device)
    if kind != "cuda":
        raise DeviceError(
            f"{backend} runs on an NVIDIA GPU alone, got device {device!r}",
            what="device", found=device, hint="give cuda, or cuda:N",
        )  # fmt: skip
    return index
