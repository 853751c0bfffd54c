"""The facts of timm's registry by architecture name, which a file of weights lacks: heads, sizes and preprocessing.

timm_table.json holds them; `tests/golden/make_architectures.py` writes it from timm.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vitdeploy.errors import CheckpointError
from vitdeploy.sources.timm_layouts.config import read_config
from vitdeploy.sources.timm_layouts.dinov3_config import read_dinov3_config
from vitdeploy.sources.timm_layouts.eva_config import read_eva_config
from vitdeploy.sources.timm_layouts.parts import is_dinov3, is_eva

# Arguments of timm's train.py that override the registry's transform (timm.data.resolve_data_config).
_TRANSFORM_ARGUMENTS = ("interpolation", "crop_pct", "crop_mode", "mean", "std")
_ARGUMENTS = (*_TRANSFORM_ARGUMENTS, "input_size", "img_size", "in_chans", "gp", "model_kwargs")


@functools.cache
def _table() -> dict[str, dict[str, dict[str, Any]]]:
    """The values of each section of the file, by name."""
    data = json.loads((Path(__file__).parent / "timm_table.json").read_text(encoding="utf-8"))
    return {
        section: {
            name: {key: value for key, value in row.items() if key != "names"}
            for row in data[section]
            for name in row["names"].split()
        }
        for section in ("sizes", "transforms")
    }


def is_timm_name(name: str) -> bool:
    """True for an architecture of the table, with or without the tag of weights."""
    return name.partition(".")[0] in _table()["sizes"]


def timm_names() -> tuple[str, ...]:
    """The architectures of the table that can be converted."""
    return tuple(name for name in _table()["sizes"] if _is_converted(name))


def names_of_sizes(sizes: Mapping[str, Any]) -> tuple[str, ...]:
    """The architectures with a width, depth and patch size that can be converted."""
    rows = _table()["sizes"]
    return tuple(name for name in timm_names() if all(rows[name][key] == value for key, value in sizes.items()))


def timm_config(name: str, arguments: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The config.json that timm would write for a model: without classes, which the weights define.

    Args:
        name: The architecture, such as "vit_base_patch16_224", or with the tag of the weights it was trained from.
        arguments: The arguments of timm's train.py.

    Raises:
        CheckpointError: If the arguments are malformed.
    """
    arch, _, tag = name.partition(".")
    transforms, arguments = _table()["transforms"], _plain(arguments or {})
    if tag and name not in transforms:
        tags = sorted(full.partition(".")[2] for full in transforms if full.startswith(f"{arch}."))
        raise CheckpointError(
            f"timm has no {arch} with the tag {tag!r:.80}",
            what="arch", expected=tuple(tags), found=name, hint=f"use {arch}, or one of its tags: {', '.join(tags)}",
        )  # fmt: skip
    model_args = dict(_table()["sizes"][arch])
    overrides = arguments.get("model_kwargs") or {}
    if not isinstance(overrides, Mapping):
        raise CheckpointError(
            "the training arguments have a model_kwargs that is no object", what="model_kwargs", found=overrides
        )
    cfg = dict(transforms[name])
    cfg |= {key: arguments[key] for key in _TRANSFORM_ARGUMENTS if arguments.get(key)}
    size, edge, channels = arguments.get("input_size"), arguments.get("img_size"), arguments.get("in_chans")
    if size is not None:
        cfg["input_size"] = size
    elif edge is not None or channels is not None:
        cfg["input_size"] = [channels or 3, *([edge, edge] if edge is not None else cfg["input_size"][1:])]
    if channels is not None:
        model_args["in_chans"] = channels
    if arguments.get("gp"):
        model_args["global_pool"] = arguments["gp"]
    return {"architecture": arch, "model_args": model_args | dict(overrides), "pretrained_cfg": cfg}


def _plain(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that are used; CheckpointError for a value that JSON does not have, such as a tensor."""
    used = {key: arguments[key] for key in _ARGUMENTS if key in arguments}
    for key, value in used.items():
        try:
            json.dumps(value)
        except (TypeError, ValueError, RecursionError) as exc:
            message = f"the training arguments have a {key} that is no plain value"
            raise CheckpointError(message, what=key, found=type(value).__name__) from exc
    return used


def reader_of(config: Mapping[str, Any]) -> Callable[[Mapping[str, Any]], Any]:
    """The function that reads a config.json of timm's architecture."""
    readers = ((is_dinov3, read_dinov3_config), (is_eva, read_eva_config))
    return next((read for matches, read in readers if matches(config)), read_config)


def _is_converted(name: str) -> bool:
    config = {"architecture": name, "num_classes": 0, "pretrained_cfg": _table()["transforms"][name]}
    try:
        reader_of(config)(config)
    except CheckpointError:
        return False
    return True
