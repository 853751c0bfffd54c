"""Supported image formats, and their file extensions."""

from __future__ import annotations

import contextlib
import functools
import importlib
from typing import Any

from PIL import Image, features

from vitdeploy.errors import ImageError

# Pillow's name of each format, and the module that registers it: all raster formats that Pillow decodes itself.
# Excluded are formats that start a process or are drawn by the system (EPS with Ghostscript, WMF), that have no fixed
# value range (FITS, MCIDAS, SPIDER), and that have no decoder or are not images themselves (BUFR, GRIB, HDF5, MPEG,
# IPTC). HEIF is read if pillow-heif is installed; MPO, from stereo cameras, is opened as JPEG. The last formats have no
# magic number and would accept other files, so they are tried last.
FORMATS = {
    "JPEG": "JpegImagePlugin", "MPO": "MpoImagePlugin", "PNG": "PngImagePlugin", "WEBP": "WebPImagePlugin",
    "GIF": "GifImagePlugin", "BMP": "BmpImagePlugin", "DIB": "BmpImagePlugin", "TIFF": "TiffImagePlugin",
    "PPM": "PpmImagePlugin", "JPEG2000": "Jpeg2KImagePlugin", "AVIF": "AvifImagePlugin", "HEIF": None,
    "QOI": "QoiImagePlugin", "DDS": "DdsImagePlugin", "ICNS": "IcnsImagePlugin", "ICO": "IcoImagePlugin",
    "CUR": "CurImagePlugin", "PSD": "PsdImagePlugin", "SGI": "SgiImagePlugin", "SUN": "SunImagePlugin",
    "BLP": "BlpImagePlugin", "DCX": "DcxImagePlugin", "FLI": "FliImagePlugin", "FTEX": "FtexImagePlugin",
    "MSP": "MspImagePlugin", "PCD": "PcdImagePlugin", "PIXAR": "PixarImagePlugin", "XBM": "XbmImagePlugin",
    "XPM": "XpmImagePlugin", "XVTHUMB": "XVThumbImagePlugin", "PCX": "PcxImagePlugin", "GBR": "GbrImagePlugin",
    "IM": "ImImagePlugin", "IMT": "ImtImagePlugin", "TGA": "TgaImagePlugin",
}  # fmt: skip
WEAK_MAGIC = frozenset({"DIB", "PCX", "GBR", "IM", "IMT", "TGA"})  # any file may begin as they do
HEIF_ENDINGS = frozenset({".heic", ".heif", ".hif"})
# Pillow features without which a format is registered but cannot be decoded.
_NEEDED = {"JPEG": "jpg", "MPO": "jpg", "PNG": "zlib", "WEBP": "webp", "JPEG2000": "jpg_2000", "AVIF": "avif"}


def unreadable(name: str, problem: str, **fields: Any) -> ImageError:
    """The error for an image, by name: its quoted path, or its position in a batch."""
    return ImageError(f"cannot read {name}: {problem}", what=name.strip("'"), **fields)


def readable_formats() -> tuple[str, ...]:
    """Formats of `FORMATS` that Pillow can decode here, in the order to try."""
    decodable = _decodable()
    return tuple(name for name in FORMATS if name in Image.OPEN and name in decodable)


def image_endings() -> frozenset[str]:
    """Their file extensions, in lower case with the dot, as Pillow registers them."""
    readable = {*readable_formats(), *({"MPO"} & _decodable())}
    return frozenset(ending for ending, name in Image.EXTENSION.items() if name in readable)


def is_heif(begin: bytes) -> bool:
    """True if a file's beginning is HEIF (ISO/IEC 23008-12), as in HEIC photographs: by its major brand."""
    return begin[4:8] == b"ftyp" and begin[8:12] in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1")


@functools.cache
def _decodable() -> frozenset[str]:
    """Import only the plugins of these formats, and pillow-heif if installed; return those whose library exists."""
    for module in FORMATS.values():
        with contextlib.suppress(ImportError):  # of a later Pillow
            if module is not None:
                importlib.import_module(f"PIL.{module}")
    with contextlib.suppress(ImportError):
        importlib.import_module("pillow_heif").register_heif_opener()
    known = {*features.modules, *features.codecs}  # an older Pillow may have the format as a plugin
    return frozenset(name for name in FORMATS if (lib := _NEEDED.get(name)) not in known or features.check(lib))
