"""Read one array of an `.npz` archive after its header: numpy.load allocates the claimed size, present or not."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from numpy.lib import format as npy

if TYPE_CHECKING:
    import numpy as np

_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}  # 3.0 is for named fields


def array_header(
    archive: zipfile.ZipFile, key: str, codecs: Collection[int] = (zipfile.ZIP_STORED,)
) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """Shape, element type and size in bytes of an array, from its header only.

    Args:
        archive: Archive open for reading.
        key: The array's name, without ".npy".
        codecs: Allowed compressions, by zipfile's numbers.

    Raises:
        ValueError: If the data's size differs from the header's, or the array has Python objects.
        Exception: Of any type, as zipfile and numpy raise on a damaged file.
    """
    info = archive.getinfo(f"{key}.npy")
    if info.compress_type not in codecs:
        raise ValueError(f"{key!r:.80} is compressed in another way than it was written")
    with archive.open(info) as file:
        shape, _, dtype = _HEADERS[npy.read_magic(file)](file)
        size_bytes = info.file_size - file.tell()
    if dtype.hasobject:
        raise ValueError(f"{key!r:.80} holds Python objects, which could run code")
    if min(shape, default=1) < 0 or math.prod(shape) * dtype.itemsize != size_bytes:
        raise ValueError(f"{key!r:.80} has {size_bytes} bytes, which are not {shape} of {dtype}")
    return shape, dtype, size_bytes


def read_array(archive: zipfile.ZipFile, key: str) -> np.ndarray:
    """Read an array after `array_header`; raises an Exception of any type if its data is damaged."""
    with archive.open(f"{key}.npy") as file:
        array: np.ndarray = npy.read_array(file, allow_pickle=False)
    return array
