"""Read the arrays of an `.npz` file one by one: the header first, and nothing that could run code."""

from __future__ import annotations

import contextlib
import zipfile
from typing import TYPE_CHECKING

import numpy as np
import torch

from vitdeploy.errors import CheckpointError, first_line
from vitdeploy.files.npz import array_header, open_archive, read_array
from vitdeploy.system.exhaustion import check_exhaustion

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from torch import Tensor

_BFLOAT16 = np.dtype("V2")  # numpy has no bfloat16, and keeps the bytes of JAX's
_FLOATS = ("float16", "float32", "float64")
_CODECS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # numpy.savez's, and numpy.savez_compressed's


@contextlib.contextmanager
def open_npz(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open the archive, and read only its list of arrays.

    Raises:
        CheckpointError: If the file cannot be read, or is not a zip archive.
    """

    def refusal(reason: str) -> CheckpointError:
        message, hint = f"{path} cannot be read as an .npz file: {reason}", "give a complete copy of it"
        return CheckpointError(message, where=path, found=reason, hint=hint)

    with open_archive(path, refusal) as archive:
        archive.filename = str(path)  # the descriptor's number for an open file
        yield archive


def array_shape(archive: zipfile.ZipFile, key: str) -> tuple[tuple[int, ...], int]:
    """Shape and size in bytes of an array, from its header only, which must match the data's size.

    Raises:
        CheckpointError: If the array is not floating-point, or is damaged.
    """
    try:
        shape, dtype, size_bytes = array_header(archive, key, _CODECS)
    except Exception as exc:  # a damaged header raises almost anything: ValueError, struct.error, TokenError ...
        raise _unreadable(archive, key, exc) from exc
    if dtype != _BFLOAT16 and dtype.name not in _FLOATS:
        raise CheckpointError(
            f"{archive.filename}: '{key}' is of {dtype}, not bfloat16, {', '.join(_FLOATS)}",
            what=key, where=archive.filename, found=dtype.name, hint="convert it",
        )  # fmt: skip
    return shape, size_bytes


def read_tensor(archive: zipfile.ZipFile, key: str) -> Tensor:
    """Read an array as a tensor of the same type; the two-byte void from JAX's bfloat16 becomes bfloat16.

    Raises:
        CheckpointError: If its data is damaged.
    """
    try:
        array = read_array(archive, key)
    except Exception as exc:  # zipfile's, zlib's and numpy's errors
        raise _unreadable(archive, key, exc) from exc
    if array.dtype == _BFLOAT16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))


def _unreadable(archive: zipfile.ZipFile, key: str, exc: Exception) -> CheckpointError:
    check_exhaustion(exc, f"reading {archive.filename}: '{key}'")
    reason = first_line(exc) or type(exc).__name__
    return CheckpointError(
        f"{archive.filename}: array '{key}' cannot be read: {reason}",
        what=key, where=archive.filename, found=reason, hint="get a complete copy",
    )  # fmt: skip
