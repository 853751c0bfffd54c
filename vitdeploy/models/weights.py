"""Read and write files of named tensors."""

from __future__ import annotations

import pickle
import re
import warnings
from typing import TYPE_CHECKING

import safetensors
import safetensors.torch
import torch

from vitdeploy.errors import CheckpointError
from vitdeploy.opened import OpenedFile

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from torch import Tensor

# Modules that only wrap others while a model is trained, of which no Vision Transformer has one of its own:
# torch.compile's, FSDP's, and the one of activation checkpointing. Parts of a model may be wrapped one by one.
_WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_PARALLEL = re.compile(r"^(?:module\.)+")  # DataParallel's, DistributedDataParallel's and AveragedModel's
# Tensors that only training, or the code of another library, has a use for. None takes part in a forward pass.
_WITHOUT_EFFECT = (
    re.compile(r"(?:loss_fct|loss_fn|loss_func|loss|criterion)\.(?:weight|pos_weight)"),  # of the classes, in the loss
    re.compile(r"(?:.+\.)?position_ids"),  # 0, 1, 2 ...: by which a model looks up position embeddings that it has
    re.compile(r"n_averaged"),  # torch.optim.swa_utils.AveragedModel counts the averaged models
)


def read_weights(files: Iterable[Path | OpenedFile]) -> dict[str, Tensor]:
    """The tensors of one or more files, by name.

    The prefixes of wrappers ("module.", "_orig_mod." ...) are removed, as timm's `clean_state_dict` does, and tensors
    without effect on inference (`_WITHOUT_EFFECT`) are left out.

    Args:
        files: safetensors files, or torch files, which are opened with `weights_only=True`.

    Raises:
        CheckpointError: a file cannot be read, or a name occurs twice.
    """
    tensors: dict[str, Tensor] = {}
    spelling: dict[str, str] = {}
    for file in map(OpenedFile.of, files):
        path = file.path
        for spelled, tensor in _read(file):
            name = unwrapped(spelled)
            if any(pattern.fullmatch(name) for pattern in _WITHOUT_EFFECT):
                continue
            if spelling.get(name, spelled) != spelled:
                raise CheckpointError(
                    f"{path}: '{spelling[name]}' and '{spelled}' are the same weight, once of a wrapped model; "
                    f"keep one of them"
                )
            if name in tensors:
                raise CheckpointError(f"{path}: '{name}' must be in one file, is in several; keep one of them")
            tensors[name], spelling[name] = tensor, spelled
    return tensors


def unwrapped(name: str) -> str:
    """The name of a weight without what DataParallel, torch.compile and FSDP add to it."""
    return _PARALLEL.sub("", _WRAPPERS.sub("", name))


def write_weights(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write safetensors; the same tensors give the same bytes.

    Raises:
        OSError: the file cannot be written.
    """
    path.touch()
    mode = path.stat().st_mode
    try:
        safetensors.torch.save_file(dict(tensors), path, metadata={"format": "pt"})
    except safetensors.SafetensorError as exc:
        raise OSError(f"{path}: {exc}") from exc
    path.chmod(mode)  # safetensors makes files that only their owner can read


def _read(file: OpenedFile) -> Iterator[tuple[str, Tensor]]:
    return _read_safetensors(file) if file.path.suffix == ".safetensors" else _read_torch(file)


def _read_safetensors(file: OpenedFile) -> Iterator[tuple[str, Tensor]]:
    try:
        with safetensors.safe_open(file.handle, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  (not a dict)
                yield name, tensors.get_tensor(name)
    except (OSError, safetensors.SafetensorError) as exc:
        raise _unreadable(file.path, file.named(str(exc))) from exc


def _read_torch(file: OpenedFile) -> Iterator[tuple[str, Tensor]]:
    path = file.path
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # advice about files that are refused below
            state = torch.load(file.handle, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as exc:  # its text advises to open the file without the protection
        raise _unreadable(path, "it is corrupt, or holds more than tensors and could run code") from exc
    except Exception as exc:  # a corrupt pickle raises almost anything: KeyError, struct.error, AssertionError ...
        raise _unreadable(path, file.named(str(exc))) from exc
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in state.items()
    ):
        raise CheckpointError(f"{path} must hold named tensors and nothing else")
    for name, tensor in state.items():
        yield name, tensor.clone()  # tied weights share their memory, which safetensors refuses to write


def _unreadable(path: Path, reason: str) -> CheckpointError:
    first, *_ = [*reason.strip().splitlines(), ""]
    return CheckpointError(f"{path} must be a readable checkpoint: {first or 'it is corrupt'}")
