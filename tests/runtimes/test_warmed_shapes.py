"""Warm-up: the shapes that run, those that are refused, and the path that they take."""

from __future__ import annotations

import threading
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from raising import raises
from stub_runtime import StubRuntime

from vitdeploy.errors import DeviceError, UsageError
from vitdeploy.images.preprocessor_config import ShortestEdge, Size
from vitdeploy.images.processor import ImageProcessor
from vitdeploy.predictor import Predictor
from vitdeploy.specs import AxisRange, PixelFormat, PixelStage, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Mapping

DYNAMIC = ("batch", 3, "height", "width")
BYTES = PixelFormat(PixelStage.DECODED, "nhwc", "uint8")
SQUARE = ImageProcessor(size=Size(32, 32))


class Recorded(StubRuntime):
    """Keeps the shapes of its runs."""

    def __init__(self, shape: tuple[int | str, ...], axes: dict[str, AxisRange], pixels: PixelFormat) -> None:
        super().__init__()
        self.pixels, self.axes = pixels, axes
        self.inputs = (TensorSpec("pixel_values", pixels.dtype, shape),)
        self.outputs = (TensorSpec("logits", "float32", ("batch", 2)),)
        self.shapes: list[tuple[int, ...]] = []

    def _run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.shapes.append(feeds["pixel_values"].shape)
        assert np.ptp(feeds["pixel_values"]) > 0, "an image with a variance"
        return {"logits": np.zeros((len(feeds["pixel_values"]), 2), np.float32)}


def opened(
    shape: tuple[int | str, ...] = DYNAMIC,
    axes: dict[str, AxisRange] | None = None,
    pixels: PixelFormat | None = None,
    processor: ImageProcessor = SQUARE,
) -> Predictor:
    return Predictor(processor, Recorded(shape, axes or {}, pixels or PixelFormat()), ["a", "b"])


def ran(predictor: Predictor, *arguments: Any) -> list[tuple[int, ...]]:
    warmed = predictor.warm_up(*arguments)
    runtime = predictor.runtime
    assert isinstance(runtime, Recorded)
    sizes = [(shape[0], *runtime.pixels.size(shape)) for shape in runtime.shapes]
    assert sizes == [(each.batch_size, each.height, each.width) for each in warmed]
    assert all(each.seconds > 0 for each in warmed)
    return sizes


@pytest.mark.parametrize(
    ("predictor", "sizes"),
    [
        (opened(), [(1, 32, 32), (8, 32, 32)]),
        (opened(("batch", 3, 32, 32)), [(1, 32, 32), (8, 32, 32)]),
        (opened((4, 3, 32, 32)), [(4, 32, 32)]),
        (opened(axes={"batch": AxisRange(2, 3, 4)}), [(2, 32, 32), (4, 32, 32)]),
        (opened(axes={"batch": AxisRange(1, 1, 1)}), [(1, 32, 32)]),
        (opened(processor=ImageProcessor(size=ShortestEdge(24))), [(1, 24, 24)]),
        (opened(("batch", "height", "width", 3), pixels=BYTES), [(1, 32, 32)]),
        (opened(("batch", "height", "width", 3), {"height": AxisRange(64, 80, 90)}, BYTES), [(1, 80, 32)]),
    ],
)
def test_the_default_shapes_are_those_of_predict(predictor: Predictor, sizes: list[tuple[int, ...]]) -> None:
    assert ran(predictor) == sizes


@pytest.mark.parametrize("predictor", [opened(), opened(("batch", "height", "width", 3), pixels=BYTES)])
def test_every_batch_size_runs_with_every_image_size(predictor: Predictor) -> None:
    sizes = [(size, *image) for size in (1, 3) for image in ((16, 32), (48, 16))]
    assert ran(predictor, (1, 3), [(16, 32), [48, 16]]) == sizes


def test_a_center_crop_gives_the_size_asked_for() -> None:
    processor = ImageProcessor(size=ShortestEdge(40), do_center_crop=True, crop_size=Size(32, 32))
    assert ran(opened(processor=processor), [2], [(16, 48)]) == [(2, 16, 48)]


@pytest.mark.parametrize(
    ("batch_sizes", "image_sizes", "what"),
    [
        ([1, 9], None, "batch"),
        ([1], [(32, 32), (32, 96)], "width"),
        ([0], None, "batch_sizes"),
        ([2**21], None, "batch_sizes"),
        (4, None, "batch_sizes"),
        ([1], [32], "image_sizes"),
        ([1], [(32,)], "image_sizes"),
        ([1], [(0, 32)], "image_sizes"),
        ([1], [(32, 65_501)], "image_sizes"),
    ],
)
def test_nothing_runs_if_one_shape_is_refused(batch_sizes: Any, image_sizes: Any, what: str) -> None:
    predictor = opened(axes={"batch": AxisRange(1, 4, 8), "width": AxisRange(16, 32, 64)})
    with raises(UsageError, what=what):
        predictor.warm_up(batch_sizes, image_sizes)
    assert ran(predictor, []) == []


def test_a_size_that_the_graph_fixes_is_the_only_one() -> None:
    predictor = opened(("batch", 3, 32, 32))
    with raises(UsageError, what="pixel_values", found=("float32", (1, 3, 48, 48))):
        predictor.warm_up([1], [(48, 48)])


def test_without_a_usual_size_it_must_be_given() -> None:
    predictor = opened(processor=ImageProcessor(do_resize=False))
    with raises(UsageError, what="image_sizes"):
        predictor.warm_up()
    assert ran(predictor, [1], [(32, 16)]) == [(1, 32, 16)]


def test_callers_run_each_shape_at_once() -> None:
    together = threading.Barrier(3)

    class Meeting(Recorded):
        """Each run after the first two, which are alone, waits for two others."""

        def _run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            if len(self.shapes) >= 2:
                together.wait(10)
            return super()._run(feeds)

    runtime = Meeting(DYNAMIC, {}, PixelFormat())
    warmed = Predictor(SQUARE, runtime, ["a", "b"]).warm_up([1, 2], [(16, 32)], callers=3)
    assert [(shape.batch_size, shape.height, shape.width) for shape in warmed] == [(1, 16, 32), (2, 16, 32)]
    assert runtime.shapes[:2] == [(1, 3, 16, 32), (2, 3, 16, 32)]
    assert Counter(runtime.shapes[2:]) == {(1, 3, 16, 32): 6, (2, 3, 16, 32): 6}
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("vitdeploy-warm-up")]


def test_a_failed_run_of_a_caller_is_told() -> None:
    class Failing(Recorded):
        def _run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            if len(self.shapes) > 1:
                raise DeviceError("no memory", what="memory")
            return super()._run(feeds)

    with raises(DeviceError, what="memory"):
        Predictor(SQUARE, Failing(DYNAMIC, {}, PixelFormat()), ["a", "b"]).warm_up([1], callers=2)


@pytest.mark.parametrize("callers", [0, 1025])
def test_callers_are_a_number_of_threads(callers: int) -> None:
    predictor = opened()
    with raises(UsageError, what="callers", found=callers):
        predictor.warm_up(callers=callers)
    assert ran(predictor, []) == []
