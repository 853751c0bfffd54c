"""Read a file of weights without a configuration: a state_dict, or a training checkpoint that holds one."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vitdeploy.errors import CheckpointError, shown
from vitdeploy.files.file_kinds import file_kind
from vitdeploy.files.opened import OpenedFile
from vitdeploy.models.torch_file import is_state, load_torch
from vitdeploy.models.weights import read_weights, state_weights
from vitdeploy.sources.architectures.weights_options import ENTRIES

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from vitdeploy.sources.architectures.weights_options import WeightsFile

_TORCHSCRIPT = "a TorchScript model"


@dataclasses.dataclass(frozen=True)
class TrainingFile:
    """Content of a file of weights.

    Attributes:
        path: The file.
        tensors: The weights, by name, without prefixes of wrappers such as "module.".
        note: The entry that was taken, if the file has several and none was named; else empty.
        arch: The architecture's name in the file, if any.
        arguments: The arguments of timm's train.py, if the file has them.
    """

    path: Path
    tensors: dict[str, Tensor]
    note: str = ""
    arch: str | None = None
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def read_training_file(weights: WeightsFile) -> TrainingFile:
    """Read the weights, and what a training checkpoint says of their architecture.

    Everything else in it, such as the optimizer's state, is ignored.

    Raises:
        CheckpointError: If the file is missing, corrupt or could run code, or has no such entry.
    """
    path = weights.located()
    file = OpenedFile.of(path)
    content = {} if path.suffix == ".safetensors" else _content(file)
    if path.suffix == ".safetensors" or (content and is_state(content)):
        if weights.entry is not None:
            raise CheckpointError(
                f"{path} holds one state_dict, and no entry {weights.entry!r:.80}",
                what="weights_entry", where=path, found=weights.entry, hint="leave --weights-entry out",
            )  # fmt: skip
        return TrainingFile(path, read_weights([path]) if not content else state_weights(file, content))
    entry, others, state = _entry(path, content, weights.entry)
    arguments = content.get("args")
    arguments = vars(arguments) if isinstance(arguments, argparse.Namespace) else arguments
    arguments = arguments if isinstance(arguments, Mapping) else {}
    arch = arguments.get("model", content.get("arch"))
    arch = arch if isinstance(arch, str) and arch else None
    note = f"the weights are {entry} of {path}; --weights-entry takes {', '.join(others)}" if others else ""
    return TrainingFile(path, state_weights(file, state), note, arch, arguments)


def _content(file: OpenedFile) -> dict[Any, Any]:
    path = file.path
    try:
        kind = file_kind(path)
    except OSError:
        kind = ""  # torch's reader says why
    if kind == _TORCHSCRIPT:
        raise CheckpointError(
            f"{path} is {kind}, which is code and not a file of weights",
            what="weights", where=path, found=kind,
            hint="load it where it was made, and save its weights: torch.save(model.state_dict(), 'weights.pth')",
        )  # fmt: skip
    content = load_torch(file, training=True)
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path} holds {shown(type(content).__name__)} and no state_dict",
            what="weights", where=path, hint="save the model's state_dict()",
        )  # fmt: skip
    return content


def _entry(path: Path, content: Mapping[Any, Any], name: str | None) -> tuple[str, list[str], dict[str, Tensor]]:
    """Key of the entry with the weights, those of others if none was named, and the entry."""
    states = {key: value for key, value in content.items() if isinstance(key, str) and value and is_state(value)}
    # An averaged model in another form is not passed over for the last weights.
    usual = (
        [key for key in ENTRIES if content.get(key) and isinstance(content[key], Mapping)] if name is None else [name]
    )
    chosen = usual[0] if usual else None
    if chosen is None or chosen not in states:
        named = name if name is not None else chosen
        problem = f"none of {', '.join(ENTRIES)} as" if named is None else f"no entry {named!r:.80} of"
        others = ", ".join(f"{key:.80}" for key in list(states)[:8])
        raise CheckpointError(
            f"{path} has {problem} named tensors" + (f", only: {others}" if states else ""),
            what="weights_entry", where=path, expected=tuple(states), found=named,
            hint="choose one with --weights-entry" if states else "save the model's state_dict()",
        )  # fmt: skip
    return chosen, [key for key in usual[1:] if key in states], states[chosen]
