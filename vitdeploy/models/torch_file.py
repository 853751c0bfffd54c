"""Read torch's files with `weights_only=True`, without code from the file and within limits of memory."""

from __future__ import annotations

import argparse
import io
import os
import pickle
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeGuard

import torch
from torch import Tensor

from vitdeploy.errors import CheckpointError, first_line
from vitdeploy.files.content_limit import check_content
from vitdeploy.files.opened import OpenedFile
from vitdeploy.files.regular_file import open_regular
from vitdeploy.models.legacy_file import storage_bytes
from vitdeploy.system.exhaustion import check_exhaustion

MOST_INDEX_BYTES = 32 * 1024**2  # raw size of the names, types and locations of all tensors
_ZIP_MAGIC = b"PK\3\4"
# timm's train.py saves its arguments in one: a value without code, whose attributes unpickling sets.
_OF_TRAINING: list[Any] = [argparse.Namespace]


def load_torch(file: OpenedFile, *, training: bool = False) -> object:
    """Content of a torch file, of types that run no code.

    Args:
        file: The file.
        training: True to read `argparse.Namespace` too.

    Raises:
        CheckpointError: If it is corrupt, would take far more memory than its size, or needs other types.
    """
    path = file.path
    _check_sizes(file)
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(_OF_TRAINING if training else []):
            warnings.simplefilter("ignore")  # warnings about files that are refused below
            return torch.load(file.handle, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as exc:  # its message recommends opening the file without protection
        hint = "where it was made, save its weights alone: torch.save(model.state_dict(), FILE)"
        raise unreadable(path, "it is corrupt, or holds more than tensors and could run code", hint=hint) from exc
    except Exception as exc:  # a corrupt pickle raises almost anything: KeyError, struct.error, AssertionError ...
        check_exhaustion(exc, f"reading {path}")
        raise unreadable(path, _reason(file.named(str(exc)))) from exc


def is_state(value: object) -> TypeGuard[dict[str, Tensor]]:
    """True for tensors by name, as of `state_dict()`."""
    return isinstance(value, dict) and all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in value.items()
    )


def dense_tensors(file: OpenedFile, state: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The tensors that were read from a file, each in its own memory; they are removed from `state`.

    Tied weights share their memory in a torch file, which safetensors refuses to write.

    Raises:
        CheckpointError: If one is not a dense array, or all are far larger than the file.
    """
    path = file.path
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
        raise unreadable(path, exc.strerror or str(exc)) from exc


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
        raise unreadable(path, first_line(exc)) from exc
    if any(record.compress_type != zipfile.ZIP_STORED for record in records):
        raise unreadable(path, "its records are compressed, which torch does not do; save the model again")
    if any(record.filename.endswith("data.pkl") and record.file_size > MOST_INDEX_BYTES for record in records):
        raise unreadable(path, f"its index has more than {MOST_INDEX_BYTES:,} bytes")
    return sum(record.file_size for record in records)


def _legacy_bytes(path: Path, opened: BinaryIO) -> int:
    """Total size, in bytes, of the tensors in a file from before torch 1.6, each stored uncompressed."""
    try:
        content_bytes = storage_bytes(io.BytesIO(opened.read(MOST_INDEX_BYTES)))
    except OSError:
        raise
    except Exception as exc:  # a corrupt pickle raises almost anything
        raise unreadable(path, "it is corrupt, or in no format of torch that is read") from exc
    size_bytes = os.fstat(opened.fileno()).st_size
    if content_bytes > size_bytes:
        raise unreadable(
            path, f"it has {size_bytes:,} bytes and its tensors would take {content_bytes:,}: it is cut off or corrupt"
        )
    return content_bytes


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


def unreadable(path: Path, reason: str, **fields: object) -> CheckpointError:
    """The error for a file that cannot be read."""
    first, *_ = [*reason.strip().splitlines(), ""]
    message = f"{path} is not a readable checkpoint: {first or 'it is corrupt'}"
    return CheckpointError(message, where=path, **fields)  # type: ignore[arg-type]
