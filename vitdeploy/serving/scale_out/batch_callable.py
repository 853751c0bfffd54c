"""Columns of images in, columns of predictions or vectors out: for Ray Data, Daft and Spark, and free of all three.

numpy has no null: in the row of an image without a result, `error` has the reason, and the other columns have "", -1
and NaN. In all other rows `error` is "".
"""

from __future__ import annotations

import dataclasses
import math
import os
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from vitdeploy.bundle.bundle import Bundle
from vitdeploy.errors import ImageError, UsageError, check_count, shown
from vitdeploy.images.open import open_image
from vitdeploy.images.processor import ImageProcessor
from vitdeploy.predictor import Predictor, batch_size_for, check_batch_size, load, load_processor
from vitdeploy.runtimes import BACKENDS
from vitdeploy.runtimes.choice import Opening, choose_opening
from vitdeploy.serving.in_process.lazy_predictor import LazyPredictor
from vitdeploy.serving.scale_out.result_columns import Columns, Labels, Vectors
from vitdeploy.specs import PixelFormat, PixelStage
from vitdeploy.system.argument_types import check_type, hints_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from typing_extensions import Self

PIXELS, ERROR = "pixel_values", "error"


@dataclasses.dataclass(frozen=True)
class DecodeImages:
    """First stage, for CPU tasks: decode and preprocess a column of images. Picklable; needs no bundle and no engine.

    `pixel_values` (N, ...) and `error` (N,) replace the column. Pixels without an image are zero.

    Attributes:
        processor: The model's image processor, with a fixed output size.
        pixels: The runtime's input format.
        column: Name of the column: encoded images as bytes, decoded ones as uint8 arrays, or the dictionaries of a Hub
            dataset, `{"bytes": ..., "path": ...}`.

    Raises:
        UsageError: If preprocessed images differ in size.
    """

    processor: ImageProcessor
    pixels: PixelFormat
    column: str = "image"

    def __post_init__(self) -> None:
        if self.pixels.stage is PixelStage.DECODED or self.processor.output_size is None:
            raise UsageError(
                "images of this model keep different sizes, a column of pixels takes one",
                what="output_size", expected="a fixed size", found=self.processor.output_size,
                hint="export it with a fixed image size and without its preprocessing",
            )  # fmt: skip

    @classmethod
    def of(cls, bundle: str | os.PathLike[str], column: str = "image", **options: Any) -> Self:
        """The first stage for the artifact that `vitdeploy.load` opens with these options, which need not run here."""
        opening = resolve(bundle, options).opening
        artifact = opening.artifact
        return cls(load_processor(opening.bundle), PixelFormat() if artifact is None else artifact.pixels, column)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of a prepared image."""
        height, width = self.processor.output_size or (0, 0)
        return tuple(map(int, self.pixels.shape(self.processor.num_channels, (height, width))))

    @property
    def image_bytes(self) -> int:
        """Size of a prepared image, in bytes."""
        return math.prod(self.shape) * np.dtype(self.pixels.dtype).itemsize

    def __call__(self, batch: Mapping[str, np.ndarray]) -> Columns:
        """Decode a batch.

        Raises:
            UsageError: If there is no such column, it holds no images, or another one has the name of a new one.
        """
        if self.column not in batch:
            names = tuple(batch)
            message = f"the batch has no column {self.column!r}, only {', '.join(names) or 'none'}"
            raise UsageError(message, what=self.column, expected=self.column, found=names)
        images = batch[self.column]
        pixel_values = np.zeros((len(images), *self.shape), self.pixels.dtype)
        errors = np.full(len(images), "", object)
        for row, image in enumerate(images):
            try:
                opened = open_image(_encoded(image), mode=self.processor.mode)
                pixel_values[row] = self.processor(opened, pixels=self.pixels)[0]
            except ImageError as exc:
                errors[row] = str(exc)
        return _joined(_without(batch, self.column), {PIXELS: pixel_values, ERROR: errors})


class BatchPredictor:
    """Second stage, or both: a picklable callable that opens its bundle on first use, once in each process.

    Args:
        bundle: The bundle's folder, which every machine sees under its absolute path.
        rows: Columns to compute. Default: `Labels()`.
        column: Name of the column of images; see `DecodeImages`.
        batch_size: Images per run. Default: the predictor's.
        threads: CPU threads of the engine, for a process that has a share of the machine. The manifest is then read
            at once. Default: the backend's.
        options: See `vitdeploy.load`: backend, precision, device, and options of the backend.
    """

    def __init__(
        self,
        bundle: str | os.PathLike[str],
        *,
        rows: Labels | Vectors | None = None,
        column: str = "image",
        batch_size: int | None = None,
        threads: int | None = None,
        **options: Any,
    ) -> None:
        if batch_size is not None:
            check_batch_size(batch_size)
        if threads is not None:
            resolved = resolve(bundle, options, threads)
            options, batch_size = resolved.options, batch_size or resolved.batch_size
        self.rows, self.column, self.batch_size = rows or Labels(), column, batch_size
        self._lazy = LazyPredictor(bundle, **options)

    @property
    def predictor(self) -> Predictor:
        """The predictor of this process; raises as `vitdeploy.load`."""
        return self._lazy.predictor

    @property
    def decoder(self) -> DecodeImages:
        """The first stage."""
        return DecodeImages(self.predictor.processor, self.predictor.runtime.pixels, self.column)

    def __call__(self, batch: Mapping[str, np.ndarray]) -> Columns:
        """Compute the rows of a batch of images, or of one that `DecodeImages` has prepared; other columns are kept.

        Raises:
            UsageError: If the columns or the options do not fit the model.
            DeviceError: If the engine failed, for example out of memory.
        """
        prepared = batch if PIXELS in batch and ERROR in batch else self.decoder(batch)
        pixel_values, errors = prepared[PIXELS], np.array(prepared[ERROR], object)
        predictor = self.predictor
        columns = self.rows.empty(predictor, len(errors))
        result = _joined(_without(prepared, PIXELS, ERROR), {**columns, ERROR: errors})
        readable = np.flatnonzero(errors == "")
        size = batch_size_for(predictor.processor, predictor.runtime, self.batch_size or predictor.batch_size)
        for start in range(0, len(readable), size):
            part = readable[start : start + size]
            values = self.rows.compute(predictor, np.ascontiguousarray(pixel_values[part]))
            finite = np.isfinite(values).all(axis=1)
            errors[part[~finite]] = "the model gives NaN or infinite values for this image"
            self.rows.put(columns, part[finite], values[finite], predictor)
        return result

    def close(self) -> None:
        """Close the runtime of this process; copies go on."""
        self._lazy.close()


class Resolved(NamedTuple):
    """An artifact, and the options by which `load` opens the same again.

    Attributes:
        opening: The artifact; the signature of its bundle was checked if the options have a key.
        options: The options, with the names of the backend and artifact, and those of the tuned choice.
    """

    opening: Opening
    options: dict[str, Any]

    @property
    def batch_size(self) -> int | None:
        """Images per run of the tuned choice; None for another."""
        return None if self.opening.tuned is None else self.opening.tuned.batch_size


def resolve(path: str | os.PathLike[str], options: Mapping[str, Any], threads: int | None = None) -> Resolved:
    """Name what `load` opens with these options.

    Args:
        path: The bundle's folder.
        options: See `vitdeploy.load`.
        threads: CPU threads for the engine, unless the options have them. Default: the backend's.
    """
    names = ("backend", "precision", "device", "public_key", "artifact")
    for argument in names:
        check_type(argument, options.get(argument), hints_of(load)[argument])
    backend, precision, device, public_key, artifact = map(options.get, names)
    bundle = Bundle.open(path, public_key=public_key)
    given, beside_decoding = _without(options, *names, "beside_decoding"), options.get("beside_decoding", False)
    opening = choose_opening(
        bundle, backend, precision, device, given, artifact=artifact, beside_decoding=beside_decoding
    )
    given = dict(opening.options)
    option = BACKENDS[opening.backend].threads_option if opening.backend in BACKENDS else None
    if threads is not None and option and option not in options:
        check_count("threads", threads)
        runs = min(given.get("parallel_runs", 1) or threads, threads)  # 0 is the backend's number
        given = {**given, option: threads if runs == 1 else 1}
        if "parallel_runs" in given:
            given["parallel_runs"] = runs
    chosen = opening.artifact
    name = None if chosen is None else chosen.name
    arguments = dict(zip(names, (opening.backend, opening.precision, device, public_key, name), strict=True))
    return Resolved(opening, {**arguments, **given})


def _encoded(image: Any) -> Any:
    """An image that an ImageProcessor takes, but no path: rows must not open files of the machine that runs them.

    Raises:
        ImageError: If there is none.
        UsageError: If it is text.
    """
    if isinstance(image, dict):
        image = image.get("bytes")
    if image is None:
        raise ImageError("the row has no image", what="image")
    if isinstance(image, (str, os.PathLike)):
        message, hint = f"the row has text, not an image: {shown(image, 80)}", "read the files into a column of bytes"
        raise UsageError(message, what="image", found=image, hint=hint)
    return image


def _joined(kept: Mapping[str, np.ndarray], new: Columns) -> Columns:
    """Both, in this order; UsageError if one has the name of another."""
    twice = sorted(kept.keys() & new.keys())
    if twice:
        message = f"the batch has a column {twice[0]!r} already, which is the name of a result"
        raise UsageError(message, what=twice[0], found=tuple(kept), hint="rename it, or leave it out")
    return {**kept, **new}


def _without(columns: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: column for name, column in columns.items() if name not in names}
