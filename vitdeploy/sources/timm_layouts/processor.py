"""Convert the preprocessing in timm's config.json to a preprocessor_config.json."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from vitdeploy.images.preprocessor_config import FILTERS
from vitdeploy.sources.timm_layouts.config import image_size, num_channels
from vitdeploy.sources.timm_layouts.parts import MOST, pretrained_cfg, refuse

# Keys of pretrained_cfg that define it.
PREPROCESSING = ("input_size", "fixed_input_size", "interpolation", "crop_pct", "crop_mode", "mean", "std")
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def processor_config(config: Mapping[str, Any], size: tuple[int, int] | None = None) -> dict[str, Any]:
    """The preprocessor_config.json equivalent to timm's evaluation transform.

    timm resizes the shorter edge to floor(size / crop_pct), or both edges if crop_mode is "squash", then crops the
    center and normalizes (`timm.data.create_transform`). Keys that are absent or null have timm's defaults.

    Args:
        config: Content of timm's config.json.
        size: Output (height, width) in pixels. Default: timm's evaluation size.

    Returns:
        Settings; their numbers of channels are not yet compared with the model's.

    Raises:
        CheckpointError: If a value is malformed, or the transform has no equivalent.
    """
    cfg = pretrained_cfg(config)
    height, width = size or image_size(config)
    crop_pct = cfg.get("crop_pct") or 0.875
    if isinstance(crop_pct, bool) or not isinstance(crop_pct, (int, float)) or not 0.1 <= crop_pct <= 2:
        raise refuse("pretrained_cfg.crop_pct", "is not a number from 0.1 to 2", crop_pct)
    interpolation, mode = cfg.get("interpolation") or "bicubic", cfg.get("crop_mode") or "center"
    if not isinstance(interpolation, str) or interpolation not in FILTERS:
        raise refuse("pretrained_cfg.interpolation", f"is not one of {', '.join(FILTERS)}", interpolation)
    if mode not in ("center", "squash"):
        raise refuse("pretrained_cfg.crop_mode", "is not center or squash", mode)
    resized = math.floor(height / crop_pct), math.floor(width / crop_pct)
    if mode == "center" and resized[0] != resized[1]:
        raise refuse("pretrained_cfg.crop_mode", "is not square, as crop_mode center needs it", (height, width))
    return {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": num_channels(config) == 3,
        "do_resize": True,
        "size": {"shortest_edge": resized[0]} if mode == "center" else {"height": resized[0], "width": resized[1]},
        "resample": FILTERS[interpolation],
        "do_center_crop": True,
        "crop_size": {"height": height, "width": width},
        "crop_rounding": "half_even",
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": _channels("mean", cfg.get("mean") or _IMAGENET_MEAN),
        "image_std": _channels("std", cfg.get("std") or _IMAGENET_STD),
    }


def states_processor(config: Mapping[str, Any]) -> bool:
    """True if timm's config.json has any preprocessing setting, instead of only timm's defaults."""
    cfg = pretrained_cfg(config)
    return any(cfg.get(key) is not None for key in PREPROCESSING)


def _channels(key: str, value: object) -> float | list[float]:
    """One number for all channels, or one for each; the count is compared later."""
    items = list(value) if isinstance(value, Sequence) else [value]
    numbers = [n for n in items if isinstance(n, (int, float)) and not isinstance(n, bool) and abs(n) < MOST]
    if not items or len(numbers) != len(items):
        raise refuse(f"pretrained_cfg.{key}", "is not one number, or one for each of the model's channels", value)
    return numbers if len(numbers) > 1 else numbers[0]
