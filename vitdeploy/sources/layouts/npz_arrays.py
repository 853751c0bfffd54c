"""Read the arrays of an `.npz` file one by one: a header first, and nothing that could run code."""

from __future__ import annotations

import contextlib
import math
import zipfile
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.lib import format as npy

from vitdeploy.errors import CheckpointError, first_line
from vitdeploy.files.regular_file import open_regular
from vitdeploy.system.exhaustion import check_exhaustion

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from torch import Tensor

_BFLOAT16 = np.dtype("V2")  # numpy has no bfloat16, and keeps the bytes of JAX's
_FLOATS = ("float16", "float32", "float64")
_CODECS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # numpy.savez's, and numpy.savez_compressed's
_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}  # 3.0 is for named fields


@contextlib.contextmanager
def open_npz(path: Path) -> Iterator[zipfile.ZipFile]:
    """The archive, of which only the list of arrays has been read.

    Raises:
        CheckpointError: the file cannot be read, or is not a zip archive.
    """
    with contextlib.ExitStack() as stack:
        try:
            archive = stack.enter_context(zipfile.ZipFile(stack.enter_context(open_regular(path))))
        except Exception as exc:  # zipfile has its own errors, and lets struct's and the codecs' through
            check_exhaustion(exc, f"reading {path}")
            reason = exc.strerror if isinstance(exc, OSError) else first_line(exc)
            raise CheckpointError(f"{path} must be a readable .npz file: {reason}; give a complete copy of it") from exc
        archive.filename = str(path)  # of an open file it is the descriptor's number
        yield archive


def array_shape(archive: zipfile.ZipFile, key: str) -> tuple[tuple[int, ...], int]:
    """The shape of an array and its bytes, from its header alone, which must fit the bytes behind it.

    Raises:
        CheckpointError: the array is not one of floating-point numbers, or is damaged.
    """
    try:
        info = archive.getinfo(f"{key}.npy")
        if info.compress_type not in _CODECS:
            raise ValueError("it is compressed in another way than numpy does")
        with archive.open(info) as file:
            shape, _, dtype = _HEADERS[npy.read_magic(file)](file)
            size_bytes = info.file_size - file.tell()
    except Exception as exc:  # a damaged header raises almost anything: ValueError, struct.error, TokenError ...
        raise _unreadable(archive, key, exc) from exc
    what = f"{archive.filename}: '{key}'"
    if dtype != _BFLOAT16 and dtype.name not in _FLOATS:
        kind = "Python objects, which could run code" if dtype.hasobject else f"{dtype}"
        raise CheckpointError(f"{what} must hold bfloat16, {', '.join(_FLOATS)}, holds {kind}; convert it")
    if min(shape, default=1) < 0 or math.prod(shape) * dtype.itemsize != size_bytes:
        raise CheckpointError(f"{what} must hold {shape} of {dtype}, holds {size_bytes} bytes; get a complete copy")
    return shape, size_bytes


def read_array(archive: zipfile.ZipFile, key: str) -> Tensor:
    """An array as a tensor of its own type; the two-byte void that JAX's bfloat16 turns into is bfloat16 again.

    Raises:
        CheckpointError: its bytes are damaged.
    """
    try:
        with archive.open(f"{key}.npy") as file:
            array = npy.read_array(file, allow_pickle=False)
    except Exception as exc:  # zipfile's, zlib's and numpy's errors
        raise _unreadable(archive, key, exc) from exc
    if array.dtype == _BFLOAT16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))


def _unreadable(archive: zipfile.ZipFile, key: str, exc: Exception) -> CheckpointError:
    check_exhaustion(exc, f"reading {archive.filename}: '{key}'")
    reason = first_line(exc) or type(exc).__name__
    return CheckpointError(f"{archive.filename}: '{key}' must be a readable array: {reason}; get a complete copy")
