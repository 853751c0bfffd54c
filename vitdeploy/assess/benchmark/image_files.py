"""Encoded image files to measure with: of a folder, or synthetic."""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING, NamedTuple

from vitdeploy.assess.data.folder_listing import LeftOut, list_images
from vitdeploy.assess.data.images import synthetic_images
from vitdeploy.errors import readable
from vitdeploy.files.regular_file import MOST_IMAGE_BYTES, read_regular
from vitdeploy.images.open import open_image

if TYPE_CHECKING:
    from pathlib import Path

# (height, width) of the synthetic image files: VGA photographs, as many cameras write them.
_SYNTHETIC_SIZE = (480, 640)
_JPEG_QUALITY = 90
_MOST_SYNTHETIC = 64  # more are these again


class ImageFiles(NamedTuple):
    """Encoded image files, their kind as text, and the files of the folder that are not images."""

    encoded: tuple[bytes, ...]
    kind: str
    left_out: LeftOut | None


def image_files(folder: str | os.PathLike[str] | None, count: int) -> ImageFiles:
    """The first `count` files of a folder, or synthetic JPEG files; InputError if one cannot be read."""
    if folder is not None:
        listing = list_images(folder)
        files = listing.files[:count]
        return ImageFiles(tuple(_read(file) for file in files), f"{len(files)} files of a folder", listing.left_out)
    encoded = []
    for image in synthetic_images(min(count, _MOST_SYNTHETIC), *_SYNTHETIC_SIZE):
        file = io.BytesIO()
        image.save(file, "JPEG", quality=_JPEG_QUALITY)
        encoded.append(file.getvalue())
    height, width = _SYNTHETIC_SIZE
    return ImageFiles(tuple(encoded), f"synthetic JPEG files of {width}x{height} pixels", None)


def _read(file: Path) -> bytes:
    """Read an image file that can be decoded."""
    with readable(file, "an image"):
        encoded = read_regular(file, MOST_IMAGE_BYTES)
    open_image(encoded, name=repr(str(file)))
    return encoded
