"""Limit an image's pixels, against decompression bombs: Pillow's limit, and how to raise it."""

from __future__ import annotations

import contextlib
import math
import os
import re
import sys
import threading
from collections.abc import Iterator
from typing import NamedTuple

from PIL import Image

from vitdeploy.errors import UsageError
from vitdeploy.images.formats import unreadable
from vitdeploy.system.forks import first_in_child

# An environment variable, not an argument of every function that reads images: it reaches `benchmark`'s processes, and
# the command line sets it in one place.
MAX_PIXELS_VARIABLE = "VITDEPLOY_MAX_IMAGE_PIXELS"
HOW_TO_RAISE = (
    f"for images that you trust, raise the limit: --max-image-pixels or {MAX_PIXELS_VARIABLE}, "
    "or PIL.Image.MAX_IMAGE_PIXELS in Python"
)
# A resized image with this many takes 256 MiB of RGB: 300 times as wide as high at 448 pixels, and 1,300 times at 224.
MOST_GROWN_PIXELS = 1 << 26
MOST_EMBEDDED_BYTES = 2 * 1024**3  # for RGB, 71 megapixels
_LONGEST_EMBEDDED = 1 << 15
# Pillow's Resample.c allows at most 2^31 bytes per filter: 8 for each of 6 (Lanczos) weights per pixel of a side.
_LONGEST_SIDE = 1 << 25
_BYTES_A_VALUE, _BYTES_A_WEIGHT = 10, 60
_OUTSIDE = "resize the image first, or export the model without --embed-resize"


def max_pixels() -> int | None:
    """Most pixels of an image: VITDEPLOY_MAX_IMAGE_PIXELS, or twice PIL.Image.MAX_IMAGE_PIXELS; None for no limit.

    Pillow warns above its limit, and refuses an image above twice its limit.

    Raises:
        UsageError: If the variable is not an integer from 1 up.
    """
    text = os.environ.get(MAX_PIXELS_VARIABLE)
    if text:
        if not re.fullmatch("0*[1-9][0-9]{0,18}", text):  # Python refuses to parse thousands of digits
            message = f"{MAX_PIXELS_VARIABLE} is {text!r:.80}, not a whole number of pixels from 1 up"
            raise UsageError(message, what=MAX_PIXELS_VARIABLE, found=text)
        return int(text)
    pillows = _lifted.pillows()
    return None if pillows is None else 2 * pillows


def limits_in_effect() -> tuple[int, int]:
    """Most pixels of an image, and of a resized one, as numbers: a larger number of each refuses no further image."""
    limit = max_pixels()
    most = sys.maxsize if limit is None else limit
    lifted = limit is None or bool(os.environ.get(MAX_PIXELS_VARIABLE))
    return most, most if lifted else min(most, MOST_GROWN_PIXELS)


def check_pixel_count(width: int, height: int, name: str) -> None:
    """Raise ImageError if an image has more pixels than `max_pixels`, or a longer side than Pillow can resize."""
    if max(width, height) > _LONGEST_SIDE:
        problem = f"{width}x{height} pixels, and a side may have {_LONGEST_SIDE}"
        raise unreadable(name, problem, expected=_LONGEST_SIDE, found=(width, height), hint="resize the image first")
    limit = max_pixels()
    if limit is not None and width * height > limit:
        problem = f"{width}x{height} pixels, more than the limit of {limit} pixels"
        raise unreadable(name, problem, expected=limit, found=(width, height), hint=HOW_TO_RAISE)


def check_resized_count(width: int, height: int, of_pixels: int, name: str) -> None:
    """Refuse an image, such as a long strip, that the resize before the crop would enlarge excessively.

    The limit is the larger of `MOST_GROWN_PIXELS` and the original number of pixels (`of_pixels`), unless
    VITDEPLOY_MAX_IMAGE_PIXELS is set. Width and height are the resized image's.

    Raises:
        ImageError: If it would have more pixels.
    """
    limit = max_pixels()
    if limit is not None and not os.environ.get(MAX_PIXELS_VARIABLE):
        limit = min(limit, max(MOST_GROWN_PIXELS, of_pixels))
    if limit is not None and width * height > limit:
        problem = f"it would be resized to {width}x{height} pixels, more than the limit of {limit} pixels"
        raise unreadable(name, problem, expected=limit, found=(width, height), hint=HOW_TO_RAISE)


class EmbeddedSide(NamedTuple):
    """A side of an image that a graph resizes: pixels of the decoded image, the resized image and the crop."""

    length: int
    resized: int
    crop: int


def embedded_problem(count: int, channels: int, sides: tuple[EmbeddedSide, EmbeddedSide]) -> str | None:
    """Reason why a graph with an embedded resize cannot resize images; see `vitdeploy.exporters.graph.embedded_resize`.

    Such a graph computes the filter's crop x length weights in 64 bits. If max(length, resized)^4 / resized is 2^51 or
    more, bicubic ones overflow. It holds every image value in float32 twice: by measured peaks of ONNX Runtime 1.32 on
    images of 32 to 26,000 pixels a side, 9 to 10 bytes per value and 58 per weight. The limit is `MOST_EMBEDDED_BYTES`,
    or the need of an image of VITDEPLOY_MAX_IMAGE_PIXELS.

    Args:
        count: Images per run.
        channels: Channels per image.
        sides: Height and width.

    Returns:
        Problem and remedy, for the end of a message; None for no problem.
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
    """The part of `embedded_problem` that a higher pixel limit does not solve."""
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
        """Pillow's limit when nothing is being read."""
        with self._lock:
            now = Image.MAX_IMAGE_PIXELS
            return self._before if self._readers and now == self._during else now

    @contextlib.contextmanager
    def limit_lifted(self) -> Iterator[None]:
        """Let Pillow open every image within `max_pixels` without a warning; in this block it refuses twice as many.

        `PIL.Image.MAX_IMAGE_PIXELS` is global to the process. It is changed while any thread reads images, and restored
        after the last one, unless it was changed in between.
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
        """Forget the parent's readers: a forked child does not have those threads."""
        self._lock = threading.Lock()
        if self._readers and self._during == Image.MAX_IMAGE_PIXELS:
            Image.MAX_IMAGE_PIXELS = self._before
        self._readers = 0


_lifted = _Lifted()
limit_lifted = _lifted.limit_lifted
first_in_child(_lifted.end_readers)
