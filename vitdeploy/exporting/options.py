"""What the arguments of `vitdeploy.export` stand for, and what they must be."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vitdeploy.errors import UsageError
from vitdeploy.exporting.accuracy_bound import Bound
from vitdeploy.specs import QUANTIZED, AxisRange, PixelFormat, PixelStage, Precision, Task

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vitdeploy.images.processor import ImageProcessor
    from vitdeploy.models.config import ViTConfig
    from vitdeploy.specs import ExportSpec


def check_quantization(precision: str, options: Mapping[str, Any]) -> None:
    """What only int8 and fp8 take is theirs, and what says how to calibrate has something to calibrate on."""
    given = [name for name, value in options.items() if value is not None]
    if given and precision not in QUANTIZED:
        raise UsageError(f"{given[0]} needs precision int8 or fp8, got {precision}; leave it out")
    for name in ("calibration_data", "accuracy_data", "calibration_cache"):
        if name in given and options[name] is not False:
            _check_path(name, options[name])
    of_images = [name for name in given if name.startswith("calibration")]
    if of_images and "calibration_data" not in given:
        raise UsageError(f"{of_images[0]} needs calibration_data, got none; give a folder of images, or leave it out")
    bounds = [name for name in given if name in ("max_drop", "min_agreement", "min_cosine")]
    if "accuracy_data" in given and not bounds:
        raise UsageError(
            "accuracy_data needs max_drop, min_agreement or min_cosine, got none; give one, or leave it out"
        )
    smooth = options.get("smooth_quant")
    is_strength = isinstance(smooth, (int, float)) and not isinstance(smooth, bool) and 0 <= smooth <= 1
    if smooth not in (None, "auto", "off") and not is_strength:
        raise UsageError(f"smooth_quant must be auto, off or a number from 0 to 1, got {smooth!r:.80}")


def _check_path(name: str, path: Any) -> None:
    if not isinstance(path, (str, os.PathLike)) or not os.fspath(path):
        raise UsageError(f"{name} must be a path, got {path!r:.80}")


def check_scheme(spec: ExportSpec, bound: Bound | None, *, calibrated: bool) -> None:
    """What int8 and fp8 are to be can be made, before anything is measured; UsageError where it cannot."""
    from vitdeploy.exporters.quantization.apply import scheme_for

    scheme = scheme_for(spec, calibrated=calibrated)
    if bound is not None and scheme is not None and scheme.static is None:
        raise UsageError(
            f"{bound} needs fixed ranges, got the scheme {scheme.name}, which gives for an image what depends on those "
            f"beside it in a batch; give calibration_data (--calibration-data)"
        )


def bound_of(max_drop: float | None, min_agreement: float | None, min_cosine: float | None) -> Bound | None:
    """How accurate an artifact must be; UsageError where the numbers are none."""
    given = (max_drop, min_agreement, min_cosine)
    return None if all(value is None for value in given) else Bound(*given)


def rest_of(name: str | None) -> Precision | None:
    """What is not in 8 bits computes in; UsageError where it cannot."""
    if name not in (None, Precision.FP16):
        raise UsageError(f"rest must be fp16, got {name!r:.80}; leave it out for float32")
    return None if name is None else Precision.FP16


def names_of(option: str, names: Sequence[str] | None) -> tuple[str, ...] | None:
    """The names; UsageError where they are no list of texts."""
    if names is None:
        return None
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise UsageError(f"{option} must be a list of names, got {names!r:.80}")
    return tuple(names)


def task_of(name: str | None) -> Task | None:
    """The task of that name; UsageError where there is none."""
    try:
        return None if name is None else Task(name)
    except ValueError as exc:
        raise UsageError(f"task must be one of {', '.join(Task)}, got {name!r}") from exc


def check_optimize(optimize: str | None, precision: str) -> None:
    """Raise UsageError unless the graph can be optimized for that engine in this precision."""
    if optimize is None:
        return
    if optimize != "onnxruntime":
        raise UsageError(f"optimize must be onnxruntime, got {optimize!r:.80}")
    if precision != Precision.FP32:
        raise UsageError(
            f"optimize needs precision fp32, got {precision}: onnxruntime optimizes for the CPU, where it would write "
            f"casts to float32 into the file; leave one out"
        )


def image_size_of(
    size: Any, *, dynamic_image_size: bool
) -> tuple[tuple[int, int] | None, tuple[tuple[int, int], tuple[int, int]] | None]:
    """The size of the model, or of what its processor gives where the model takes others; and the limits of those."""
    if size is None:
        return None, None
    if dynamic_image_size:
        raise UsageError(f"export needs an image size or a dynamic one, got both: {size!r}; leave one out")
    if isinstance(size, (tuple, list)) and len(size) == 3:
        smallest, usual, largest = (_pair(each) for each in size)
        return usual, (smallest, largest)
    return _pair(size), None


def _pair(size: Any) -> tuple[int, int]:
    pair = tuple(size) if isinstance(size, (tuple, list)) else (size, size)
    if len(pair) != 2 or not all(type(edge) is int and edge > 0 for edge in pair):
        raise UsageError(
            f"image_size must be a positive integer, a pair of them (height, width), or three of either, got {size!r}"
        )
    return pair[0], pair[1]


def pixels_of(dtype: str, layout: str | None, io_dtype: str, *, embed_resize: bool) -> PixelFormat:
    """What the artifact takes for an image; UsageError where there is no such type or layout."""
    if io_dtype not in ("float32", "float16"):
        raise UsageError(f"io_dtype must be float32 or float16, got {io_dtype!r:.80}")
    if dtype not in ("float32", "uint8"):
        raise UsageError(f"input must be float32 or uint8, got {dtype!r:.80}")
    if dtype == "uint8" or embed_resize:
        stage = PixelStage.DECODED if embed_resize else PixelStage.RESIZED
        return PixelFormat(stage, "nhwc" if layout is None else layout, "uint8")  # type: ignore[arg-type]  # it is checked there
    return PixelFormat(PixelStage.NORMALIZED, "nchw" if layout is None else layout, io_dtype)  # type: ignore[arg-type]


def axes_of(
    config: ViTConfig, processor: ImageProcessor, bounds: tuple[tuple[int, int], tuple[int, int]] | None
) -> dict[str, AxisRange]:
    """The sizes of images that are taken where they are free."""
    from vitdeploy.models.signature import size_ranges

    if bounds is not None:
        dataclasses.replace(config, image_size=bounds[1])  # which refuses a size of more patches than any machine holds
    usual = processor.output_size or config.image_size
    ranges = size_ranges(config, usual)
    if bounds is None:
        return ranges
    for (name, every), smallest, size, largest in zip(ranges.items(), bounds[0], usual, bounds[1], strict=True):
        if smallest < every.minimum:
            raise UsageError(
                f"image_size must be at least one patch, {config.patch_size} pixels, got {name} {smallest}"
            )
        if not smallest <= size <= largest:
            raise UsageError(f"image_size must be smallest:usual:largest, got {name} {smallest}:{size}:{largest}")
        ranges[name] = AxisRange(smallest, size, largest)
    return ranges


def cache_folder(path: str | os.PathLike[str] | Literal[False] | None) -> Path | None:
    """Where measured ranges are kept: the folder that is named, the user's for None, and nowhere for False."""
    from vitdeploy.exporters.quantization.ranges.measurement_cache import default_folder

    return None if path is False else default_folder() if path is None else Path(path)
