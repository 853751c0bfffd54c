"""Preprocess images for a Vision Transformer, bit-exact with transformers' PIL backend.

DINOv3ViTImageProcessor exists for torchvision only. It rescales before it resizes, so that resized pixels are not
rounded. Here Pillow resizes each channel in float32: within 5e-5 of torchvision's pixels before the normalization, 1 %
of a gray level, because torchvision computes the filter's weights in float32.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vitdeploy.errors import InputError, UsageError, check_count
from vitdeploy.files.file_kinds import NESTED_FILE, SETTINGS_FILE
from vitdeploy.images.formats import readable_formats, unreadable
from vitdeploy.images.open import ImageSource, decode_image, image_name
from vitdeploy.images.pixel_limit import EmbeddedSide, check_resized_count, embedded_problem, embedded_side_problem
from vitdeploy.images.preprocessor_config import UNROUNDED, ShortestEdge, Size, parse
from vitdeploy.images.preprocessor_files import channels_of_model, find_settings, read_files
from vitdeploy.specs import MODES, Layout, Mode, PixelFormat, PixelStage
from vitdeploy.system.cpu import recent_workers
from vitdeploy.system.forks import ThreadPool

Channels = tuple[float, ...]
CropRounding = Literal["floor", "half_even"]


@dataclasses.dataclass(frozen=True)
class ImageProcessor:
    """Preprocess images to (N, C, H, W) float32: decode, resize, center-crop, rescale, normalize.

    The fields are the keys of `preprocessor_config.json`, with ViTImageProcessor's defaults. The number of means is the
    number of channels, C, even if `do_normalize` is off: 1 (images are opened as gray), 3 (RGB) or 4 (RGBA).

    Attributes:
        image_processor_type: Name of the transformers class.
        size: Size after the resize.
        resample: Filter, by Pillow's number (2 bilinear, 3 bicubic).
        crop_size: Center crop; a smaller image is padded with zeros (black).
        crop_rounding: Rounding of the crop's offset: "floor" as in transformers' PIL backend, or "half_even" as in
            torchvision's CenterCrop, which timm uses. A vitdeploy key, written only if not "floor".
        do_convert_rgb: Kept for transformers. Here the number of channels determines the mode (see `open_image`).
    """

    image_processor_type: str = "ViTImageProcessor"
    do_convert_rgb: bool = False
    do_resize: bool = True
    size: Size | ShortestEdge = dataclasses.field(default=Size(224, 224))
    resample: int = 2
    do_center_crop: bool = False
    crop_size: Size | None = None
    crop_rounding: CropRounding = "floor"
    do_rescale: bool = True
    rescale_factor: float = 1 / 255
    do_normalize: bool = True
    image_mean: Channels = (0.5, 0.5, 0.5)
    image_std: Channels = (0.5, 0.5, 0.5)

    def __post_init__(self) -> None:
        if self.do_center_crop and self.crop_size is None:
            raise UsageError("'do_center_crop' needs 'crop_size', got none", what="crop_size")
        if len(self.image_mean) not in MODES or len(self.image_std) != len(self.image_mean):
            raise UsageError(
                f"'image_mean' {self.image_mean} and 'image_std' {self.image_std} need a number for each channel",
                what="image_mean", expected=tuple(MODES), found=self.image_mean, hint="images have 1, 3 or 4 channels",
            )  # fmt: skip
        if 0 in self.image_std:
            raise UsageError(f"'image_std' has a zero: {self.image_std}", what="image_std", found=self.image_std)
        with np.errstate(all="ignore"):
            finite = np.isfinite(self._tables).all()
        if not finite:
            raise UsageError(
                f"'rescale_factor' {self.rescale_factor}, 'image_mean' {self.image_mean} and 'image_std' "
                f"{self.image_std} give pixels that float32 cannot hold",
                what="image_std", expected="float32", found=self.image_std, hint="check these numbers",
            )  # fmt: skip

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str], *, num_channels: int | None = None) -> ImageProcessor:
        """Read a model folder's preprocessor_config.json, or processor_config.json if that has the settings.

        The default number of channels is that in the folder's config.json.

        Raises:
            InputError: If there is no such file, or it requires something that cannot be done exactly.
        """
        return cls.from_files(Path(folder), read_files(Path(folder)), num_channels=num_channels)

    @classmethod
    def from_files(cls, folder: Path, files: Mapping[str, bytes], *, num_channels: int | None = None) -> ImageProcessor:
        """`from_pretrained` with files from `vitdeploy.images.preprocessor_files.read_files`."""
        found = find_settings(folder, files)
        if found is None:
            message = f"{folder} has no image processor: {SETTINGS_FILE} not found, nor one in {NESTED_FILE}"
            raise InputError(message, where=folder, expected=SETTINGS_FILE)
        config, path = found
        if num_channels is None:
            num_channels = channels_of_model(folder, files)
        try:
            return cls.from_dict(config, num_channels=num_channels)
        except InputError as exc:
            raise exc.at(path) from exc

    @classmethod
    def from_dict(cls, config: Mapping[str, Any], *, num_channels: int | None = None) -> ImageProcessor:
        """Parse the content of a preprocessor_config.json; see `preprocessor_config.parse` for its rules.

        Args:
            config: Content of the file.
            num_channels: The model's channels. Default: the number of means, or 3 for a single mean.

        Raises:
            InputError: If the class is unknown, a value is invalid, a step is not implemented, or the numbers of means
                and channels differ.
        """
        fields = parse(config, num_channels)
        try:
            return cls(**fields)
        except UsageError as exc:
            raise exc.as_type(InputError) from exc

    def to_dict(self) -> dict[str, Any]:
        """The content of a preprocessor_config.json, for transformers and `from_dict`."""
        fields = dataclasses.asdict(self)
        if self.crop_rounding == "floor":
            del fields["crop_rounding"]  # files of other models have exactly transformers' keys
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in fields.items()
            if value is not None
        }

    @property
    def num_channels(self) -> int:
        """Number of output channels."""
        return len(self.image_mean)

    @property
    def mode(self) -> Mode:
        """Pillow's mode for opening images."""
        return MODES[self.num_channels]

    @property
    def output_size(self) -> tuple[int, int] | None:
        """Output (H, W), or None if it depends on the image."""
        if self._crop:
            return self._crop.height, self._crop.width
        if self.do_resize and isinstance(self.size, Size):
            return self.size.height, self.size.width
        return None

    def resized(self, height: int, width: int) -> ImageProcessor:
        """The same processor with another output size.

        A center crop keeps its share of the resized image: no side of that becomes shorter than the crop unless one
        already was.
        """
        if self._crop is None:
            return dataclasses.replace(self, do_resize=True, size=Size(height, width))
        crop, size = self._crop, self.size
        new_size: Size | ShortestEdge
        if isinstance(size, ShortestEdge):
            new_size = ShortestEdge(_scaled(size.shortest_edge, max(height, width), max(crop.height, crop.width)))
        else:
            new_size = Size(_scaled(size.height, height, crop.height), _scaled(size.width, width, crop.width))
        return dataclasses.replace(self, size=new_size, crop_size=Size(height, width))

    @property
    def scale(self) -> NDArray[np.float64]:
        """Factor per channel for bytes, (C,), before `offset` is added."""
        std = self.image_std if self.do_normalize else (1,) * self.num_channels
        return self._rescale / np.array(std)

    @property
    def offset(self) -> NDArray[np.float64]:
        """Offset per channel, (C,); see `scale`."""
        offset: NDArray[np.float64] = np.array(self.image_mean) / -np.array(self.image_std)
        return offset if self.do_normalize else np.zeros_like(offset)

    def __call__(
        self,
        images: ImageSource | Sequence[ImageSource],
        *,
        pixels: PixelFormat = PixelFormat(),  # noqa: B008  (frozen)
        threads: int | None = None,
        first_index: int = 0,
        pool: ThreadPool | None = None,
    ) -> NDArray[Any]:
        """Read and preprocess one image or a batch.

        Args:
            images: One image or a sequence of images; see `open_image`. An array with four axes is a batch.
            pixels: Output format; a model that takes bytes does the remaining steps itself.
            threads: Images decoded concurrently. Default: one per CPU within the process's affinity and cgroup quota,
                cached for up to a second.
            first_index: Index of the first image, for messages about images without a path.
            pool: Threads kept between calls. Default: threads that end with the call.

        Returns:
            (N, C, H, W) float32, contiguous, or the format of `pixels`. The result does not depend on the number of
            threads.

        Raises:
            ImageError: If an image cannot be read; the message names it.
            UsageError: If there is no image, one is of the wrong type, or the results differ in size.
        """
        sources = as_batch(images)
        if not sources:
            raise UsageError("the batch is empty", what="images", found=0, hint="pass at least one image")
        if threads is None:
            threads = recent_workers() if len(sources) > 1 else 1
        check_count("threads", threads)
        names = [image_name(source, default=f"images[{index}]") for index, source in enumerate(sources, first_index)]
        self.check_stage(pixels.stage)

        def read(source: ImageSource, name: str) -> NDArray[Any]:
            if pixels.stage is PixelStage.DECODED:
                return _array(self._decoded(source, name), pixels.layout)
            image = decode_image(source, self.mode, name)
            if self._unrounded:
                planes = [self._resized(plane.convert("F"), name) for plane in image.split()]
                return np.stack([np.asarray(plane) for plane in planes])
            return _array(self._resized(image, name), pixels.layout)

        if min(threads, len(sources)) == 1:
            return self._batch(map(read, sources, names), len(sources), pixels)
        readable_formats()  # Pillow registers its formats on first use, without a lock
        with contextlib.ExitStack() as stack:
            if pool is None:
                pool = stack.enter_context(contextlib.closing(ThreadPool("vitdeploy-read")))
            arrays = stack.enter_context(contextlib.closing(pool.map(read, sources, names, threads=threads)))
            return self._batch(arrays, len(sources), pixels)

    def _decoded(self, source: ImageSource, name: str) -> Image.Image:
        """An image as in its file."""

        def check_sides(width: int, height: int) -> None:
            """Refuse sides that are too long, even if the file's orientation swaps them."""
            problems = [
                embedded_side_problem(self._embedded_sides(*sides)) for sides in ((height, width), (width, height))
            ]
            if None not in problems:
                raise unreadable(name, str(problems[0]), found=(width, height))

        image = decode_image(source, self.mode, name, check_sides)
        problem = self.embedded_problem(1, image.height, image.width)
        if problem is not None:
            raise unreadable(name, problem, found=(image.width, image.height))
        return image

    def embedded_problem(self, count: int, height: int, width: int) -> str | None:
        """Reason why a graph that does the same cannot take `count` decoded images of this size; None if it can."""
        return embedded_problem(count, self.num_channels, self._embedded_sides(height, width))

    def _embedded_sides(self, height: int, width: int) -> tuple[EmbeddedSide, EmbeddedSide]:
        sides = height, width
        resized = self.size.of(*sides) if self.do_resize else sides
        down, across = map(EmbeddedSide, sides, resized, self.output_size or resized)
        return down, across

    def pixel_counts(self, height: int, width: int) -> tuple[int, int]:
        """Pixels of an image and of the resized one, which `vitdeploy.images.pixel_limit.limits_in_effect` bounds."""
        resized_height, resized_width = self.size.of(height, width) if self.do_resize else (0, 0)
        return height * width, resized_height * resized_width

    def check_stage(self, stage: PixelStage) -> None:
        """Raise UsageError if a model cannot do the steps after `stage` as this processor does them."""
        if self._unrounded and stage is not PixelStage.NORMALIZED:
            kind = self.image_processor_type
            raise UsageError(
                f"{kind} does not round resized pixels, so that a model cannot take them as bytes",
                what="image_processor_type", found=kind,
                hint="with image_processor_type ViTImageProcessor in preprocessor_config.json they are rounded",
            )  # fmt: skip

    def _resized(self, image: Image.Image, name: str) -> Image.Image:
        """Resize and crop."""
        if self.do_resize:
            height, width = self.size.of(image.height, image.width)
            check_resized_count(width, height, image.width * image.height, name)
            image = image.resize((width, height), Image.Resampling(self.resample))
        if self._crop:
            left = _crop_offset(image.width, self._crop.width, self.crop_rounding)
            top = _crop_offset(image.height, self._crop.height, self.crop_rounding)
            image = image.crop((left, top, left + self._crop.width, top + self._crop.height))
        return image

    def _batch(self, images: Iterator[NDArray[Any]], count: int, pixels: PixelFormat) -> NDArray[Any]:
        """One array of `count` images in the layout of `pixels`, rescaled and normalized if requested."""
        first = next(images)
        tables = self._tables.astype(pixels.dtype, copy=False)
        batch = np.empty((count, *first.shape), pixels.dtype)
        for image, out in zip(itertools.chain([first], images), batch, strict=True):
            if image.shape != first.shape:
                size, other = (pixels.size((1, *array.shape)) for array in (first, image))
                raise UsageError(
                    f"the images of a batch come out in two sizes, {size} and {other}",
                    what="images", expected=size, found=other, hint="set a center crop, or pass them one by one",
                )  # fmt: skip
            if image.dtype == np.float32:
                self._normalize(image, out)
            elif pixels.stage is PixelStage.NORMALIZED:
                for table, values, plane in zip(tables, image, out, strict=True):
                    np.take(table, values, out=plane, mode="wrap")  # the fastest mode
            else:
                np.copyto(out, image)
        return batch

    def _normalize(self, planes: NDArray[np.float32], out: NDArray[np.float32]) -> None:
        """Rescale and normalize unrounded pixels, (C, H, W), into `out`."""
        np.multiply(planes, np.float32(self._rescale), out=out)
        if self.do_normalize:
            mean, std = np.array([self.image_mean, self.image_std], np.float32)[:, :, None, None]  # (C, 1, 1) each
            np.subtract(out, mean, out=out)
            np.divide(out, std, out=out)

    @property
    def _unrounded(self) -> bool:
        return self.do_resize and self.image_processor_type in UNROUNDED

    @property
    def _rescale(self) -> float:
        return self.rescale_factor if self.do_rescale else 1.0

    @property
    def _crop(self) -> Size | None:
        return self.crop_size if self.do_center_crop else None

    @functools.cached_property
    def _tables(self) -> NDArray[np.float32]:
        """The value of every byte in every channel, (C, 256), for a bit-exact look-up instead of arithmetic."""
        values = np.arange(256, dtype=np.float64) * self._rescale
        tables = np.tile(values.astype(np.float32), (self.num_channels, 1))
        if self.do_normalize:
            mean, std = np.array([self.image_mean, self.image_std], np.float32)[:, :, None]  # (C, 1) each
            tables = (tables - mean) / std
        return tables


def as_batch(images: ImageSource | Sequence[ImageSource]) -> list[ImageSource]:
    """The images of a batch, or the single image that is not a batch. An array with four axes is a batch."""
    if isinstance(images, np.ndarray) and images.ndim == 4:
        return list(images)
    if isinstance(images, Sequence) and not isinstance(images, (str, bytes, bytearray, memoryview)):
        return list(images)
    return [images]


def _array(image: Image.Image, layout: Layout) -> NDArray[np.uint8]:
    """An image -> (H, W, C), or (C, H, W) for "nchw"."""
    if layout == "nhwc":
        return np.asarray(image).reshape(image.height, image.width, -1)
    planes = b"".join(image.tobytes("raw", band) for band in image.getbands())  # faster than numpy's transpose
    return np.frombuffer(planes, np.uint8).reshape(-1, image.height, image.width)


def _crop_offset(length: int, crop: int, rounding: CropRounding) -> int:
    """Offset of a crop; negative, by the padding before it, if the crop is longer than the image.

    torchvision rounds half a pixel to even when it crops, and pads the odd pixel after the image.
    """
    if rounding == "floor":
        return (length - crop) // 2
    return round((length - crop) / 2) if length >= crop else -((crop - length) // 2)


def _scaled(length: int, new: int, old: int) -> int:
    """`length` times `new` over `old`, rounded, and at least one pixel."""
    return max(1, round(length * new / old))
