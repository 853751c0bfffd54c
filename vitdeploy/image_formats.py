"""The image formats that are read, and the endings of their files."""

from __future__ import annotations

import contextlib
import functools
import importlib

from PIL import Image, features

# Pillow's name of each format, and the module that registers it. They hold photographs and scans, decode in this
# process and refer to nothing outside the file: EPS would start Ghostscript, and WMF is drawn by Windows. HEIF is read
# where another package has registered it, such as pillow-heif; MPO, of stereo cameras, is opened as JPEG. TGA has no
# magic number and would take other files for its own: it is the last that is tried.
FORMATS = {
    "JPEG": "JpegImagePlugin",
    "MPO": "MpoImagePlugin",
    "PNG": "PngImagePlugin",
    "WEBP": "WebPImagePlugin",
    "GIF": "GifImagePlugin",
    "BMP": "BmpImagePlugin",
    "DIB": "BmpImagePlugin",
    "TIFF": "TiffImagePlugin",
    "PPM": "PpmImagePlugin",
    "JPEG2000": "Jpeg2KImagePlugin",
    "AVIF": "AvifImagePlugin",
    "HEIF": None,
    "QOI": "QoiImagePlugin",
    "PCX": "PcxImagePlugin",
    "TGA": "TgaImagePlugin",
}
WEAK_MAGIC = frozenset({"DIB", "PCX", "TGA"})  # any file may begin as they do
# Features of Pillow without which a format is registered, and cannot be decoded.
_NEEDED = {
    "JPEG": "jpg",
    "MPO": "jpg",
    "PNG": "zlib",
    "WEBP": "webp",
    "JPEG2000": "jpg_2000",
    "AVIF": "avif",
}


def readable_formats() -> tuple[str, ...]:
    """The formats of `FORMATS` that Pillow can decode here, in the order in which they are to be tried."""
    _register()
    return tuple(name for name in FORMATS if name in Image.OPEN and _is_decoded(name))


def image_endings() -> frozenset[str]:
    """The endings of their files, in lower case with the dot, as Pillow registers them."""
    readable = {*readable_formats(), *(("MPO",) if _is_decoded("MPO") else ())}
    return frozenset(ending for ending, name in Image.EXTENSION.items() if name in readable)


@functools.cache
def _register() -> None:
    """Import the plugins of these formats alone: all that Pillow has take ten times as long."""
    for module in FORMATS.values():
        with contextlib.suppress(ImportError):  # of a later Pillow
            if module is not None:
                importlib.import_module(f"PIL.{module}")


@functools.cache
def _is_decoded(name: str) -> bool:
    needed = _NEEDED.get(name)
    known = needed in features.modules or needed in features.codecs  # an older Pillow may have the format of a plugin
    return needed is None or not known or bool(features.check(needed))
