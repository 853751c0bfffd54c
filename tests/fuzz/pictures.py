"""Valid images of every format that is read, in odd modes, and images whose headers are honest and huge, or lie."""

from __future__ import annotations

import functools
import io
import itertools
import struct
import warnings
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
from image_files import BY_HAND, NOT_MADE, file_of
from PIL import Image
from tiff_files import write_tiff

from fuzz.damage import choose
from vitdeploy.images.formats import FORMATS

if TYPE_CHECKING:
    from collections.abc import Callable

_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "I;16", "I;16B")
_WITH_MODES = ("PNG", "TIFF", "WEBP", "GIF", "JPEG", "JPEG2000", "AVIF", "BMP", "TGA", "PPM", "PCX", "IM", "ICO", "SGI")
_SIDES = (0, 1, 2, 3, 255, 256, 4096, 32767, 32768, 65535, 65536, 2**24, 2**31 - 1, 2**31, 2**32 - 1)
# The form of width and height in a header, and where they stand.
_SIZE_PLACES = {
    "BMP": ("<II", 18), "GIF": ("<HH", 6), "TGA": ("<HH", 12), "PSD": (">II", 14), "SUN": (">II", 4), "QOI": (">II", 4),
    "PIXAR": ("<HH", 416), "GBR": (">II", 8), "DDS": ("<II", 12), "SGI": (">HH", 6),
}  # fmt: skip
# The rest of what `FORMATS` has and Pillow writes no file of.
_MORE_BY_HAND = {
    "XPM": b'/* XPM */\nstatic char *a[] = {\n"2 2 2 1",\n"a c #ff0000",\n"b c #00ff00",\n"ab",\n"ba"\n};\n',
    "CUR": b"",
    "DCX": b"",
    "FLI": struct.pack("<IHHHHHHI", 128 + 16 + 10, 0xAF11, 1, 4, 4, 8, 3, 50).ljust(128, b"\0")
    + struct.pack("<IHH8x", 26, 0xF1FA, 1) + struct.pack("<IH4x", 10, 13),
    "FTEX": b"FTEX" + struct.pack("<5i", 1, 4, 4, 1, 1) + struct.pack("<2i", 1, 32) + struct.pack("<i", 48) +
    bytes(range(48)),
    "IMT": b"IM\nwidth 4\nheight 4\n\x0c" + bytes(16),
    "PCD": (bytes(2048) + b"PCD_IPI").ljust(96 * 2048 + 768 * 512 * 3 // 2, b"\x40"),
}  # fmt: skip


@functools.cache
def valid_images() -> dict[str, bytes]:
    """A small file of each format that is read, by the format's name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of IM
        files = {name: file_of(name) for name in FORMATS if name not in NOT_MADE or name in BY_HAND}
    ico = bytearray(files["ICO"])
    ico[2] = 2  # a cursor is an icon of another type
    dcx = struct.pack("<2I", 0x3ADE68B1, 12) + bytes(4) + files["PCX"]
    return files | _MORE_BY_HAND | {"CUR": bytes(ico), "DCX": dcx}


def odd_mode(rng: np.random.Generator) -> tuple[str, bytes]:
    """A valid image of a mode and format that go together, with transparency and resolution now and then."""
    height, width = (int(side) for side in rng.integers(1, 40, 2))
    pixels = Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))
    for _ in range(20):
        mode, kind = choose(rng, _MODES), choose(rng, _WITH_MODES)
        try:
            image = _in_mode(pixels, mode)
            options: dict[str, Any] = {}
            if kind in ("PNG", "GIF") and mode in ("P", "L"):
                options["transparency"] = int(rng.integers(256))
            if kind == "TIFF":
                codecs = (None, "tiff_lzw", "tiff_deflate", "packbits", "jpeg", "lzma", "zstd")
                options["compression"] = choose(rng, codecs)
            file = io.BytesIO()
            image.save(file, kind, **options)
            return f"mode: {kind} {mode}", file.getvalue()
        except (OSError, ValueError, KeyError, TypeError, RuntimeError):  # they do not go together
            continue
    return "mode: none", file_of("PNG")


def _in_mode(image: Image.Image, mode: str) -> Image.Image:
    if mode == "LAB":
        return Image.merge("LAB", image.split())
    if mode.startswith("I;16"):
        return Image.frombytes(mode, image.size, image.convert("RGBA").tobytes()[: image.width * image.height * 2])
    if mode == "PA":
        return image.convert("P").convert("PA")
    return image.convert(mode)


def odd_depth(rng: np.random.Generator) -> tuple[str, bytes]:
    """A TIFF file of a depth, byte order and meaning that few write."""
    bits = choose(rng, (1, 2, 4, 8, 10, 12, 14, 16, 24, 32))
    shape = choose(rng, ((9, 7), (9, 7, 1), (9, 7, 2), (9, 7, 3), (9, 7, 4), (9, 7, 5)))
    values = rng.integers(0, 2**bits, shape)
    more = {
        choose(rng, (254, 266, 274, 282, 284, 296, 317, 320, 322, 330, 338, 530, 532)): int(rng.integers(0, 9))
        for _ in range(int(rng.integers(0, 3)))
    }
    order = choose(rng, ("<", ">"))
    kind = choose(rng, (1, 1, 8, 2, 3, 4, 5, 6, 7, 32773, 34712, 50000, 65000))
    photometric = int(rng.integers(0, 11))
    try:
        content = write_tiff(
            values.astype(np.uint32), bits if bits in (8, 16) else min(bits, 16), order=order, photometric=photometric,
            compression=kind, sample_format=int(rng.integers(0, 7)), more=more,
        )  # fmt: skip
    except (struct.error, ValueError, TypeError):
        return "tiff: plain", file_of("TIFF")
    return f"tiff: {bits} bits {shape} photometric {photometric} compression {kind} {more}", content


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, data: bytes, *, depth: int = 8, colours: int = 0, between: bytes = b"") -> bytes:
    """A PNG file of these header fields, whatever its compressed data is."""
    header = struct.pack(">IIBBBBB", width & 0xFFFFFFFF, height & 0xFFFFFFFF, depth, colours, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + between + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def huge(rng: np.random.Generator) -> tuple[str, bytes]:
    """An honest file of a few kilobytes with very long sides."""
    lines = ((2_000_000, 1), (1, 2_000_000), (20_000_000, 1), (170_000_000, 1), (1, 20_000_000), (2**31 - 1, 1))
    areas = ((40_000, 4_000), (13_000, 13_000), (30_000, 30_000), (100, 1_000_000), (10_000, 10_000))
    width, height = choose(rng, (*lines, *areas, (65_535, 2), (3, 65_535)))
    depth, colours = choose(rng, ((1, 0), (8, 0), (8, 2), (16, 0), (16, 6), (8, 4)))
    samples = {0: 1, 2: 3, 4: 2, 6: 4}[colours]
    row = 1 + (width * depth * samples + 7) // 8
    if row * height > 400_000_000:
        depth, samples, colours = 1, 1, 0
        row = 1 + (width + 7) // 8
    content = png(width, height, _zeros(row * height), depth=depth, colours=colours)
    return f"huge: {width} x {height} of {depth} bits", content


@functools.lru_cache(maxsize=64)
def _zeros(count: int) -> bytes:
    """So many zeros, compressed; made in parts, as they would fill the memory of the test."""
    compressor, count = zlib.compressobj(9), min(count, 200_000_000)
    part, left = bytes(1 << 20), bytes(count % (1 << 20))
    parts = [compressor.compress(each) for each in (*itertools.repeat(part, count >> 20), left)]
    return b"".join([*parts, compressor.flush()])


def lying(rng: np.random.Generator) -> tuple[str, bytes]:
    """A header that says another size, depth or type than the data has; checksums are right."""
    sides = choose(rng, _SIDES), choose(rng, _SIDES)
    kind = choose(rng, ("PNG", "PPM", "XVTHUMB", "TIFF", *_SIZE_PLACES))
    data = zlib.compress(bytes(100))
    if kind == "PNG":
        depth, colours = int(rng.integers(0, 33)), int(rng.integers(0, 8))
        return f"lying: PNG {sides} {depth} {colours}", png(*sides, data, depth=depth, colours=colours)
    if kind == "PPM":
        magic = choose(rng, ("P1", "P2", "P3", "P4", "P5", "P6", "Pf", "P7", "PF", "P0CMYK", "PyRGBA", "PyP"))
        most = choose(rng, (0, 1, 255, 256, 65535, 65536, -1, 10**20))
        return f"lying: {magic} {sides}", f"{magic}\n{sides[0]} {sides[1]}\n{most}\n".encode() + rng.bytes(60)
    if kind == "XVTHUMB":
        return f"lying: XV {sides}", f"P7 332\n#END_OF_COMMENTS\n{sides[0]} {sides[1]} 255\n".encode() + bytes(99)
    content = bytearray(valid_images()[kind])
    if kind == "TIFF":
        values = rng.integers(0, 256, (4, 4), np.uint32)
        width, height = (side & 0xFFFF for side in sides)
        lies = {256: width, 257: height, 277: int(rng.integers(0, 65536)), 278: width}
        return f"lying: TIFF {sides}", write_tiff(values, 8, more=lies)
    form, at = _SIZE_PLACES[kind]
    mask = 0xFFFF if "H" in form else 0xFFFFFFFF
    struct.pack_into(form, content, at, sides[0] & mask, sides[1] & mask)
    return f"lying: {kind} {sides}", bytes(content)


def animated(rng: np.random.Generator) -> tuple[str, bytes]:
    """Several frames, of other sizes, modes and durations."""
    kind = choose(rng, ("GIF", "PNG", "WEBP", "TIFF", "AVIF", "MPO"))
    first, *others = (
        Image.fromarray(rng.integers(0, 256, (int(rng.integers(1, 30)), int(rng.integers(1, 30)), 3), np.uint8))
        for _ in range(int(rng.integers(2, 6)))
    )
    if kind in ("PNG", "WEBP", "AVIF", "GIF"):
        others = [other.resize(first.size) for other in others]
    file = io.BytesIO()
    options: dict[str, Any] = {} if kind in ("TIFF", "MPO") else {"duration": int(rng.integers(0, 60_000)), "loop": 0}
    first.save(file, kind, save_all=True, append_images=others, **options)
    return f"animated: {kind}", file.getvalue()


def with_metadata(rng: np.random.Generator) -> tuple[str, bytes]:
    """EXIF whose parts refer to each other, text that grows when it is read, profiles that are none."""
    kind = choose(rng, ("exif", "text", "profile", "orientation", "comment", "loop"))
    image, file = Image.fromarray(rng.integers(0, 256, (9, 8, 3), np.uint8)), io.BytesIO()
    if kind == "orientation":
        turned = Image.Exif()
        turned[0x0112] = choose(rng, (0, 1, 3, 5, 6, 8, 9, 65535))
        image.save(file, choose(rng, ("JPEG", "PNG", "WEBP", "TIFF", "AVIF")), exif=turned)
    elif kind == "exif":
        exif = b"Exif\0\0" + choose(rng, (b"II*\0", b"MM\0*")) + rng.bytes(int(rng.integers(0, 60)))
        image.save(file, choose(rng, ("JPEG", "PNG", "WEBP")), exif=exif)
    elif kind == "loop":  # a directory whose EXIF and GPS parts, and whose successor, are itself
        entries = b"".join(struct.pack("<HHII", tag, 4, 1, 8) for tag in (0x8769, 0x8825, 0x014A, 0xA005))
        image.save(file, "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x04\0" + entries + struct.pack("<I", 8))
    elif kind == "profile":
        image.save(file, choose(rng, ("JPEG", "PNG", "TIFF", "WEBP")), icc_profile=rng.bytes(int(rng.integers(1, 500))))
    elif kind == "comment":
        image.save(file, "GIF", comment=rng.bytes(2000))
    else:
        bomb = zlib.compress(bytes(choose(rng, (10, 1_000_000, 30_000_000))))
        name, start = choose(rng, ((b"zTXt", b"a\0\0"), (b"iTXt", b"a\0\1\0\0\0"), (b"iCCP", b"a\0\0")))
        chunk = _chunk(name, start + bomb)
        rows = zlib.compress(bytes(9 * 9))
        return "metadata: text", png(8, 9, rows, between=chunk * int(rng.integers(1, 4)))
    return f"metadata: {kind}", file.getvalue()


RECIPES: tuple[Callable[[np.random.Generator], tuple[str, bytes]], ...] = (
    odd_mode, odd_depth, lying, animated, with_metadata,
)  # fmt: skip
