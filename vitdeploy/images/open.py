"""Open an image from any source, upright and with 8 bits: gray, RGB or RGBA."""

from __future__ import annotations

import contextlib
import io
import os
import stat
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from vitdeploy.errors import ImageError, UsageError
from vitdeploy.files.file_kinds import is_lfs_pointer, lfs_advice
from vitdeploy.images.formats import is_heif, readable_formats, unreadable
from vitdeploy.images.pixel_limit import HOW_TO_RAISE, check_pixel_count, limit_lifted, max_pixels
from vitdeploy.images.sample_depth import check_samples, to_8_bits
from vitdeploy.specs import MODES, Mode
from vitdeploy.system.exhaustion import check_exhaustion
from vitdeploy.system.quiet import quiet_libtiff

ImageSource: TypeAlias = (
    "str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | Image.Image | NDArray[Any]"
)

_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the latter two of BigTIFF
# Exceptions that Pillow's decoders are known to raise on a damaged file. A `Warning` is raised where warnings are
# errors.
_DECODER_ERRORS = (
    ArithmeticError, AttributeError, EOFError, LookupError, OSError, RuntimeError, SyntaxError, TypeError, ValueError,
    Warning, struct.error,
)  # fmt: skip


def open_image(source: ImageSource, *, mode: Mode = "RGB", name: str | None = None) -> Image.Image:
    """Open an image as a model sees it: EXIF orientation applied, 8 bits per channel.

    The pixels equal those of transformers' `load_image`, by Pillow's conversion to `mode`: "L" is the luma of a colour
    image; "RGB" repeats gray three times, and drops transparency without blending; "RGBA" has an alpha of 255 if the
    image has none. Colours that a PNG file marks as transparent have an alpha of 0, except gray of 2 or 4 bits and RGB
    of 16, for which Pillow ignores it. The first frame of an animation is used. One thing differs: gray of more than 8
    bits keeps the 8 highest of the file's stated bits, while Pillow's conversion clips to white; see
    `vitdeploy.images.sample_depth`. Only a file, or an image from `Image.open`, states its depth: a copy, a crop and an
    image made in memory count as full 16 bits, so that 12 bits become dark; pass the file, or scale the values.

    Args:
        source: Path, encoded image (bytes or a binary file object), PIL image, or uint8 array of shape (H, W), (H, W,
            C) or (C, H, W) with C of 1 (gray), 3 (RGB) or 4 (RGBA).
        mode: Mode of the result; see `vitdeploy.specs.MODES` for a model's.
        name: Name of the image for messages. Default: its path.

    Returns:
        An image of that mode, independent of `source`.

    Raises:
        ImageError: If the image is absent, unreadable, damaged, too large (see `vitdeploy.images.pixel_limit`), or has
            no fixed range of values.
        UsageError: If `source` is none of the above.
    """
    image = decode_image(source, mode, name or image_name(source))
    return image.copy() if isinstance(source, (Image.Image, np.ndarray)) else image


def decode_image(
    source: ImageSource, mode: Mode, name: str, check_sides: Callable[[int, int], None] | None = None
) -> Image.Image:
    """`open_image` for reading only: the image may share memory with `source`.

    Args:
        source: See `open_image`.
        mode: See `open_image`.
        name: Name of the image for messages.
        check_sides: Called with the width and height in a file's header, before the pixel limit is checked.
    """
    if isinstance(source, np.ndarray):
        image = _from_array(source, name)
        return image if image.mode == mode else image.convert(mode)
    if isinstance(source, Image.Image):
        with limit_lifted(), _decoder_errors(name):
            check_samples(source, name)
            source.load()  # a file may have its orientation after its pixels
            turned = source.getexif().get(ExifTags.Base.Orientation, 1) != 1
            return _converted(ImageOps.exif_transpose(source) if turned else source, mode, source, name)
    file = _encoded(source, name)
    quiet_libtiff()
    with limit_lifted(), _decoder_errors(name, file), Image.open(file, formats=readable_formats()) as opened:
        if check_sides is not None:
            check_sides(opened.width, opened.height)
        check_pixel_count(opened.width, opened.height, name)
        check_samples(opened, name)
        ImageOps.exif_transpose(opened, in_place=True)
        return _converted(opened, mode, opened, name)


def image_name(source: ImageSource, default: str = "the image") -> str:
    """Name of an image for messages: its quoted path, if any."""
    return repr(os.fspath(source)) if isinstance(source, (str, os.PathLike)) else default


def _encoded(source: object, name: str) -> Any:
    """A path or a binary file object for `Image.open`."""
    if isinstance(source, str) and ("://" in source or source.startswith("data:")):
        message, hint = f"{name} is a URL: {source[:80]!r}", "download it, and pass its path or bytes"
        raise UsageError(message, what=name.strip("'"), found=source, hint=hint)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return io.BytesIO(source)
    if isinstance(source, os.PathLike | str):
        if _is_endless(source):
            raise unreadable(name, "it is a pipe or a device, not a file", found="a pipe or a device")
        return source
    if hasattr(source, "read"):
        return source
    kind = type(source).__name__
    hint = "pass a path, bytes, a binary file, a PIL image or a numpy array"
    raise UsageError(f"{name} is of type {kind}, which is no image", what=name, found=kind, hint=hint)


def _is_endless(path: str | os.PathLike[str]) -> bool:
    """True if reading might never end, as for a pipe or a device."""
    try:
        mode = Path(path).stat().st_mode
    except (OSError, ValueError):
        return False  # opening it reports the reason
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def _from_array(array: NDArray[Any], name: str) -> Image.Image:
    """A uint8 array of shape (H, W), (H, W, C) or (C, H, W) -> an image of mode "L", "RGB" or "RGBA"."""
    if array.dtype != np.uint8:
        raise UsageError(
            f"{name} is an array of {array.dtype}, not uint8 with values 0..255",
            what=name, expected="uint8", found=str(array.dtype),
            hint="for floats in 0..1 pass (array * 255).round().astype('uint8')",
        )  # fmt: skip
    if array.size == 0:
        raise unreadable(name, f"an array of shape {array.shape} holds no pixels", found=array.shape)
    if array.ndim == 3 and (array.shape[0] in MODES) != (array.shape[2] in MODES):
        if array.shape[0] in MODES:
            array = np.moveaxis(array, 0, -1)  # (H, W, C)
        if array.shape[2] == 1:
            array = array[:, :, 0]  # (H, W)
    elif array.ndim != 2:
        raise UsageError(
            f"{name} has shape {array.shape}, not (H, W), (H, W, C) or (C, H, W) with one axis of 1, 3 or 4 channels",
            what=name, found=array.shape,
            hint="where two axes could be the channels, pass PIL.Image.fromarray(array)",
        )  # fmt: skip
    return Image.fromarray(array)


def _converted(image: Image.Image, mode: Mode, origin: Image.Image, name: str) -> Image.Image:
    """An image in that mode, possibly `image` itself; `origin` is the image as opened by Pillow."""
    image = to_8_bits(image, origin, name)
    if image.mode == mode:
        return image
    if "transparency" in image.info and mode != "RGBA":
        # Dropped in any case; otherwise Pillow warns for a palette with several transparent colours.
        image = image.copy()
        del image.info["transparency"]
    if image.mode == "La":  # the only conversion in Pillow, for example for a TIFF file with associated alpha
        image = image.convert("LA")
    if image.mode == "LAB":  # Pillow converts it only to colours
        image = image.convert("RGB")
    return image.convert(mode)


def _beginning(source: Any) -> bytes:
    """The first bytes of a path or a file object; empty if unreadable."""
    with contextlib.suppress(AttributeError, OSError, ValueError):
        if isinstance(source, (str, os.PathLike)):
            with Path(source).open("rb") as file:
                return file.read(12)
        source.seek(0)
        return bytes(source.read(12))
    return b""


@contextlib.contextmanager
def _decoder_errors(name: str, source: object = None) -> Iterator[None]:
    try:
        yield
    except UnidentifiedImageError as exc:
        if isinstance(source, (str, os.PathLike)) and is_lfs_pointer(Path(source)):
            raise ImageError(lfs_advice(Path(source)), what=name.strip("'"), found="a Git LFS pointer") from exc
        if is_heif(_beginning(source)) and "HEIF" not in readable_formats():
            hint = "install pillow-heif, or convert it to JPEG"
            raise unreadable(name, "it is a HEIF image", found="HEIF", hint=hint) from exc
        if _beginning(source)[:4] in _TIFF_MAGIC:
            problem = "it is a TIFF file that is damaged, or has a depth or layout that Pillow cannot decode"
            raise unreadable(name, problem, found="TIFF", hint="save it with 8 bits a channel") from exc
        problem = "it is empty, or not in a format that is read, such as JPEG, PNG, TIFF or WebP"
        raise unreadable(name, problem, expected=readable_formats()) from exc
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as exc:
        limit = max_pixels()  # Pillow's message has twice as many
        problem = f"it has more than the limit of {limit} pixels"
        raise unreadable(name, problem, expected=limit, hint=HOW_TO_RAISE) from exc
    except (MemoryError, *_DECODER_ERRORS) as exc:
        check_exhaustion(exc, f"reading {name}")
        reason = getattr(exc, "strerror", None) or str(exc) or type(exc).__name__
        raise unreadable(name, " ".join(reason.split()), found=reason) from exc
