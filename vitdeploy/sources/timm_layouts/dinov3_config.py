"""Read timm's config.json of a DINOv3, of timm's class `Eva`."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from vitdeploy.sources.timm_layouts.config import image_size, is_dynamic
from vitdeploy.sources.timm_layouts.keys import DINOV3_ARGS
from vitdeploy.sources.timm_layouts.parts import count, model_args, number, refuse, unsupported

# Names in timm 1.0. No file stores the number of heads: timm's registry defines it by architecture name.
_ARCHITECTURE = re.compile(r"vit_(tiny|small|small_plus|base|large|huge_plus|7b)_patch\d+_dinov3(?:_qkvb)?")
_HEADS = {"tiny": 3, "small": 6, "small_plus": 6, "base": 12, "large": 16, "huge_plus": 20, "7b": 32}
_ALIGNED = {"small_plus": 8, "huge_plus": 8, "7b": 64}  # gated MLPs, whose width is a multiple of these
_THETA = 100.0


@dataclasses.dataclass(frozen=True)
class DinoV3Config:
    """Settings of a DINOv3 from timm's config.json.

    Attributes:
        num_heads: Number of attention heads.
        image_size: (height, width) in pixels for timm's evaluation.
        aligned: Factor of a gated MLP's width, 0 if gate and values are one layer; None for an MLP without a gate.
        theta: Base of the frequencies of the rotary positions.
        num_classes: 0: transformers has no classifier.
        label_offset, labels: None and empty, for the same reason.
        arguments: Constructor arguments to compare with the tensors.
    """

    num_heads: int
    image_size: tuple[int, int]
    aligned: int | None
    theta: float
    arguments: dict[str, Any]
    num_classes: int = 0
    label_offset: int = 0
    labels: dict[str, Any] = dataclasses.field(default_factory=dict)


def read_dinov3_config(config: Mapping[str, Any]) -> DinoV3Config:
    """Read the content of a config.json.

    Raises:
        CheckpointError: If a value is malformed or not supported.
    """
    name, arguments = config.get("architecture"), model_args(config)
    match = _ARCHITECTURE.fullmatch(name) if isinstance(name, str) else None
    if match is None:
        raise refuse("architecture", "is not a DINOv3 such as vit_base_patch16_dinov3", name)
    size, aligned = image_size(config), _ALIGNED.get(match[1])
    if not is_dynamic(arguments) and "img_size" not in arguments:
        raise unsupported("dynamic_img_size", "model_args.dynamic_img_size false needs img_size")
    return DinoV3Config(
        num_heads=count("model_args.num_heads", arguments.get("num_heads", _HEADS[match[1]])),
        image_size=size,
        aligned=count("model_args.swiglu_align_to", arguments.get("swiglu_align_to", aligned), least=0)
        if aligned
        else None,
        theta=number("model_args.rope_temperature", arguments.get("rope_temperature", _THETA)),
        arguments={key: value for key, value in arguments.items() if DINOV3_ARGS[key] == "compared"},
    )
