"""Read timm's config.json of an EVA or a Perception Encoder, both of timm's class `Eva`."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from vitdeploy.sources.timm_layouts.classes import label_offset, labels, num_classes, problem_type
from vitdeploy.sources.timm_layouts.config import global_pool, image_size, table_size
from vitdeploy.sources.timm_layouts.keys import EVA_ARGS
from vitdeploy.sources.timm_layouts.parts import (
    count,
    flag,
    model_args,
    number,
    pair,
    pretrained_cfg,
    refuse,
    unsupported,
)

# Names in timm 1.0; eva02_enormous has its norms after attention and MLP.
_ARCHITECTURE = re.compile(
    r"eva_(?P<eva>giant)_patch\d+(?P<eva_clip>_clip)?_\d+"
    r"|eva02_(?P<eva02>tiny|small|base|large)_patch\d+(?P<eva02_clip>_clip)?_\d+"
    r"|vit_pe_(?P<kind>core|lang|spatial)_(?P<pe>tiny|small|base|large|gigantic)_patch\d+_\d+"
)
# No file stores these: timm's registry defines them by architecture name.
_HEADS = {"tiny": 3, "small": 6, "base": 12, "large": 16, "giant": 16, "gigantic": 16}
_EVA_GRID = (16, 16)
_PE_GRIDS = {"core_tiny": (24, 24), "core_small": (24, 24), "core_base": (14, 14), "core_large": (24, 24)}
_PE_GRID = (32, 32)
_POOL_HEADS = 8
# Width of the vectors that belong to those of a text; timm calls them logits.
_PROJECTIONS = {
    "eva_giant": 1024,
    "eva02_base": 512,
    "eva02_large": 768,
    "pe_tiny": 512,
    "pe_small": 512,
    "pe_base": 1024,
    "pe_large": 1024,
    "pe_gigantic": 1280,
}


@dataclasses.dataclass(frozen=True)
class EvaArchitecture:
    """Settings that timm's registry defines by architecture name.

    Attributes:
        model_type: The family.
        num_heads: Number of attention heads.
        global_pool: "avg", "token" or "map".
        normalized: False if no norm follows the last block or the pooling.
        rotary: Arguments of `vitdeploy.models.rotary.Rotary`; None without rotary positions.
        projection_size: Width of the pretrained head if it is a projection instead of a classifier.
    """

    model_type: str
    num_heads: int
    global_pool: str
    normalized: bool = True
    rotary: Mapping[str, Any] | None = None
    projection_size: int | None = None

    @property
    def is_perception_encoder(self) -> bool:
        return self.model_type == "timm_perception_encoder"

    @property
    def attn_type(self) -> str:
        """Class of the attention in timm: "eva" has no key bias."""
        return "rope" if self.is_perception_encoder else "eva"

    @property
    def epsilon(self) -> float:
        """Epsilon of every norm."""
        return 1e-5 if self.is_perception_encoder else 1e-6


@dataclasses.dataclass(frozen=True)
class EvaConfig:
    """Settings of one of timm's `Eva` models, from its config.json.

    Attributes:
        architecture: Settings of its name.
        num_heads, image_size, num_classes, global_pool, label_offset, labels, arguments: See `TimmConfig`.
        final_norm: True if a norm follows the last block.
        late_norm: True if a norm follows the pooling (`fc_norm`).
        rotary: Arguments of `vitdeploy.models.rotary.Rotary`; None without rotary positions.
        pool_heads: Number of heads of the attention pool.
        projects: True if the head is a projection instead of a classifier.
    """

    architecture: EvaArchitecture
    num_heads: int
    image_size: tuple[int, int]
    num_classes: int
    global_pool: str
    final_norm: bool
    late_norm: bool
    rotary: dict[str, Any] | None
    pool_heads: int
    projects: bool
    label_offset: int
    labels: dict[str, Any]
    arguments: dict[str, Any]


def read_eva_config(config: Mapping[str, Any]) -> EvaConfig:
    """Read the content of a config.json.

    The pretrained head of a `*_clip_*` or `vit_pe_core_*` model is a projection. It is a classifier if it has another
    width, or names of classes.

    Raises:
        CheckpointError: If a value is malformed or not supported.
    """
    arguments, cfg = model_args(config), pretrained_cfg(config)
    architecture = eva_architecture(config.get("architecture"))
    classes = num_classes(config, arguments, cfg)
    pools = ("token", "avg", "map") if architecture.is_perception_encoder else ("token", "avg")
    pool = global_pool(config, arguments, architecture.global_pool, classes, pools)
    late_norm = flag(arguments, "use_fc_norm", default=architecture.normalized and pool == "avg")
    if late_norm and (architecture.is_perception_encoder or not pool):
        raise unsupported("use_fc_norm", "a norm after the pooling (use_fc_norm) needs an EVA that pools")
    found = labels(config, cfg, classes) | problem_type(config) if classes else {}
    image_size(config)  # raises if timm's evaluation needs another size than the model's
    return EvaConfig(
        architecture=architecture,
        num_heads=count("model_args.num_heads", arguments.get("num_heads", architecture.num_heads)),
        image_size=table_size(config),
        num_classes=classes,
        global_pool=pool,
        final_norm=flag(arguments, "use_post_transformer_norm", default=architecture.normalized and not late_norm),
        late_norm=late_norm,
        rotary=_rotary(arguments, architecture),
        pool_heads=count("model_args.attn_pool_num_heads", arguments.get("attn_pool_num_heads", _POOL_HEADS)),
        projects=classes == architecture.projection_size and "id2label" not in found,
        label_offset=label_offset(config, cfg, ["head"]),
        labels=found,
        arguments={key: value for key, value in arguments.items() if EVA_ARGS[key] == "compared"},
    )


def eva_architecture(name: object) -> EvaArchitecture:
    """Settings of an architecture name; CheckpointError for one that is not supported."""
    match = _ARCHITECTURE.fullmatch(name) if isinstance(name, str) else None
    if match is None:
        raise refuse(
            "architecture",
            "is none of the supported EVAs and Perception Encoders, such as eva02_base_patch14_448",
            name,
        )
    parts = match.groupdict()
    if parts["pe"]:
        kind, size = parts["kind"], parts["pe"]
        grid = _PE_GRIDS.get(f"{kind}_{size}", _PE_GRID)
        rotary = {"reference_grid": grid, "offset": 0.0 if size == "gigantic" else 1.0, "columns_first": True}
        core = kind == "core"
        return EvaArchitecture(
            "timm_perception_encoder",
            _HEADS[size],
            "map" if core else "avg",
            normalized=core,
            rotary=rotary,
            projection_size=_PROJECTIONS[f"pe_{size}"] if core else None,
        )
    name = "eva" if parts["eva"] else "eva02"
    size, clip = parts[name], parts[f"{name}_clip"] is not None
    return EvaArchitecture(
        f"timm_{name}",
        _HEADS[size],
        "token" if clip else "avg",
        rotary=None if name == "eva" else {"reference_grid": _EVA_GRID, "offset": 0.0, "columns_first": False},
        projection_size=_PROJECTIONS.get(f"{name}_{size}") if clip else None,
    )


def _rotary(arguments: Mapping[str, Any], architecture: EvaArchitecture) -> dict[str, Any] | None:
    """Arguments of `Rotary`, from the constructor's or else the architecture's."""
    if not flag(arguments, "use_rot_pos_emb", default=architecture.rotary is not None):
        return None
    usual = architecture.rotary or {"reference_grid": None, "offset": 0.0, "columns_first": False}
    grid, indexing = usual["reference_grid"], arguments.get("rope_grid_indexing")
    if "ref_feat_shape" in arguments:
        grid = pair("model_args.ref_feat_shape", arguments["ref_feat_shape"])
    if indexing not in (None, "ij", "xy"):
        raise refuse("model_args.rope_grid_indexing", "is not ij or xy", indexing)
    return {
        "coordinates": "index",
        "theta": number("model_args.rope_temperature", arguments.get("rope_temperature", 10000.0)),
        "pairs": "halves" if flag(arguments, "rope_rotate_half", default=False) else "neighbors",
        "reference_grid": grid,
        "offset": number("model_args.rope_grid_offset", arguments.get("rope_grid_offset", usual["offset"])),
        "columns_first": usual["columns_first"] if indexing is None else indexing == "xy",
    }
