"""Limit the pixels of an image, against decompression bombs: Pillow's own limit, and how to raise it."""

from __future__ import annotations

import contextlib
import math
import os
import re
import threading
from collections.abc import Iterator
from typing import NamedTuple

from PIL import Image

from vitdeploy.errors import UsageError
from vitdeploy.images.formats import unreadable
from vitdeploy.system.forks import first_in_child

# An environment variable, and no argument of every function that reads images: it reaches the processes that
# `benchmark` starts, and the command line sets it in one place.
MAX_PIXELS_VARIABLE = "VITDEPLOY_MAX_IMAGE_PIXELS"
HOW_TO_RAISE = (
    f"for images that you trust, raise the limit: --max-image-pixels or {MAX_PIXELS_VARIABLE}, "
    "or PIL.Image.MAX_IMAGE_PIXELS in Python"
)
# A resized image of so many takes 256 MiB of RGB: 300 times as wide as high at 448 pixels, and 1,300 times at 224.
MOST_GROWN_PIXELS = 1 << 26
MOST_EMBEDDED_BYTES = 2 * 1024**3  # of RGB, 71 megapixels
_LONGEST_EMBEDDED = 1 << 15
# Pillow's Resample.c takes at most 2^31 bytes for a filter: 8 for each of 6 (Lanczos) weights a pixel of the side.
_LONGEST_SIDE = 1 << 25
_BYTES_A_VALUE, _BYTES_A_WEIGHT = 10, 60
_OUTSIDE = "resize the image first, or export the model without --embed-resize"


def max_pixels() -> int | None:
    """The most pixels of an image: VITDEPLOY_MAX_IMAGE_PIXELS, or twice PIL.Image.MAX_IMAGE_PIXELS; None for no limit.

    Pillow warns of an image with more than its limit, and refuses one with more than twice as many.

    Raises:
        UsageError: If the variable is not a whole number from 1 up.
    """
    text = os.environ.get(MAX_PIXELS_VARIABLE)
    if text:
        if not re.fullmatch("0*[1-9][0-9]{0,18}", text):  # Python refuses to read thousands of digits
            message = f"{MAX_PIXELS_VARIABLE} is {text!r:.80}, not a whole number of pixels from 1 up"
            raise UsageError(message, what=MAX_PIXELS_VARIABLE, found=text)
        return int(text)
    pillows = _lifted.pillows()
    return None if pillows is None else 2 * pillows


def check_pixel_count(width: int, height: int, name: str) -> None:
    """Raise ImageError where an image has more pixels than `max_pixels`, or a longer side than Pillow can resize."""
    if max(width, height) > _LONGEST_SIDE:
        problem = f"{width}x{height} pixels, and a side may have {_LONGEST_SIDE}"
        raise unreadable(name, problem, expected=_LONGEST_SIDE, found=(width, height), hint="resize the image first")
    limit = max_pixels()
    if limit is not None and width * height > limit:
        problem = f"{width}x{height} pixels, more than the limit of {limit} pixels"
        raise unreadable(name, problem, expected=limit, found=(width, height), hint=HOW_TO_RAISE)


def check_resized_count(width: int, height: int, of_pixels: int, name: str) -> None:
    """Refuse an image, such as a long strip, that would grow out of proportion when it is resized, before the crop.

    It may grow to `MOST_GROWN_PIXELS`, or stay as large as it is (`of_pixels`); VITDEPLOY_MAX_IMAGE_PIXELS goes before
    both. The width and height are those of the resized image.

    Raises:
        ImageError: If it would have more.
    """
    limit = max_pixels()
    if limit is not None and not os.environ.get(MAX_PIXELS_VARIABLE):
        limit = min(limit, max(MOST_GROWN_PIXELS, of_pixels))
    if limit is not None and width * height > limit:
        problem = f"it would be resized to {width}x{height} pixels, more than the limit of {limit} pixels"
        raise unreadable(name, problem, expected=limit, found=(width, height), hint=HOW_TO_RAISE)


class EmbeddedSide(NamedTuple):
    """A side of an image that a graph resizes by itself: pixels of the decoded image, the resized one and the crop."""

    length: int
    resized: int
    crop: int


def embedded_problem(count: int, channels: int, sides: tuple[EmbeddedSide, EmbeddedSide]) -> str | None:
    """Say why a graph with an embedded resize cannot resize images; see `vitdeploy.exporters.graph.embedded_resize`.

    Such a graph computes the filter's weights, crop x length of them, in 64 bits. Where max(length, resized)^4 /
    resized is 2^51 or more, bicubic ones overflow. It holds every value of the images in float32 twice: from measured
    peaks of ONNX Runtime 1.32 on images of 32 to 26,000 pixels a side, 9 to 10 bytes a value and 58 a weight. It may
    take `MOST_EMBEDDED_BYTES`, or the need of an image of VITDEPLOY_MAX_IMAGE_PIXELS.

    Args:
        count: Of the images that run together.
        channels: Of each.
        sides: Height and width.

    Returns:
        The problem and its remedy, for the end of a message; None where there is none.
    """
    problem = embedded_side_problem(sides)
    if problem is not None:
        return problem
    values = count * channels * math.prod(side.length for side in sides)
    weights = _BYTES_A_WEIGHT * sum(side.length * side.crop for side in sides)
    need = _BYTES_A_VALUE * values + weights
    allowed = MOST_EMBEDDED_BYTES
    if os.environ.get(MAX_PIXELS_VARIABLE):
        allowed = max(allowed, _BYTES_A_VALUE * channels * (max_pixels() or 0) + weights)
    if need > allowed:
        height, width = (side.length for side in sides)
        return (
            f"a model that resizes by itself would take about {need / 1e9:.1f} GB for {count} of {width}x{height} "
            f"pixels, and at most {allowed / 1e9:.1f} GB is allowed; {_OUTSIDE}, or raise --max-image-pixels "
            f"({MAX_PIXELS_VARIABLE})"
        )
    return None


def embedded_side_problem(sides: tuple[EmbeddedSide, EmbeddedSide]) -> str | None:
    """The part of `embedded_problem` that no higher limit of pixels helps against."""
    for length, resized, _ in sides:
        if length > _LONGEST_EMBEDDED or max(length, resized) ** 4 >= resized << 51:
            return f"a side of {length} pixels is too long for a model that resizes by itself; {_OUTSIDE}"
    return None


class _Lifted:
    """Pillow's limit while images are read, and the number of readers."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._readers = 0
        self._before: int | None = None
        self._during: int | None = None

    def pillows(self) -> int | None:
        """Pillow's limit as it is when nobody reads."""
        with self._lock:
            now = Image.MAX_IMAGE_PIXELS
            return self._before if self._readers and now == self._during else now

    @contextlib.contextmanager
    def limit_lifted(self) -> Iterator[None]:
        """Let Pillow open, without a warning, every image that `max_pixels` allows; meanwhile it refuses twice as many.

        `PIL.Image.MAX_IMAGE_PIXELS` holds for the whole process. It is changed while images are being read, by any
        number of threads, and set back after the last of them, unless it was set to something else meanwhile.
        """
        limit = max_pixels()
        with self._lock:
            if not self._readers or self._during != Image.MAX_IMAGE_PIXELS:
                self._before = Image.MAX_IMAGE_PIXELS
            Image.MAX_IMAGE_PIXELS = self._during = limit
            self._readers += 1
        try:
            yield
        finally:
            with self._lock:
                self._readers -= 1
                if not self._readers and self._during == Image.MAX_IMAGE_PIXELS:
                    Image.MAX_IMAGE_PIXELS = self._before

    def end_readers(self) -> None:
        """Forget the readers of the parent, whose threads a forked child does not have."""
        self._lock = threading.Lock()
        if self._readers and self._during == Image.MAX_IMAGE_PIXELS:
            Image.MAX_IMAGE_PIXELS = self._before
        self._readers = 0


_lifted = _Lifted()
limit_lifted = _lifted.limit_lifted
first_in_child(_lifted.end_readers)
