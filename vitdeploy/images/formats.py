"""The image formats that are read, and the endings of their files."""

from __future__ import annotations

import contextlib
import functools
import importlib
from typing import Any

from PIL import Image, features

from vitdeploy.errors import ImageError

# Pillow's name of each format, and the module that registers it: all raster formats that Pillow decodes itself. Not
# among them are those that start a process or are drawn by the system (EPS with Ghostscript, WMF), whose values have no
# fixed range (FITS, MCIDAS, SPIDER), and which have no decoder or are no images of their own (BUFR, GRIB, HDF5, MPEG,
# IPTC). HEIF is read where pillow-heif is installed; MPO, of stereo cameras, is opened as JPEG. Those at the end have
# no magic number and would take other files for their own: they are the last that are tried.
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
# Features of Pillow without which a format is registered, and cannot be decoded.
_NEEDED = {"JPEG": "jpg", "MPO": "jpg", "PNG": "zlib", "WEBP": "webp", "JPEG2000": "jpg_2000", "AVIF": "avif"}


def unreadable(name: str, problem: str, **fields: Any) -> ImageError:
    """The error for an image, by its name: its quoted path, or its place in a batch."""
    return ImageError(f"cannot read {name}: {problem}", what=name.strip("'"), **fields)


def readable_formats() -> tuple[str, ...]:
    """The formats of `FORMATS` that Pillow can decode here, in the order in which they are to be tried."""
    decodable = _decodable()
    return tuple(name for name in FORMATS if name in Image.OPEN and name in decodable)


def image_endings() -> frozenset[str]:
    """The endings of their files, in lower case with the dot, as Pillow registers them."""
    readable = {*readable_formats(), *({"MPO"} & _decodable())}
    return frozenset(ending for ending, name in Image.EXTENSION.items() if name in readable)


def is_heif(begin: bytes) -> bool:
    """Whether a file that begins so is HEIF (ISO/IEC 23008-12), as HEIC photographs are: by its major brand."""
    return begin[4:8] == b"ftyp" and begin[8:12] in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1")


@functools.cache
def _decodable() -> frozenset[str]:
    """Import the plugins of these formats alone, and pillow-heif where it is installed; those with their library."""
    for module in FORMATS.values():
        with contextlib.suppress(ImportError):  # of a later Pillow
            if module is not None:
                importlib.import_module(f"PIL.{module}")
    with contextlib.suppress(ImportError):
        importlib.import_module("pillow_heif").register_heif_opener()
    known = {*features.modules, *features.codecs}  # an older Pillow may have the format of a plugin
    return frozenset(name for name in FORMATS if (lib := _NEEDED.get(name)) not in known or features.check(lib))
