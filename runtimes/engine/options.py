"""Run-time options of an engine."""

from __future__ import annotations

import dataclasses
import os
from typing import Literal

from vitdeploy.runtimes.options import RuntimeOptions
from vitdeploy.system.option_fields import described, option

KERNEL_SPECIALIZATIONS = ("eager", "lazy", "none")  # of TensorRT-RTX, the default first


@described
@dataclasses.dataclass(frozen=True)
class EngineRuntimeOptions(RuntimeOptions):
    """Options of an engine on a GPU. An invalid value raises UsageError."""

    cuda_graphs: bool = option(
        True,
        "whether a shape's work is recorded and replayed: by TensorRT at its second run, by TensorRT-RTX as that "
        "library does.",
    )
    shapes_kept: int = option(
        8, "how many shapes stay ready, with their memory, in the order of their last use.", limits=(1, 1_000_000)
    )
    kernel_specialization: str | None = option(
        None,
        'for TensorRT-RTX: whether kernels for the very sizes of a new shape are compiled at once ("eager", the '
        'default), meanwhile ("lazy": slower ones run until then), or never ("none").',
        choices=KERNEL_SPECIALIZATIONS,
    )
    runtime_cache: str | os.PathLike[str] | Literal[False] | None = option(
        None,
        "for TensorRT-RTX: the file in which compiled kernels are kept, to open sooner; they can run code. By default "
        "one for this engine, GPU and version in the user's cache, or `VITDEPLOY_CACHE`, where that can be written; "
        "False for none. It is written when new ones were compiled, at most once in a minute, and at the end.",
    )
