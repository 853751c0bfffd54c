"""Limit a checkpoint's memory by the size of its file, against decompression bombs."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import BinaryIO

from vitdeploy.errors import CheckpointError
from vitdeploy.files.regular_file import open_regular

# Trained weights hardly compress (float32 to a half if widened from bfloat16), and a tied weight is stored twice. A
# head of zeros or a small model may compress to nothing, which the floor allows for.
MOST_TIMES = 4
FLOOR_BYTES = 256 * 1024**2


def check_content(path: Path, content_bytes: int, handle: str | None = None) -> None:
    """Refuse a file whose tensors are far larger than the file, before they are read.

    Args:
        path: The file, for messages.
        content_bytes: Size of all tensors in bytes, by their shapes and types.
        handle: Alternative path for opening it.

    Raises:
        CheckpointError: If they exceed `MOST_TIMES` the file's size and `FLOOR_BYTES`. Holes in a sparse file do not
            count.
        OSError: If the file cannot be opened.
    """
    if content_bytes <= FLOOR_BYTES:
        return
    with open_regular(handle or path) as file:
        size_bytes = _data_bytes(file, -(-content_bytes // MOST_TIMES))
    if content_bytes > MOST_TIMES * size_bytes:
        raise CheckpointError(
            f"{path} has {size_bytes:,} bytes of data and its tensors would take {content_bytes:,}: they are "
            f"compressed or expanded, or the file is sparse",
            where=path, expected=size_bytes, found=content_bytes,
            hint="save the model's own weights, as model.safetensors",
        )  # fmt: skip


def _data_bytes(file: BinaryIO, enough: int) -> int:
    """Bytes of a file outside its holes, if the system reports them; counted up to `enough`."""
    size_bytes = os.fstat(file.fileno()).st_size
    if not hasattr(os, "SEEK_DATA"):
        return size_bytes
    total = end = 0
    while total < enough and end < size_bytes:
        try:
            begin = os.lseek(file.fileno(), end, os.SEEK_DATA)
            end = os.lseek(file.fileno(), begin, os.SEEK_HOLE)
        except OSError as exc:
            if exc.errno == errno.ENXIO:  # no more data
                return total
            return size_bytes  # the file system does not support holes
        total += end - begin
    return total
