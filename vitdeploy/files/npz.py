"""Open an `.npz` archive, and read an array after its header: numpy.load allocates the claimed size, present or not."""

from __future__ import annotations

import contextlib
import math
import zipfile
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.lib import format as npy

from vitdeploy.errors import VitDeployError, first_line
from vitdeploy.files.regular_file import open_regular
from vitdeploy.system.exhaustion import check_exhaustion

if TYPE_CHECKING:
    import numpy as np

_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}  # 3.0 is for named fields


@contextlib.contextmanager
def open_archive(path: Path, refusal: Callable[[str], VitDeployError]) -> Iterator[zipfile.ZipFile]:
    """Open an archive, and read only its list of arrays; raises the refusal for the reason if that fails."""
    with contextlib.ExitStack() as stack:
        try:
            archive = stack.enter_context(zipfile.ZipFile(stack.enter_context(open_regular(path))))
        except Exception as exc:  # zipfile has its own errors, and lets struct's and the codecs' through
            check_exhaustion(exc, f"reading {path}")
            raise refusal((exc.strerror if isinstance(exc, OSError) else None) or first_line(exc)) from exc
        yield archive


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
