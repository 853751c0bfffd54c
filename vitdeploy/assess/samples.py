"""Images to assess with: a folder's, labelled ones, or synthetic ones where there are none."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from vitdeploy.assess.matching import Classes
from vitdeploy.errors import InputError, readable
from vitdeploy.processor import as_batch

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from vitdeploy.processor import ImageProcessor
    from vitdeploy.specs import Mode, TensorSpec

SYNTHETIC_COUNT = 16
_SYNTHETIC_SIZE = (224, 224)  # (height, width) in pixels, where the model takes every size
IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})


def image_files(folder: str | os.PathLike[str]) -> list[Path]:
    """Every image below `folder`, by its ending, in the order of the paths.

    Raises:
        InputError: there is no such folder, or no image in it; or as `files_below`.
    """
    root = Path(folder)
    with readable(root, "a folder of images"):
        if not root.is_dir():
            raise InputError(f"{root} must be a folder of images, but is none")
    files = files_below(root, IMAGE_SUFFIXES)
    if not files:
        raise InputError(f"{root} must hold images ({', '.join(sorted(IMAGE_SUFFIXES))}), holds none")
    return files


def files_below(root: Path, suffixes: Collection[str]) -> list[Path]:
    """Every file below a folder with one of these endings, in any case; sorted. None is left out without a word.

    Links are followed, but for those to a folder that they lie in.

    Raises:
        InputError: a folder cannot be read, a link leads nowhere, or what has such an ending is a pipe or a device.
    """
    found = []
    pending: list[tuple[Path, frozenset[tuple[int, int]]]] = [(root, frozenset())]
    while pending:
        folder, around = pending.pop()
        with readable(folder, "a folder"), os.scandir(folder) as entries:
            status = folder.stat()
            place = (status.st_dev, status.st_ino)
            if place in around:
                continue
            for entry in entries:
                path = Path(entry.path)
                wanted = path.suffix.lower() in suffixes
                if entry.is_dir():
                    pending.append((path, around | {place}))
                elif not entry.is_file() and (wanted or entry.is_symlink()):
                    raise InputError(
                        f"{path} must be a file or a folder, is a pipe, a device or a link to nothing; remove it"
                    )
                elif wanted:
                    found.append(path)
    return sorted(found)


def labelled_files(folder: str | os.PathLike[str], labels: Sequence[str]) -> list[tuple[Path, int]]:
    """Every image of a folder with one folder a class, and the index of its class in `labels`.

    See `Classes` for what a folder may be named.

    Raises:
        InputError: an image is not in a folder named like a class, or it means several classes.
    """
    root = Path(folder)
    known = Classes(labels)
    pairs = []
    for path in image_files(root):
        top = path.relative_to(root).parts[0]
        classes = known.find(top) if path.parent != root else []
        if not classes:
            where = f"in {root}" if path.parent == root else f"in {top!r}"
            raise InputError(f"{path} must be in a folder named like a class ({known}), is {where}")
        if len(classes) > 1:
            raise InputError(
                f"{path} must be in a folder that names one class, {top!r} names those of indices {classes}"
            )
        pairs.append((path, classes[0]))
    return pairs


def synthetic_images(count: int, height: int, width: int, seed: int = 0, *, mode: Mode = "RGB") -> list[Image.Image]:
    """Seeded noise in every channel, alpha too, with the 1/f amplitude spectrum of photographs.

    Field 1987, doi:10.1364/JOSAA.4.002379.
    """
    generator = np.random.default_rng(seed)
    fy, fx = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :]
    falloff = 1.0 / np.maximum(np.hypot(fy, fx), 1.0 / max(height, width))
    images = []
    for _ in range(count):
        spectrum = np.fft.rfft2(generator.standard_normal((Image.getmodebands(mode), height, width))) * falloff
        noise = np.fft.irfft2(spectrum, s=(height, width))
        noise = (noise - noise.mean()) / (noise.std() or 1.0)  # 0 where there is one number
        pixels = np.clip(noise * 64 + 128, 0, 255).astype(np.uint8)
        array = np.ascontiguousarray(pixels.transpose(1, 2, 0))  # (H, W, C)
        images.append(Image.fromarray(array[:, :, 0] if mode == "L" else array))
    return images


def images_for(processor: ImageProcessor, count: int = SYNTHETIC_COUNT) -> list[Image.Image]:
    """Synthetic images of the size that the model takes."""
    return synthetic_images(count, *(processor.output_size or _SYNTHETIC_SIZE), mode=processor.mode)


def chosen_images(processor: ImageProcessor, images: str | os.PathLike[str] | Sequence[Any] | None) -> Sequence[Any]:
    """The files of a folder, the images themselves, or synthetic ones where there are none.

    Raises:
        InputError: there is no such folder, or no image in it.
    """
    if images is None:
        return images_for(processor)
    return image_files(images) if isinstance(images, (str, os.PathLike)) else as_batch(images)


def few_images(processor: ImageProcessor, folder: str | os.PathLike[str] | None, most: int) -> Sequence[Any]:
    """At most so many of the files of a folder, at even distances; or so many synthetic images.

    Raises:
        InputError: there is no such folder, or no image in it.
    """
    if folder is None:
        return images_for(processor, most)
    files = image_files(folder)
    count = min(most, len(files))
    return [files[index * len(files) // count] for index in range(count)]


def fingerprint(*arrays: np.ndarray) -> str:
    """SHA-256 of the content of arrays, to tell which images a figure was measured on."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def feeds(inputs: Sequence[TensorSpec], pixel_values: np.ndarray, seed: int = 0) -> dict[str, np.ndarray]:
    """Arrays for each of `inputs` on these images; where a mask is due, it covers half of the patches.

    Args:
        inputs: what the runtime takes.
        pixel_values: of N images, as the runtime takes them.
        seed: of the mask.
    """
    arrays = {"pixel_values": pixel_values}
    for spec in inputs:
        if spec.name == "bool_masked_pos":
            shape = (len(pixel_values), *spec.shape[1:])
            arrays[spec.name] = np.random.default_rng(seed).random(shape) < 0.5  # type: ignore[arg-type]
    return arrays
