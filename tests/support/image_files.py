"""Files of image formats, made by Pillow or by hand."""

from __future__ import annotations

import io
import shutil
import struct
import zlib
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from vitdeploy.assets import held_out_images

if TYPE_CHECKING:
    from pathlib import Path

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 10, 3), np.uint8)
BY_HAND = {
    "SUN": struct.pack(">8I", 0x59A66A95, 10, 12, 24, 360, 1, 0, 0) + PIXELS[:, :, ::-1].tobytes(),
    "PSD": b"8BPS" + struct.pack(">H6xHIIHHIIIH", 1, 3, 12, 10, 8, 3, 0, 0, 0, 0) + PIXELS.transpose(2, 0, 1).tobytes(),
    "XVTHUMB": b"P7 332\n#END_OF_COMMENTS\n10 12 255\n" + PIXELS[:, :, 0].tobytes(),
    "PIXAR": struct.pack("<4s412xHH4xHH", b"\200\350\0\0", 12, 10, 14, 2).ljust(1024, b"\0") + PIXELS.tobytes(),
    "GBR": struct.pack(">5I", 20, 1, 10, 12, 1) + PIXELS[:, :, 0].tobytes(),
}
# Formats of which nothing here makes a file.
NOT_MADE = {"HEIF", "DCX", "FLI", "FTEX", "PCD", "CUR", "XPM", "IMT"}


def file_of(kind: str) -> bytes:
    file = io.BytesIO()
    if kind in BY_HAND:
        return BY_HAND[kind]
    mode = {"MSP": "1", "XBM": "1", "BLP": "P"}.get(kind, "RGB")
    image = Image.fromarray(PIXELS)
    (image.resize((16, 16)) if kind in ("ICNS", "ICO") else image).convert(mode).save(file, kind)
    return file.getvalue()


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_of(values: np.ndarray, colour_type: int, *chunks: bytes) -> bytes:
    """A PNG file of samples (H, W) or (H, W, C) of 16 bits, with chunks of more."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, colour_type, 0, 0, 0)
    last = png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + b"".join(chunks) + last


def paths_of(folder: Path) -> list[str]:
    """The PNG files below a folder, sorted, with forward slashes."""
    return [file.as_posix() for file in sorted(folder.rglob("*.png"))]


def twelve_digits(folder: Path) -> Path:
    """Twelve of the embedded model's images in two folders below a new one."""
    for index, file in enumerate(sorted(held_out_images().rglob("*.png"))[::40][:12]):
        (folder / f"{index % 2}").mkdir(parents=True, exist_ok=True)
        shutil.copy(file, folder / f"{index % 2}" / f"{index:02}.png")
    return folder
