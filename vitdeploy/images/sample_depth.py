"""Bring gray of more than 8 bits to 8 by the depth that its file states, and refuse samples that Pillow misreads."""

from __future__ import annotations

import numpy as np
from PIL import Image

from vitdeploy.images.formats import unreadable

# Formats whose gray Pillow scales to 16 bits itself: PNG has no other depth, of PPM and PGM the maximum is divided by
# (PpmImagePlugin), and JPEG 2000 is shifted (Jpeg2KDecode.c). None: an image that was made in memory, as copies and
# crops are too: Pillow gives them neither the format nor the tags of their origin.
_FULL_RANGE = (None, "PNG", "PPM", "JPEG2000")
# TIFF 6.0's tags.
_BITS_PER_SAMPLE, _COMPRESSION, _PHOTOMETRIC, _PLANAR, _SAMPLE_FORMAT = 258, 259, 262, 284, 339
_SCALE = "scale them to 0..255 and save the image with 8 bits"
_WHITE_IS_ZERO, _UNCOMPRESSED, _SEPARATE_PLANES, _SIGNED = 0, 1, 2, 2


def check_samples(image: Image.Image, name: str) -> None:
    """Refuse a TIFF file of samples that have no fixed range, or that Pillow reads as something else.

    Raises:
        ImageError: If samples are signed (Pillow reads those of 8 bits as unsigned), or have 16 bits in uncompressed
            planes (of which Pillow 13 takes every byte for a sample).
    """
    if _SIGNED in _tag(image, _SAMPLE_FORMAT):
        hint = "scale them to 0..255 and save the image with 8 unsigned bits"
        raise unreadable(name, "signed samples have no fixed black and white", found="signed samples", hint=hint)
    separate = _SEPARATE_PLANES in _tag(image, _PLANAR) and _UNCOMPRESSED in _tag(image, _COMPRESSION)
    if separate and len(image.getbands()) > 1 and max(_tag(image, _BITS_PER_SAMPLE), default=0) > 8:
        hint = "save the image with 8 bits, or with its channels interleaved"
        raise unreadable(name, "Pillow misreads uncompressed planes of 16 bits", found="16-bit planes", hint=hint)


def to_8_bits(image: Image.Image, origin: Image.Image, name: str) -> Image.Image:
    """Gray of 9 to 16 bits by its 8 highest bits, as mode "L" or, with a transparent level, "LA"; others as they are.

    A TIFF file states its depth in BitsPerSample, and whether 0 is white in PhotometricInterpretation. Its
    MaxSampleValue is not used: TIFF 6.0 has it for statistics, not for display. A PNG file's tRNS chunk states the one
    level that is transparent, in all of its 16 bits.

    Args:
        image: Of any mode.
        origin: The image as Pillow opened it, which knows its file's format.
        name: Of the image in messages.

    Raises:
        ImageError: If the range of the pixels is not known.
    """
    of_file = image.mode == "I" and origin.format in ("PNG", "PPM")  # 16 bits of these, in some versions of Pillow
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
    if _WHITE_IS_ZERO in _tag(origin, _PHOTOMETRIC):  # Pillow inverts up to 8 bits alone
        np.invert(levels, out=levels)
    gray, transparent = Image.fromarray(levels), image.info.get("transparency")
    if not isinstance(transparent, int):
        return gray
    return Image.merge("LA", (gray, Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8))))


def _tag(image: Image.Image, tag: int) -> tuple[int, ...]:
    """The numbers of a tag of a TIFF file; none of other images."""
    value = getattr(image, "tag_v2", {}).get(tag, ()) if image.format == "TIFF" else ()
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)
