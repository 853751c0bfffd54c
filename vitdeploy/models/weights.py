"""Read and write files of named tensors."""

from __future__ import annotations

import collections
import re
import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from vitdeploy.errors import CheckpointError
from vitdeploy.files.opened import OpenedFile
from vitdeploy.files.regular_file import open_regular
from vitdeploy.models.torch_file import MOST_INDEX_BYTES, dense_tensors, is_state, load_torch, unreadable
from vitdeploy.system.exhaustion import check_exhaustion

# Modules that only wrap others during training, and that no Vision Transformer has itself: torch.compile's, FSDP's, and
# activation checkpointing's. Parts of a model may be wrapped separately.
_WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_PARALLEL = re.compile(r"^(?:module\.)+")  # DataParallel's, DistributedDataParallel's and AveragedModel's
# Tensors used only in training or by another library's code. None takes part in a forward pass.
_WITHOUT_EFFECT = (
    re.compile(r"(?:loss_fct|loss_fn|loss_func|loss|criterion)\.(?:weight|pos_weight)"),  # of the classes, in the loss
    re.compile(r"(?:.+\.)?position_ids"),  # 0, 1, 2 ...: indices for looking up position embeddings
    re.compile(r"n_averaged"),  # torch.optim.swa_utils.AveragedModel counts the averaged models
)
# A real model has at most a few thousand; a name takes many times its size in memory.
_MOST_TENSORS = 100_000
_MOST_MAPPED_BYTES = 64 * 1024**2  # of a file that is copied


def read_weights(files: Iterable[Path | OpenedFile], *, copied: bool = False) -> dict[str, Tensor]:
    """Read the tensors of one or more files, by name.

    Wrapper prefixes ("module.", "_orig_mod." ...) are removed, as by timm's `clean_state_dict`, and tensors without
    effect on inference (`_WITHOUT_EFFECT`) are omitted.

    Args:
        files: Safetensors files, or torch files, which are opened with `weights_only=True`.
        copied: True to copy every tensor, so that the files may be changed or removed. By default, safetensors files
            are memory-mapped: faster, and half the memory if tensors are converted or rewritten, but a later write to
            the file changes them.

    Raises:
        CheckpointError: If a file cannot be read, or a name occurs twice.
    """
    tensors: dict[str, Tensor] = {}
    spelling: dict[str, str] = {}
    for file in map(OpenedFile.of, files):
        is_safe = file.path.suffix == ".safetensors"
        pairs = _read_safetensors(file, copied=copied) if is_safe else _read_torch(file)
        _collect(file.path, pairs, tensors, spelling)
    return tensors


def state_weights(file: OpenedFile, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a state that `load_torch` read from a file, as `read_weights` returns them; `state` is emptied.

    Raises:
        CheckpointError: If one is not a dense array, a name occurs twice, or there are too many.
    """
    tensors: dict[str, Tensor] = {}
    _collect(file.path, _state_tensors(file, state), tensors, {})
    return tensors


def _collect(
    path: Path, pairs: Iterable[tuple[str, Tensor]], tensors: dict[str, Tensor], spelling: dict[str, str]
) -> None:
    """Add a file's tensors under their names without wrappers; `spelling` is the name of each in its file."""
    for spelled, tensor in pairs:
        name = unwrapped(spelled)
        if any(pattern.fullmatch(name) for pattern in _WITHOUT_EFFECT):
            continue
        if spelling.get(name, spelled) != spelled:
            message = f"{path}: '{spelling[name]}' and '{spelled}' are the same weight, once of a wrapped model"
            raise CheckpointError(message, what=name, where=path, found=spelled, hint="keep one of them")
        if name in tensors:
            message = f"{path}: '{name}' is in several files"
            raise CheckpointError(message, what=name, where=path, hint="keep one of them")
        tensors[name], spelling[name] = tensor, spelled


def unwrapped(name: str) -> str:
    """A weight's name without the prefixes of DataParallel, torch.compile and FSDP."""
    return _PARALLEL.sub("", _WRAPPERS.sub("", name))


def write_weights(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write safetensors; the same tensors give the same bytes."""
    path.touch()
    mode = path.stat().st_mode
    try:
        safetensors.torch.save_file(dict(tensors), path, metadata={"format": "pt"})
    except safetensors.SafetensorError as exc:
        raise OSError(f"{path}: {exc}") from exc
    path.chmod(mode)  # safetensors creates files readable by their owner only


def _read_safetensors(file: OpenedFile, *, copied: bool) -> Iterator[tuple[str, Tensor]]:
    """The tensors; unless copied, the system reads their values from the file on use."""
    path = file.path
    _check_header(file)
    try:
        with safetensors.safe_open(file.handle, framework="pt") as tensors:
            names = tensors.keys()
            _check_count(path, len(names))
            if not copied:
                for name in names:
                    yield name, tensors.get_tensor(name)
        if copied:
            yield from _copies(file.handle, names)
    except (MemoryError, OSError, safetensors.SafetensorError) as exc:
        check_exhaustion(exc, f"reading {path}")
        raise unreadable(path, file.named(str(exc))) from exc


def _copies(handle: str, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
    """Copied tensors. The file is remapped after some of them, so that its pages leave memory."""
    left = collections.deque(names)
    while left:
        with safetensors.safe_open(handle, framework="pt") as tensors:
            copied = 0
            while left and copied < _MOST_MAPPED_BYTES:
                tensor = tensors.get_tensor(left[0])
                copy = torch.empty_like(tensor)
                np.copyto(_bytes(copy), _bytes(tensor))  # torch would start threads: deadlock after a fork
                copied += copy.nbytes
                yield left.popleft(), copy


def _bytes(tensor: Tensor) -> np.ndarray:
    return tensor.reshape(-1).view(torch.uint8).numpy()


def _check_header(file: OpenedFile) -> None:
    """Refuse a header that would take far more memory than any model's; the library checks the rest."""
    path = file.path
    try:
        with open_regular(file.handle) as opened:
            begin = opened.read(8)
    except OSError as exc:
        raise unreadable(path, exc.strerror or str(exc)) from exc
    if len(begin) == 8 and struct.unpack("<Q", begin)[0] > MOST_INDEX_BYTES:
        raise unreadable(path, f"its header has more than {MOST_INDEX_BYTES:,} bytes", expected=MOST_INDEX_BYTES)


def _read_torch(file: OpenedFile) -> Iterator[tuple[str, Tensor]]:
    path, state = file.path, load_torch(file)
    if not is_state(state):
        message = f"{path} holds something else than named tensors"
        raise CheckpointError(message, where=path, expected="named tensors", hint="save the model's state_dict()")
    yield from _state_tensors(file, state)


def _state_tensors(file: OpenedFile, state: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    _check_count(file.path, len(state))
    yield from dense_tensors(file, state)


def _check_count(path: Path, count: int) -> None:
    if count > _MOST_TENSORS:
        raise unreadable(path, f"it has {count:,} tensors, at most {_MOST_TENSORS:,} are read", found=count)
