"""Read and write files of named tensors."""

from __future__ import annotations

import pickle
import warnings
from typing import TYPE_CHECKING

import safetensors
import safetensors.torch
import torch

from vitdeploy.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from torch import Tensor


def read_weights(files: Iterable[Path]) -> dict[str, Tensor]:
    """The tensors of one or more files, by name.

    Args:
        files: safetensors files, or torch files, which are opened with `weights_only=True`.

    Raises:
        CheckpointError: a file cannot be read, or a name occurs twice.
    """
    tensors: dict[str, Tensor] = {}
    for path in files:
        for name, tensor in _read(path):
            if name in tensors:
                raise CheckpointError(f"{path}: '{name}' must be in one file, is in several; keep one of them")
            tensors[name] = tensor
    return tensors


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


def _read(path: Path) -> Iterator[tuple[str, Tensor]]:
    return _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)


def _read_safetensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  (not a dict)
                yield name, file.get_tensor(name)
    except (OSError, safetensors.SafetensorError) as exc:
        raise _unreadable(path, str(exc)) from exc


def _read_torch(path: Path) -> Iterator[tuple[str, Tensor]]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # advice about files that are refused below
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as exc:  # its text advises to open the file without the protection
        raise _unreadable(path, "it is corrupt, or holds more than tensors and could run code") from exc
    except Exception as exc:  # a corrupt pickle raises almost anything: KeyError, struct.error, AssertionError ...
        raise _unreadable(path, str(exc)) from exc
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in state.items()
    ):
        raise CheckpointError(f"{path} must hold named tensors and nothing else")
    for name, tensor in state.items():
        yield name, tensor.clone()  # tied weights share their memory, which safetensors refuses to write


def _unreadable(path: Path, reason: str) -> CheckpointError:
    first, *_ = [*reason.strip().splitlines(), ""]
    return CheckpointError(f"{path} must be a readable checkpoint: {first or 'it is corrupt'}")
