"""Warm a runtime up: run it once per input shape, on images that are decoded and preprocessed as others are."""

from __future__ import annotations

import dataclasses
import io
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from vitdeploy.errors import UsageError, check_count, shown
from vitdeploy.images.preprocessor_config import Size
from vitdeploy.specs import MOST_A_BATCH, PixelStage
from vitdeploy.system.argument_types import check_type
from vitdeploy.system.cpu import MOST_THREADS

if TYPE_CHECKING:
    from vitdeploy.images.open import ImageSource
    from vitdeploy.images.processor import ImageProcessor
    from vitdeploy.runtimes.base import Runtime
    from vitdeploy.system.forks import ThreadPool

_ROUNDS = 2  # of all callers at once: ONNX Runtime plans a shape's memory in the first run, and allocates by plan later
_MOST_PIXELS_A_SIDE = 65_500  # of a JPEG (JPEG_MAX_DIMENSION of libjpeg)


@dataclasses.dataclass(frozen=True)
class WarmedShape:
    """The first run of an input shape.

    Attributes:
        batch_size: Number of images.
        height: Height of the model's input, in pixels.
        width: Width of the model's input, in pixels.
        seconds: Time of the run, with the preprocessing.
    """

    batch_size: int
    height: int
    width: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def warm(
    runtime: Runtime,
    processor: ImageProcessor,
    batch_sizes: Sequence[int] | None,
    image_sizes: Sequence[Sequence[int]] | None,
    *,
    callers: int,
    usual: int,
    pool: ThreadPool,
) -> tuple[WarmedShape, ...]:
    """Preprocess and run every batch size with every image size, once each, in this order; then by all callers at once.

    Args:
        runtime: The open artifact.
        processor: The model's image processor.
        batch_sizes: Images per run. Default: 1 and `usual`, within the artifact's limits.
        image_sizes: (height, width) of the input. Default: the processor's output size.
        callers: Threads of the application that call at a time.
        usual: Images per run of the application.
        pool: Threads that read images.

    Raises:
        UsageError: If a shape is not one of the artifact's; nothing has run then.
    """
    if batch_sizes is None:
        batch_sizes = _default_batch_sizes(runtime, usual)
    check_type("batch_sizes", batch_sizes, Sequence[int])
    for batch_size in batch_sizes:
        check_count("batch_sizes", batch_size, most=MOST_A_BATCH)
    check_count("callers", callers, most=MOST_THREADS)
    sizes = [_default_size(runtime, processor)] if image_sizes is None else _read_sizes(image_sizes)
    shapes = [(int(batch_size), *size) for batch_size in batch_sizes for size in sizes]
    for batch_size, *size in shapes:
        axes = runtime.pixels.shape(processor.num_channels, (size[0], size[1]))
        empty = np.broadcast_to(np.zeros((), runtime.pixels.dtype), (batch_size, *axes))  # without memory of its own
        runtime.check_inputs({"pixel_values": empty})
    warmed = []
    calls = [_Call(runtime, processor, *shape, pool) for shape in shapes]
    for call, shape in zip(calls, shapes, strict=True):
        start = time.perf_counter()
        call.run(call.preprocess())
        warmed.append(WarmedShape(*shape, time.perf_counter() - start))
    if callers > 1:
        _run_at_once(calls, callers)
    return tuple(warmed)


class _Call:
    """A call of the application: images of one size, preprocessed and run as one batch."""

    def __init__(
        self, runtime: Runtime, processor: ImageProcessor, batch_size: int, height: int, width: int, pool: ThreadPool
    ) -> None:
        resizes = runtime.pixels.stage is not PixelStage.DECODED and processor.output_size != (height, width)
        self._processor = processor.resized(height, width) if resizes else processor
        self._images: list[ImageSource] = [_jpeg(height, width)] * batch_size
        self._runtime, self._pool = runtime, pool

    def preprocess(self) -> np.ndarray:
        return self._processor(self._images, pixels=self._runtime.pixels, pool=self._pool)

    def run(self, pixel_values: np.ndarray) -> None:
        self._runtime.run({"pixel_values": pixel_values})


def _run_at_once(calls: Sequence[_Call], callers: int) -> None:
    """Each call by `callers` threads, whose runs start at the same time."""
    from concurrent.futures import ThreadPoolExecutor  # not needed for one caller

    with ThreadPoolExecutor(callers, "vitdeploy-warm-up") as threads:
        for call in [*calls] * _ROUNDS:
            arrays = list(threads.map(lambda call: call.preprocess(), [call] * callers))
            start = threading.Barrier(callers)

            def run(pixel_values: np.ndarray, call: _Call = call, start: threading.Barrier = start) -> None:
                start.wait()
                call.run(pixel_values)

            try:
                list(threads.map(run, arrays))
            except BaseException:
                start.abort()  # if a thread is missing, the others would wait forever
                raise


def _default_batch_sizes(runtime: Runtime, usual: int) -> tuple[int, ...]:
    axis = runtime.inputs[0].shape[0]
    if isinstance(axis, int):
        return (axis,)
    smallest = runtime.axes[axis].minimum if axis in runtime.axes else 1
    return tuple(sorted({smallest, max(smallest, usual)}))


def _default_size(runtime: Runtime, processor: ImageProcessor) -> tuple[int, int]:
    """Height and width that images usually come out in."""
    decoded = runtime.pixels.stage is PixelStage.DECODED
    usual = None if decoded else processor.output_size
    if usual is None and processor.do_resize:
        size = processor.size
        usual = (size.height, size.width) if isinstance(size, Size) else (size.shortest_edge, size.shortest_edge)
    sides = []
    for index, axis in enumerate(runtime.pixels.size(runtime.inputs[0].shape)):
        limits = runtime.axes.get(axis) if isinstance(axis, str) else None
        if isinstance(axis, int):
            sides.append(axis)
        elif usual is not None and (limits is None or usual[index] in limits):
            sides.append(usual[index])
        elif limits is not None:
            sides.append(limits.optimum)
        else:
            raise UsageError(
                "images keep their size here, so there is no usual one", what="image_sizes", hint="give image_sizes"
            )
    return sides[0], sides[1]


def _read_sizes(given: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
    check_type("image_sizes", given, Sequence[Sequence[int]])
    for size in given:
        if len(size) != 2 or not all(1 <= side <= _MOST_PIXELS_A_SIDE for side in size):
            raise UsageError(
                f"image_sizes takes pairs of height and width, got {shown(size, 80)}",
                what="image_sizes", expected="(height, width)", found=size,
            )  # fmt: skip
    return [(int(height), int(width)) for height, width in given]


def _jpeg(height: int, width: int) -> bytes:
    """A file with smooth colors: neither noise, which is slow to decode, nor a constant, which has no variance."""
    ramp = np.add.outer(np.arange(height) % 251, np.arange(width) % 241).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(np.stack([ramp, ramp.max() - ramp, ramp // 2], axis=-1)).save(file, "JPEG", quality=90)
    return file.getvalue()
