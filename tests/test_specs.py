"""Value types refuse what they cannot be."""

from __future__ import annotations

from typing import Any

import pytest
from raising import raises

from vitdeploy.errors import UsageError
from vitdeploy.specs import AxisRange, PixelFormat, PixelStage


@pytest.mark.parametrize("sizes", [(0, 1, 2), (2, 1, 3), (1, 3, 2), (-1, 1, None), (3, 2, None)])
def test_a_range_that_is_none(sizes: tuple[int, int, int | None]) -> None:
    with raises(UsageError, what="range", found=sizes):
        AxisRange(*sizes)


def test_what_a_range_holds() -> None:
    closed, open_ended = AxisRange(2, 3, 4), AxisRange(2, 3)
    assert [size in closed for size in (1, 2, 4, 5)] == [False, True, True, False]
    assert [size in open_ended for size in (1, 2, 10**9)] == [False, True, True]
    assert (str(closed), str(open_ended)) == ("from 2 to 4", "from 2 up")


@pytest.mark.parametrize(
    "data", [{}, {"minimum": 1, "optimum": 1}, {"minimum": "1", "optimum": 1, "maximum": 1},
             {"minimum": True, "optimum": 1, "maximum": None}, {"minimum": 1, "optimum": 1, "maximum": 1.5}],
)  # fmt: skip
def test_a_range_is_read_strictly(data: dict[str, Any]) -> None:
    with pytest.raises((KeyError, TypeError)):
        AxisRange.from_dict(data)


@pytest.mark.parametrize(
    ("stage", "layout", "dtype", "what", "expected"),
    [
        ("normalized", "nhwc", "float32", "layout", ("nchw",)),
        ("normalized", "nchw", "uint8", "dtype", ("float32", "float16")),
        ("resized", "chw", "uint8", "layout", ("nchw", "nhwc")),
        ("resized", "nchw", "float32", "dtype", ("uint8",)),
        ("decoded", "nchw", "uint8", "layout", ("nhwc",)),
    ],
)
def test_a_pixel_format_that_no_stage_has(
    stage: str, layout: Any, dtype: str, what: str, expected: tuple[str, ...]
) -> None:
    with raises(UsageError, what=what, expected=expected, found={"layout": layout, "dtype": dtype}[what]):
        PixelFormat(PixelStage(stage), layout, dtype)


def test_the_sides_of_a_batch() -> None:
    for layout, shape in (("nchw", (8, 3, 20, 30)), ("nhwc", (8, 20, 30, 3))):
        pixels = PixelFormat(PixelStage.RESIZED, layout, "uint8")  # type: ignore[arg-type]
        assert pixels.size(shape) == (20, 30)
        assert (8, *pixels.shape(3, (20, 30))) == shape
