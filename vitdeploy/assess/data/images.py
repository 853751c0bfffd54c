"""Images to assess with, from a folder or synthetic."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vitdeploy.assess.data.folder_listing import LeftOut, list_images
from vitdeploy.errors import UsageError
from vitdeploy.images.processor import ImageProcessor, as_batch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vitdeploy.specs import Mode, TensorSpec

SYNTHETIC_COUNT = 16
_SYNTHETIC_SIZE = (224, 224)  # (height, width) in pixels, if the model takes every size


def synthetic_images(count: int, height: int, width: int, seed: int = 0, *, mode: Mode = "RGB") -> list[Image.Image]:
    """Seeded noise in every channel, alpha included, with the 1/f amplitude spectrum of photographs.

    Field 1987, doi:10.1364/JOSAA.4.002379.
    """
    generator = np.random.default_rng(seed)
    fy, fx = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :]
    falloff = 1.0 / np.maximum(np.hypot(fy, fx), 1.0 / max(height, width))
    images = []
    for _ in range(count):
        spectrum = np.fft.rfft2(generator.standard_normal((Image.getmodebands(mode), height, width))) * falloff
        noise = np.fft.irfft2(spectrum, s=(height, width))
        noise = (noise - noise.mean()) / (noise.std() or 1.0)  # 0 for a single number
        pixels = np.clip(noise * 64 + 128, 0, 255).astype(np.uint8)
        array = np.ascontiguousarray(pixels.transpose(1, 2, 0))  # (H, W, C)
        images.append(Image.fromarray(array[:, :, 0] if mode == "L" else array))
    return images


def images_for(processor: ImageProcessor, count: int = SYNTHETIC_COUNT) -> list[Image.Image]:
    """Synthetic images at the model's input size."""
    return synthetic_images(count, *(processor.output_size or _SYNTHETIC_SIZE), mode=processor.mode)


@dataclasses.dataclass(frozen=True)
class ImageSources:
    """Images to run.

    Attributes:
        images: Paths, or other inputs of `vitdeploy.images.open.open_image`.
        left_out: Files of the folder that are not among its images; None if no folder was listed.
        synthetic: True if no images were given and they were generated.
    """

    images: Sequence[Any]
    left_out: LeftOut | None = None
    synthetic: bool = False


def chosen_images(
    processor: ImageProcessor,
    images: str | os.PathLike[str] | Sequence[Any] | NDArray[Any] | None,
    most: int | None = None,
) -> ImageSources:
    """The first files of a folder, the given images, or synthetic ones; raises as `list_images`."""
    if images is None:
        return ImageSources(images_for(processor), synthetic=True)
    if not isinstance(images, (str, os.PathLike)):
        batch = as_batch(images)[:most]
        if not batch:
            raise UsageError("there are no images to compare on", what="images", found=images, hint="give at least one")
        return ImageSources(batch)
    listing = list_images(images)
    return ImageSources(listing.files[:most], listing.left_out)


def few_images(processor: ImageProcessor, folder: str | os.PathLike[str] | None, most: int) -> ImageSources:
    """At most `most` evenly spaced files of a folder, or synthetic images; raises as `list_images`."""
    if folder is None:
        return ImageSources(images_for(processor, most), synthetic=True)
    listing = list_images(folder)
    count = min(most, len(listing.files))
    chosen = tuple(listing.files[index * len(listing.files) // count] for index in range(count))
    return ImageSources(chosen, listing.left_out)


def fingerprint(*arrays: np.ndarray) -> str:
    """SHA-256 of arrays, which identifies the images behind a figure."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def feeds(inputs: Sequence[TensorSpec], pixel_values: np.ndarray, seed: int = 0) -> dict[str, np.ndarray]:
    """Input arrays of a runtime for N images.

    A mask input covers half of the patches, chosen by `seed`.
    """
    arrays = {"pixel_values": pixel_values}
    for spec in inputs:
        if spec.name == "bool_masked_pos":
            shape = (len(pixel_values), *spec.shape[1:])
            arrays[spec.name] = np.random.default_rng(seed).random(shape) < 0.5  # type: ignore[arg-type]
    return arrays
