"""Convert gray of more than 8 bits to 8 by the file's stated depth, and refuse samples that Pillow misreads."""

from __future__ import annotations

import numpy as np
from PIL import Image

from vitdeploy.images.formats import unreadable

# Formats whose gray Pillow scales to 16 bits itself: PNG has no other depth, PPM and PGM are divided by the maximum
# (PpmImagePlugin), and JPEG 2000 is shifted (Jpeg2KDecode.c). None: an image made in memory, which includes copies and
# crops: Pillow does not copy the format or the tags.
_FULL_RANGE = (None, "PNG", "PPM", "JPEG2000")
# TIFF 6.0's tags.
_BITS_PER_SAMPLE, _COMPRESSION, _PHOTOMETRIC, _PLANAR, _SAMPLE_FORMAT = 258, 259, 262, 284, 339
_SCALE = "scale them to 0..255 and save the image with 8 bits"
_WHITE_IS_ZERO, _UNCOMPRESSED, _SEPARATE_PLANES, _SIGNED = 0, 1, 2, 2


def check_samples(image: Image.Image, name: str) -> None:
    """Refuse a TIFF file with samples that have no fixed range, or that Pillow misreads.

    Raises:
        ImageError: If samples are signed (Pillow reads 8-bit ones as unsigned), or have 16 bits in uncompressed planes
            (Pillow 13 treats every byte as a sample).
    """
    if _SIGNED in _tag(image, _SAMPLE_FORMAT):
        hint = "scale them to 0..255 and save the image with 8 unsigned bits"
        raise unreadable(name, "signed samples have no fixed black and white", found="signed samples", hint=hint)
    separate = _SEPARATE_PLANES in _tag(image, _PLANAR) and _UNCOMPRESSED in _tag(image, _COMPRESSION)
    if separate and len(image.getbands()) > 1 and max(_tag(image, _BITS_PER_SAMPLE), default=0) > 8:
        hint = "save the image with 8 bits, or with its channels interleaved"
        raise unreadable(name, "Pillow misreads uncompressed planes of 16 bits", found="16-bit planes", hint=hint)


def to_8_bits(image: Image.Image, origin: Image.Image, name: str) -> Image.Image:
    """Reduce gray of 9 to 16 bits to its 8 highest, in mode "L" or, with a transparent level, "LA"; keep others.

    A TIFF file has its depth in BitsPerSample, and PhotometricInterpretation says if 0 is white. Its MaxSampleValue is
    not used: in TIFF 6.0 it is for statistics, not for display. A PNG file's tRNS chunk has the transparent level, with
    all 16 bits.

    Args:
        image: Image of any mode.
        origin: Image as opened by Pillow, with its file's format.
        name: Name of the image for messages.

    Raises:
        ImageError: If the range of the pixels is unknown.
    """
    of_file = image.mode == "I" and origin.format in ("PNG", "PPM")  # in some versions of Pillow, these have 16 bits
    if not image.mode.startswith("I;16") and not of_file:
        if image.mode in ("I", "F"):
            problem = f"32-bit pixels (mode {image.mode!r}) have no fixed range"
            raise unreadable(name, problem, found=image.mode, hint=_SCALE)
        return image
    bits = next(iter(_tag(origin, _BITS_PER_SAMPLE)), None)
    if bits is None:
        if origin.format not in _FULL_RANGE:
            problem = f"the range of the 16-bit pixels of a {origin.format} file is not known"
            raise unreadable(name, problem, found=origin.format, hint=_SCALE)
        bits = 16
    values = np.asarray(image)  # (H, W)
    levels = np.empty(values.shape, np.uint8)
    np.right_shift(values, bits - 8, out=levels, casting="unsafe")
    if _WHITE_IS_ZERO in _tag(origin, _PHOTOMETRIC):  # Pillow inverts only up to 8 bits
        np.invert(levels, out=levels)
    gray, transparent = Image.fromarray(levels), image.info.get("transparency")
    if not isinstance(transparent, int):
        return gray
    return Image.merge("LA", (gray, Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8))))


def _tag(image: Image.Image, tag: int) -> tuple[int, ...]:
    """The numbers in a TIFF tag; empty for other images."""
    value = getattr(image, "tag_v2", {}).get(tag, ()) if image.format == "TIFF" else ()
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)
