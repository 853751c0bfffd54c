"""Read and write files of named tensors."""

from __future__ import annotations

import collections
import io
import os
import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from vitdeploy.errors import CheckpointError, first_line
from vitdeploy.files.content_limit import check_content
from vitdeploy.files.opened import OpenedFile
from vitdeploy.files.regular_file import open_regular
from vitdeploy.models.legacy_file import storage_bytes
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
_MOST_INDEX_BYTES = 32 * 1024**2  # raw size of the names, types and locations of all tensors
_MOST_TENSORS = 100_000
_MOST_MAPPED_BYTES = 64 * 1024**2  # of a file that is copied
_ZIP_MAGIC = b"PK\3\4"


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
        path = file.path
        is_safe = path.suffix == ".safetensors"
        for spelled, tensor in _read_safetensors(file, copied=copied) if is_safe else _read_torch(file):
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
    return tensors


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
        raise _unreadable(path, file.named(str(exc))) from exc


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
        raise _unreadable(path, exc.strerror or str(exc)) from exc
    if len(begin) == 8 and struct.unpack("<Q", begin)[0] > _MOST_INDEX_BYTES:
        raise _unreadable(path, f"its header has more than {_MOST_INDEX_BYTES:,} bytes", expected=_MOST_INDEX_BYTES)


def _read_torch(file: OpenedFile) -> Iterator[tuple[str, Tensor]]:
    """The tensors, each in its own memory: tied weights share theirs, which safetensors refuses to write."""
    path, state = file.path, _load_torch(file)
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in state.items()
    ):
        message = f"{path} holds something else than named tensors"
        raise CheckpointError(message, where=path, expected="named tensors", hint="save the model's state_dict()")
    _check_count(path, len(state))
    for name, tensor in state.items():
        kind = _unusual_kind(tensor)
        if kind is not None:
            hint = "save it as a dense tensor of floating-point numbers"
            message = f"{path}: '{name:.80}' is {kind}, not a plain array"
            raise CheckpointError(message, what=name, where=path, found=kind, hint=hint)
    check_content(path, sum(tensor.numel() * tensor.element_size() for tensor in state.values()), file.handle)
    for name in tuple(state):
        tensor = state.pop(name)  # one at a time is in memory twice
        try:
            yield name, tensor.clone()
        except RuntimeError as exc:
            check_exhaustion(exc, f"reading {path}")
            raise


def _load_torch(file: OpenedFile) -> object:
    path = file.path
    _check_sizes(file)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings about files that are refused below
            return torch.load(file.handle, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as exc:  # its message recommends opening the file without protection
        raise _unreadable(path, "it is corrupt, or holds more than tensors and could run code") from exc
    except Exception as exc:  # a corrupt pickle raises almost anything: KeyError, struct.error, AssertionError ...
        check_exhaustion(exc, f"reading {path}")
        raise _unreadable(path, _reason(file.named(str(exc)))) from exc


def _reason(message: str) -> str:
    """A readable reason from torch's message, which may recommend removing the protection, or lack its numbers."""
    if "weights_only" in message:
        return "it is in no format of torch that is read"
    return "its tensors are not as long as its index says" if "%ld" in message else message


def _check_sizes(file: OpenedFile) -> None:
    """Refuse a torch file that could take far more memory than its size, before torch reads it."""
    path = file.path
    try:
        with open_regular(file.handle) as opened:
            is_archive = opened.read(len(_ZIP_MAGIC)) == _ZIP_MAGIC
            opened.seek(0)
            content_bytes = (_archive_bytes if is_archive else _legacy_bytes)(path, opened)
        check_content(path, content_bytes, file.handle)
    except OSError as exc:
        check_exhaustion(exc, f"reading {path}")
        raise _unreadable(path, exc.strerror or str(exc)) from exc


def _archive_bytes(path: Path, opened: BinaryIO) -> int:
    """Total size, in bytes, of a zip file's records.

    torch stores records uncompressed, but also reads records that were compressed later, up to a thousand to one.
    """
    try:
        with zipfile.ZipFile(opened) as archive:
            records = archive.infolist()
    except OSError:
        raise
    except Exception as exc:  # zipfile has its own errors, and lets struct's and the codecs' through
        raise _unreadable(path, first_line(exc)) from exc
    if any(record.compress_type != zipfile.ZIP_STORED for record in records):
        raise _unreadable(path, "its records are compressed, which torch does not do; save the model again")
    if any(record.filename.endswith("data.pkl") and record.file_size > _MOST_INDEX_BYTES for record in records):
        raise _unreadable(path, f"its index has more than {_MOST_INDEX_BYTES:,} bytes")
    return sum(record.file_size for record in records)


def _legacy_bytes(path: Path, opened: BinaryIO) -> int:
    """Total size, in bytes, of the tensors in a file from before torch 1.6, each stored uncompressed."""
    try:
        content_bytes = storage_bytes(io.BytesIO(opened.read(_MOST_INDEX_BYTES)))
    except OSError:
        raise
    except Exception as exc:  # a corrupt pickle raises almost anything
        raise _unreadable(path, "it is corrupt, or in no format of torch that is read") from exc
    size_bytes = os.fstat(opened.fileno()).st_size
    if content_bytes > size_bytes:
        raise _unreadable(
            path, f"it has {size_bytes:,} bytes and its tensors would take {content_bytes:,}: it is cut off or corrupt"
        )
    return content_bytes


def _check_count(path: Path, count: int) -> None:
    if count > _MOST_TENSORS:
        raise _unreadable(path, f"it has {count:,} tensors, at most {_MOST_TENSORS:,} are read", found=count)


def _unusual_kind(tensor: Tensor) -> str | None:
    """Kind of a tensor that is not an array in memory; None for one that is."""
    if tensor.is_nested:
        return "a nested tensor"
    if tensor.is_meta:
        return "a meta tensor without values"
    if tensor.layout is not torch.strided:
        return f"a sparse tensor ({str(tensor.layout).removeprefix('torch.')})"
    if tensor.is_quantized:
        return "a quantized tensor"
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter):
        return f"a {type(tensor).__name__}"
    return None


def _unreadable(path: Path, reason: str, **fields: object) -> CheckpointError:
    first, *_ = [*reason.strip().splitlines(), ""]
    message = f"{path} is not a readable checkpoint: {first or 'it is corrupt'}"
    return CheckpointError(message, where=path, **fields)  # type: ignore[arg-type]
