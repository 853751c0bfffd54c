"""TIFF files of any depth, tag by tag: tifffile packs no 12 bits without a further library."""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

SHORT, LONG = 3, 4
UNCOMPRESSED, DEFLATE = 1, 8
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB = 0, 1, 2


def write_tiff(
    values: NDArray[Any],
    bits: int,
    *,
    order: str = "<",
    photometric: int = BLACK_IS_ZERO,
    compression: int = UNCOMPRESSED,
    sample_format: int = 1,
    more: dict[int, int] | None = None,
) -> bytes:
    """A file of one strip.

    Args:
        values: (H, W) or (H, W, C) whole numbers.
        bits: Of a sample.
        order: Of the bytes: "<" or ">".
        photometric: What 0 is.
        compression: Of the strip.
        sample_format: 1 unsigned, 2 signed.
        more: Further tags, of one SHORT each.
    """
    height, width, samples = *values.shape[:2], values[0, 0].size
    strip = _packed(values, bits, order)
    strip = zlib.compress(strip) if compression == DEFLATE else strip
    tags: dict[int, tuple[int, list[int]]] = {
        256: (SHORT, [width]),
        257: (SHORT, [height]),
        258: (SHORT, [bits] * samples),
        259: (SHORT, [compression]),
        262: (SHORT, [photometric]),
        273: (LONG, [0]),  # where the strip begins
        277: (SHORT, [samples]),
        278: (SHORT, [height]),
        279: (LONG, [len(strip)]),
        339: (SHORT, [sample_format] * samples),
        **{tag: (SHORT, [value]) for tag, value in (more or {}).items()},
    }
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8)
    begin = len(head) + 2 + 12 * len(tags) + 4
    beside = b""
    entries: list[tuple[int, int, int, bytes]] = []
    for tag, (kind, numbers) in sorted(tags.items()):
        data = struct.pack(f"{order}{len(numbers)}{'H' if kind == SHORT else 'I'}", *numbers)
        if len(data) > 4:
            data, beside = struct.pack(f"{order}I", begin + len(beside)), beside + data
        entries.append((tag, kind, len(numbers), data))
    directory = struct.pack(f"{order}H", len(tags))
    for tag, kind, count, data in entries:
        where = struct.pack(f"{order}I", begin + len(beside)) if tag == 273 else data
        directory += struct.pack(f"{order}HHI", tag, kind, count) + where.ljust(4, b"\0")
    return head + directory + struct.pack(f"{order}I", 0) + beside + strip


def _packed(values: NDArray[Any], bits: int, order: str) -> bytes:
    """Samples one after another, the highest bit first; each row begins a byte."""
    if bits in (8, 16):
        return values.astype(f"{order}u{bits // 8}").tobytes()
    rows = values.reshape(len(values), -1, 1) >> np.arange(bits)[::-1] & 1
    return b"".join(np.packbits(row).tobytes() for row in rows)
