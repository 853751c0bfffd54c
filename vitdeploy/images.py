"""Open an image, wherever it comes from, as upright 8-bit RGB."""

from __future__ import annotations

import contextlib
import io
import os
import stat
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from vitdeploy.errors import ImageError, UsageError
from vitdeploy.file_kinds import is_lfs_pointer, lfs_advice

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

ImageSource: TypeAlias = (
    "str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | Image.Image | NDArray[Any]"
)

_CHANNELS = (1, 3, 4)

# What Pillow's decoders are known to raise on a damaged file. A `Warning` is raised where warnings are errors.
_DECODER_ERRORS = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    Warning,
    struct.error,
    Image.DecompressionBombError,
)


def open_image(source: ImageSource, *, name: str | None = None) -> Image.Image:
    """Open an image as a model sees it: EXIF orientation applied, converted to 8-bit RGB.

    The pixels are those of transformers' `load_image`: transparency is dropped, not blended, and of an animation the
    first frame is used. One thing differs: 16-bit gray keeps its high byte, where Pillow's conversion clips to white.

    Args:
        source: a path, an encoded image (bytes or a binary file object), a PIL image, or a uint8 array of shape
            (H, W), (H, W, C) or (C, H, W) with C of 1, 3 or 4.
        name: what an error calls the image; by default its path.

    Returns:
        An image of mode "RGB", independent of `source`.

    Raises:
        ImageError: the image is absent, unreadable, damaged, too large, or has no fixed range of values.
        UsageError: `source` is none of the above.
    """
    name = name or image_name(source)
    if isinstance(source, np.ndarray):
        return _from_array(source, name).convert("RGB")
    if isinstance(source, Image.Image):
        with _decoder_errors(name):
            return _to_rgb(ImageOps.exif_transpose(source), name)
    file = _encoded(source, name)
    if isinstance(file, (str, os.PathLike)) and is_lfs_pointer(Path(file)):
        raise ImageError(lfs_advice(Path(file)))
    with _decoder_errors(name), Image.open(file) as image:
        check_pixel_count(image.width, image.height, name)
        ImageOps.exif_transpose(image, in_place=True)
        return _to_rgb(image, name)


def image_name(source: ImageSource, default: str = "the image") -> str:
    """What an error calls an image: its path, quoted, where it has one."""
    return repr(os.fspath(source)) if isinstance(source, (str, os.PathLike)) else default


def check_pixel_count(width: int, height: int, name: str) -> None:
    """Refuse a decompression bomb: more pixels than `PIL.Image.MAX_IMAGE_PIXELS`, for which Pillow only warns.

    Raises:
        ImageError: the image, or what it would be resized to, is too large.
    """
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and width * height > limit:
        raise ImageError(
            f"cannot read {name}: {width}x{height} pixels exceed the limit of {limit}; "
            "raise PIL.Image.MAX_IMAGE_PIXELS for images that you trust"
        )


def _encoded(source: object, name: str) -> Any:
    """What `Image.open` takes: a path or a binary file object."""
    if isinstance(source, str) and ("://" in source or source.startswith("data:")):
        raise UsageError(f"expected a path, got the URL {source[:80]!r}; download it, and pass its path or bytes")
    if isinstance(source, (bytes, bytearray, memoryview)):
        return io.BytesIO(source)
    if isinstance(source, os.PathLike | str):
        if _is_endless(source):
            raise ImageError(f"cannot read {name}: expected a file, got a pipe or a device")
        return source
    if hasattr(source, "read"):
        return source
    raise UsageError(
        f"expected a path, bytes, a binary file, a PIL image or a numpy array, got {type(source).__name__} for {name}"
    )


def _is_endless(path: str | os.PathLike[str]) -> bool:
    """Whether reading might never end, as of a pipe or a device."""
    try:
        mode = Path(path).stat().st_mode
    except (OSError, ValueError):
        return False  # opening it says why
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def _from_array(array: NDArray[Any], name: str) -> Image.Image:
    """A uint8 array of shape (H, W), (H, W, C) or (C, H, W) -> an image of mode "L", "RGB" or "RGBA"."""
    if array.dtype != np.uint8:
        raise UsageError(
            f"expected a uint8 array with values 0..255, got {array.dtype} for {name}; for floats in 0..1 pass "
            "(array * 255).round().astype('uint8')"
        )
    if array.size == 0:
        raise ImageError(f"cannot read {name}: an array of shape {array.shape} holds no pixels")
    if array.ndim == 3 and (array.shape[0] in _CHANNELS) != (array.shape[2] in _CHANNELS):
        if array.shape[0] in _CHANNELS:
            array = np.moveaxis(array, 0, -1)  # (H, W, C)
        if array.shape[2] == 1:
            array = array[:, :, 0]  # (H, W)
    elif array.ndim != 2:
        raise UsageError(
            f"expected shape (H, W), (H, W, C) or (C, H, W) with one axis of 1, 3 or 4 channels, got {array.shape} "
            f"for {name}; where two axes could be the channels, pass PIL.Image.fromarray(array)"
        )
    return Image.fromarray(array)


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode == "RGB":
        return image
    # Pillow reads 16-bit gray PNG and PGM files as mode "I" in some versions; nothing else bounds that mode's values.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ImageError(
            f"cannot read {name}: 32-bit pixels (mode {image.mode!r}) have no fixed range; "
            "scale them to 0..255 and save the image with 8 bits"
        )
    # Transparency is dropped in any case; without this Pillow warns for a palette with several transparent colours.
    image.info.pop("transparency", None)
    return image.convert("RGB")


@contextlib.contextmanager
def _decoder_errors(name: str) -> Iterator[None]:
    try:
        yield
    except UnidentifiedImageError as exc:
        raise ImageError(f"cannot read {name}: it is empty, or not in an image format that Pillow reads") from exc
    except _DECODER_ERRORS as exc:
        reason = getattr(exc, "strerror", None) or str(exc) or type(exc).__name__
        raise ImageError(f"cannot read {name}: {' '.join(reason.split())}") from exc
