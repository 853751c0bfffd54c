"""Images of a data set, small and in the page itself."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, NamedTuple

from vitdeploy.errors import ImageError
from vitdeploy.images.open import open_image

if TYPE_CHECKING:
    from vitdeploy.assess.report.example_images import Sample

_LARGEST_SIDE = 320  # pixels of an embedded image; the page shows half of it, for dense displays
_SHARP_BELOW = 128  # pixels: smaller images are kept as they are, and enlarged without smoothing
_QUALITY = 85


class Picture(NamedTuple):
    """An image in the page.

    Attributes:
        uri: its data; "" where it cannot be shown.
        width: in pixels.
        height: in pixels.
        small: whether it is to be enlarged without smoothing.
        missing: why it cannot be shown; "" where it can.
    """

    uri: str
    width: int = 0
    height: int = 0
    small: bool = False
    missing: str = ""


def picture_of(sample: Sample) -> Picture:
    """The colours alone: nothing else that a file holds gets into the page. An image may be gone by now: it says so.

    For a model of gray or RGBA images too: as the file's colours, without alpha.
    """
    try:
        image = open_image(sample.load(), name=repr(sample.image))
    except ImageError as exc:
        return Picture("", missing=str(exc))
    image.thumbnail((_LARGEST_SIDE, _LARGEST_SIDE))
    small = max(image.size) < _SHARP_BELOW
    kind, options = ("png", {}) if small else ("jpeg", {"quality": _QUALITY})
    file = io.BytesIO()
    image.save(file, kind, optimize=True, **options)
    data = base64.b64encode(file.getvalue()).decode()
    return Picture(f"data:image/{kind};base64,{data}", *image.size, small=small)
