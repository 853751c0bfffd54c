"""The most pixels that an image may have, against decompression bombs: Pillow's own limit, and how to raise it."""

from __future__ import annotations

import contextlib
import os
import threading
from typing import TYPE_CHECKING

from PIL import Image

from vitdeploy.errors import ImageError, UsageError
from vitdeploy.forks import first_in_child

if TYPE_CHECKING:
    from collections.abc import Iterator

# An environment variable, and no argument of every function that reads images: it reaches the processes that
# `benchmark` starts, and the command line sets it in one place.
MAX_PIXELS_VARIABLE = "VITDEPLOY_MAX_IMAGE_PIXELS"
HOW_TO_RAISE = (
    f"for images that you trust, raise the limit: --max-image-pixels or {MAX_PIXELS_VARIABLE}, "
    "or PIL.Image.MAX_IMAGE_PIXELS in Python"
)
_LONGEST_EMBEDDED = 1 << 15


def max_pixels() -> int | None:
    """The most pixels of an image: VITDEPLOY_MAX_IMAGE_PIXELS, or twice PIL.Image.MAX_IMAGE_PIXELS; None for no limit.

    Pillow warns of an image with more than its limit, and refuses one with more than twice as many.

    Raises:
        UsageError: the variable is not a whole number from 1 up.
    """
    text = os.environ.get(MAX_PIXELS_VARIABLE)
    if text:
        if not text.isascii() or not text.isdigit() or int(text) < 1:
            raise UsageError(f"{MAX_PIXELS_VARIABLE} must be a whole number of pixels from 1 up, got {text!r:.80}")
        return int(text)
    pillows = _lifted.pillows()
    return None if pillows is None else 2 * pillows


def check_pixel_count(width: int, height: int, name: str, *, resized: bool = False) -> None:
    """Refuse an image of more pixels than `max_pixels`.

    Args:
        width: in pixels.
        height: in pixels.
        name: what an error calls the image.
        resized: whether that is the size which it would be resized to: a long strip grows to gigabytes.

    Raises:
        ImageError: it has more.
    """
    limit = max_pixels()
    if limit is not None and width * height > limit:
        what = f"cannot resize {name} to" if resized else f"cannot read {name}:"
        raise ImageError(f"{what} {width}x{height} pixels, more than the limit of {limit} pixels; {HOW_TO_RAISE}")


def check_embedded_side(length: int, resized: int, name: str) -> None:
    """Refuse a side that a graph with an embedded resize cannot resize; see `vitdeploy.exporters.embedded_resize`.

    Such a graph computes the filter's weights, crop x length of them, in 64 bits. From 32,768 pixels on they take
    hundreds of megabytes, and where max(length, resized)^4 / resized is 2^51 or more, bicubic ones overflow.

    Args:
        length: of the decoded image, in pixels.
        resized: of the resized image, in pixels.
        name: what an error calls the image.

    Raises:
        ImageError: it is too long.
    """
    if length > _LONGEST_EMBEDDED or max(length, resized) ** 4 >= resized << 51:
        raise ImageError(
            f"cannot read {name}: a side of {length} pixels is too long for a model that resizes by itself; resize the "
            f"image first, or export the model without --embed-resize"
        )


@contextlib.contextmanager
def limit_lifted() -> Iterator[None]:
    """Let Pillow open, without a warning, every image that `max_pixels` allows; in this time it refuses twice as many.

    `PIL.Image.MAX_IMAGE_PIXELS` holds for the whole process. It is changed while images are being read, by any number
    of threads, and set back after the last of them, unless it was set to something else meanwhile.
    """
    limit = max_pixels()
    _lifted.enter(limit)
    try:
        yield
    finally:
        _lifted.leave()


class _Lifted:
    """Counts the readers."""

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

    def enter(self, limit: int | None) -> None:
        with self._lock:
            if not self._readers or self._during != Image.MAX_IMAGE_PIXELS:
                self._before = Image.MAX_IMAGE_PIXELS
            Image.MAX_IMAGE_PIXELS = self._during = limit
            self._readers += 1

    def leave(self) -> None:
        with self._lock:
            self._readers -= 1
            if not self._readers and self._during == Image.MAX_IMAGE_PIXELS:
                Image.MAX_IMAGE_PIXELS = self._before

    def end_readers(self) -> None:
        """Of a forked child, where the parent's other threads, and what they held, are not."""
        self._lock = threading.Lock()
        if self._readers and self._during == Image.MAX_IMAGE_PIXELS:
            Image.MAX_IMAGE_PIXELS = self._before
        self._readers = 0


_lifted = _Lifted()
first_in_child(_lifted.end_readers)
