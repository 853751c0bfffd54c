"""Configure timm's weights by their architecture's name, and check that they have its sizes."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vitdeploy.errors import CheckpointError
from vitdeploy.sources.architectures.timm_table import names_of_sizes, timm_config
from vitdeploy.sources.timm_layouts.config import image_size as image_size_of
from vitdeploy.sources.timm_layouts.parts import is_dinov3, is_eva

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

_PATCHES = "patch_embed.proj.weight"
_CLASS_OFFSETS = 3  # relative positions to, from and at BEiT's class token


def timm_named(
    name: str, arguments: Mapping[str, Any], tensors: Mapping[str, Tensor], image_size: tuple[int, int] | None
) -> dict[str, Any]:
    """The config.json that timm would write for the weights; see `timm_config`.

    Args:
        name: A name of timm's table.
        arguments: The arguments of timm's train.py.
        tensors: Weights under timm's names.
        image_size: (height, width) in pixels of the weights, taken if the architecture's does not fit them.

    Raises:
        CheckpointError: If the weights have other sizes than the architecture.
    """
    config = timm_config(name, arguments)
    stated = config["model_args"]
    projection = tensors.get(_PATCHES)
    if projection is None or projection.ndim != 4:
        return config  # the conversion says what is missing
    width, channels, *patch = projection.shape
    depth = len({key.split(".")[1] for key in tensors if key.startswith("blocks.")})
    sizes = {"embed_dim": width, "depth": depth, "patch_size": patch[0] if patch[0] == patch[1] else patch}
    wrong = {key: value for key, value in sizes.items() if _plain(stated.get(key)) != value}
    if wrong:
        fitting = names_of_sizes(sizes)
        found = ", ".join(f"{key} {value}" for key, value in wrong.items())
        expected = ", ".join(f"{key} {stated.get(key)}" for key in wrong)
        raise CheckpointError(
            f"the weights are not of {name}: they have {found}, and it has {expected}",
            what="arch", expected=fitting, found=name,
            hint=f"weights of these sizes are {', '.join(fitting[:4])}"
            if fitting
            else "save the model as a folder with its configuration: timm.models.save_for_hf(model, FOLDER)",
        )  # fmt: skip
    stated.setdefault("in_chans", channels)
    if _averages(config, tensors):
        logger.warning("the weights have fc_norm: %s with global_pool avg, the mean of the patches", name)
        stated["global_pool"] = "avg"
    return _with_size(config, name, tensors, (patch[0], patch[1]), image_size)


def _averages(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> bool:
    """True for a ViT built with global_pool "avg": timm gives it fc_norm instead of norm, as MAE's code does."""
    plain = config["architecture"].startswith(("vit_", "deit")) and not (is_eva(config) or is_dinov3(config))
    return (
        plain
        and config["model_args"].keys().isdisjoint(("global_pool", "fc_norm"))
        and "fc_norm.weight" in tensors
        and "norm.weight" not in tensors
    )


def _with_size(
    config: dict[str, Any],
    name: str,
    tensors: Mapping[str, Tensor],
    patch: tuple[int, int],
    image_size: tuple[int, int] | None,
) -> dict[str, Any]:
    """The configuration with the image size of the position table: its own, or else the given one if that fits."""
    size = image_size_of(config)
    if config["model_args"].get("dynamic_img_size") or _fits(tensors, _grid(size, patch)):
        return config
    if image_size is not None and _fits(tensors, _grid(image_size, patch)):
        cfg = config["pretrained_cfg"]
        cfg = cfg | {"input_size": [cfg["input_size"][0], *image_size]}
        return config | {"pretrained_cfg": cfg, "model_args": config["model_args"] | {"img_size": list(image_size)}}
    squares = [f"{side * patch[0]}x{side * patch[1]}" for side in _square_sides(tensors)]
    raise CheckpointError(
        f"the weights are of {name} for another image size than {size[0]}x{size[1]}, by their position table",
        what="image_size", expected=size, found=tuple(squares),
        hint=f"give theirs, which may be --image-size {' or '.join(squares)}" if squares else "give their --image-size",
    )  # fmt: skip


def _grid(size: tuple[int, int], patch: tuple[int, int]) -> tuple[int, int]:
    """Number of patches (down, across)."""
    return size[0] // patch[0], size[1] // patch[1]


def _fits(tensors: Mapping[str, Tensor], grid: tuple[int, int]) -> bool:
    """True if the position tables have the rows of a grid, or there is none."""
    table = tensors.get("pos_embed")
    if table is not None:
        return table.ndim != 3 or table.shape[1] - grid[0] * grid[1] in _prefix_rows(tensors)
    offsets = _relative_rows(tensors)
    return offsets is None or offsets == (2 * grid[0] - 1) * (2 * grid[1] - 1) + _CLASS_OFFSETS


def _square_sides(tensors: Mapping[str, Tensor]) -> list[int]:
    """Sides in patches of the square grids that the position tables fit."""
    table, offsets = tensors.get("pos_embed"), _relative_rows(tensors)
    if table is not None:
        sides = [math.isqrt(max(table.shape[1] - rows, 0)) for rows in _prefix_rows(tensors)]
    else:
        sides = [] if offsets is None else [(math.isqrt(max(offsets - _CLASS_OFFSETS, 0)) + 1) // 2]
    return [side for side in sorted(set(sides)) if side and _fits(tensors, (side, side))]


def _prefix_rows(tensors: Mapping[str, Tensor]) -> set[int]:
    """Numbers of rows that a position table may have before the patches'."""
    tokens = sum(name in tensors for name in ("cls_token", "dist_token"))
    registers = tensors["reg_token"].shape[1] if "reg_token" in tensors and tensors["reg_token"].ndim == 3 else 0
    return {0, tokens, tokens + registers}


def _relative_rows(tensors: Mapping[str, Tensor]) -> int | None:
    """Rows of BEiT's tables of relative positions; None if it has none."""
    tables = (tensor for name, tensor in tensors.items() if name.endswith("relative_position_bias_table"))
    return next((table.shape[0] for table in tables if table.ndim == 2), None)


def _plain(size: Any) -> Any:
    """A patch size in the form of the table: one number for a square."""
    if isinstance(size, (list, tuple)) and len(size) == 2:
        return size[0] if size[0] == size[1] else list(size)
    return size
