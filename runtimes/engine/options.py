"""Run-time options of an engine."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Literal

from vitdeploy.errors import UsageError, check_count, shown
from vitdeploy.runtimes.options import RuntimeOptions

if TYPE_CHECKING:
    import os

KERNEL_SPECIALIZATIONS = ("eager", "lazy", "none")  # of TensorRT-RTX, the default first


@dataclasses.dataclass(frozen=True)
class EngineRuntimeOptions(RuntimeOptions):
    """Options of an engine on a GPU.

    Attributes:
        cuda_graphs: whether a shape's work is recorded and replayed: by TensorRT at its second run, by TensorRT-RTX
            as that library does.
        shapes_kept: how many shapes stay ready, with their memory, in the order of their last use.
        kernel_specialization: for TensorRT-RTX: whether kernels for the very sizes of a new shape are compiled at once
            ("eager", its default here), meanwhile ("lazy": slower ones run until then), or never ("none").
        runtime_cache: for TensorRT-RTX: the file in which compiled kernels are kept, to open sooner; they can run code.
            By default one for this engine, GPU and version in the user's cache, or `VITDEPLOY_CACHE`, where that can be
            written; False for none. It is written when new ones were compiled, at most once in a minute, and when the
            runtime is closed.

    Raises:
        UsageError: a value is invalid.
    """

    cuda_graphs: bool = True
    shapes_kept: int = 8
    kernel_specialization: str | None = None
    runtime_cache: str | os.PathLike[str] | Literal[False] | None = None

    def __post_init__(self) -> None:
        check_count("shapes_kept", self.shapes_kept)
        if self.kernel_specialization not in (None, *KERNEL_SPECIALIZATIONS):
            raise UsageError(
                f"kernel_specialization must be one of {', '.join(KERNEL_SPECIALIZATIONS)}, "
                f"got {shown(self.kernel_specialization)}",
                what="kernel_specialization", expected=KERNEL_SPECIALIZATIONS, found=self.kernel_specialization,
            )  # fmt: skip
