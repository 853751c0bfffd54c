"""Read timm's config.json: architecture, constructor arguments and labels."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from vitdeploy.errors import CheckpointError
from vitdeploy.models.families.unsupported import OPTIMUM, family_in
from vitdeploy.sources.timm_layouts.classes import label_offset, labels, num_classes, problem_type
from vitdeploy.sources.timm_layouts.keys import MODEL_ARGS
from vitdeploy.sources.timm_layouts.parts import (
    count,
    first,
    flag,
    model_args,
    null_args,
    pair,
    pretrained_cfg,
    refuse,
    unsupported,
)
from vitdeploy.specs import MODES

# Names in timm 1.0 with plain blocks: exact GELU (SwiGLU in the giant DINOv2), LayerNorm with eps 1e-6, one attention
# then one MLP; CLIP's have eps 1e-5, and some quick GELU; some of SigLIP's have GELU's approximation by tanh. Other
# names with these prefixes (rpn, pwee ...) may differ invisibly in the tensors. The suffixes in21k, sam, dino and
# in21ft1k are from old timm names for weights, which it still reads.
_ARCHITECTURE = re.compile(
    r"vit_(?P<vit>tiny|small|base|large|huge|giant|gigantic)_patch\d+(?P<plus>_plus)?"
    r"_(?:(?:reg(?P<dino_registers>\d+)_)?(?P<dino>dinov2|tipsv2)|(?:36x1_)?\d+(?:_miil)?(?:_in21k|_sam|_dino)?)"
    r"|vit_(?P<clip>xsmall|medium|betwixt|base|large|huge|giant|gigantic)_patch\d+(?P<clip_plus>_plus)?"
    r"_clip(?P<quick_gelu>_quickgelu)?_\d+"
    r"|vit_(?P<siglip>base|large|so400m|giantopt)_(?P<siglip_tail>patch\d+_siglip(?P<siglip_gap>_gap)?_\d+)"
    r"|vit_(?P<gap>wee|little|mediumd?|betwixt|so150m2?|base|huge|giant)_patch\d+"
    r"(?:_reg(?P<registers>\d+))?_(?P<gap_pool>gap|map)_\d+"
    r"|deit_(?P<deit>tiny|small|base)(?P<distilled>_distilled)?_patch\d+_\d+"
    r"|deit3_(?P<deit3>small|medium|base|large|huge)_patch\d+_\d+(?:_in21ft1k)?"
    r"|beit(?:v2)?_(?P<beit>base|large)_patch\d+_\d+|eva_(?P<eva>large)_patch\d+_\d+"
)
_PREFIXES = ("vit_", "deit_", "deit3_", "beit_", "beitv2_", "eva_large_")
# No file stores the number of heads: timm's registry defines it by architecture name, for any width.
_HEADS = {
    "tiny": 3, "wee": 4, "xsmall": 4, "little": 5, "small": 6, "medium": 8, "mediumd": 8, "betwixt": 10, "base": 12,
    "so150m2": 13, "so150m": 14, **dict.fromkeys(("large", "so400m", "huge", "giant", "giantopt", "gigantic"), 16),
}  # fmt: skip
_HEADS_OF_PLUS, _HEADS_OF_GIANT_DINO, _HEADS_OF_BASE_GAP = 14, 24, 16
# SigLIP's models with GELU's approximation: not those of its first version.
_TANH = re.compile(r"vit_(?:base_patch32|large_patch16|so400m_patch16|giantopt_patch16)_siglip(?:_gap)?_(\d+)")
_TANH_SIZE_OF_LARGE = "512"

_DEFAULT_SIZE = 224  # of timm's constructors, pixels on both sides


@dataclasses.dataclass(frozen=True)
class TimmConfig:
    """Settings of a timm model, from its config.json.

    Attributes:
        beit: True for a BEiT.
        distilled: True for DeiT's second token and second head.
        clip: True for a CLIP image encoder.
        class_token: True if a learned token precedes the patches.
        gated: True for a SwiGLU MLP.
        hidden_act: Activation of another MLP, by its name in transformers.
        num_heads: Number of attention heads.
        image_size: (height, width) in pixels of the position tables.
        dynamic: True if the tables are interpolated to each image, whose sides must be multiples of the patch's.
        evaluation_size: (height, width) in pixels for timm's evaluation; `image_size` unless `dynamic`.
        num_classes: Number of classes; 0 without a head.
        global_pool: "token", "avg" or "map" (attention pooling); "" for a model without head and pooling.
        late_norm: True if the last norm follows the pooling (`fc_norm`), instead of the last block (`norm`).
        label_offset: Number of leading classifier rows that timm skips.
        labels: Hugging Face config.json keys for classes and scores.
        arguments: Constructor arguments to compare with the tensors.
    """

    beit: bool
    distilled: bool
    clip: bool
    class_token: bool
    gated: bool
    hidden_act: str
    num_heads: int
    image_size: tuple[int, int]
    dynamic: bool
    evaluation_size: tuple[int, int]
    num_classes: int
    global_pool: str
    late_norm: bool
    label_offset: int
    labels: dict[str, Any]
    arguments: dict[str, Any]


def read_config(config: Mapping[str, Any]) -> TimmConfig:
    """Read the content of a config.json.

    Raises:
        CheckpointError: If a value is malformed, or the model has no Hugging Face equivalent.
    """
    arguments, cfg = model_args(config), pretrained_cfg(config)
    name = _architecture(config.get("architecture"))
    beit, distilled = bool(name["beit"]), bool(name["distilled"])
    size = next(
        name[family] for family in ("vit", "deit", "deit3", "beit", "clip", "siglip", "gap", "eva") if name[family]
    )
    gated = bool(size == "giant" and name["dino"])
    classes = num_classes(config, arguments, cfg)
    pools = ("token", "avg") if beit or distilled or name["clip"] else ("token", "avg", "map")
    pool = global_pool(config, arguments, _default_pool(name), classes, pools)
    nulls = null_args(config)  # timm's own default instead of the architecture's
    late_norm = pool == "avg" if "fc_norm" in nulls else _late_norm(name, pool)
    late_norm = flag(arguments, "use_fc_norm" if beit else "fc_norm", default=late_norm)
    if late_norm and (pool == "map" or not (pool or beit or name["clip"])):
        raise unsupported("fc_norm", f"global_pool {pool!r} with a norm after it (fc_norm) is not supported")
    if gated and "act_layer" in (*arguments, *nulls):
        raise unsupported("act_layer", "a SwiGLU MLP takes SiLU alone; remove act_layer")
    class_token = flag(arguments, "class_token", default=not (name["siglip"] or name["gap"]))
    if not class_token and (beit or distilled or name["clip"] or pool == "token"):
        raise unsupported("class_token", "this architecture or its global_pool needs a class token")
    if distilled and (pool == "avg" or late_norm):
        raise unsupported("global_pool", "a distilled DeiT has no average pooling and no fc_norm, in timm neither")
    dynamic = is_dynamic(arguments)
    if beit and dynamic:
        raise unsupported("dynamic_img_size", "a BEiT has no dynamic_img_size, in timm neither")
    return TimmConfig(
        beit=beit,
        distilled=distilled,
        clip=bool(name["clip"]),
        class_token=class_token,
        gated=gated,
        hidden_act="gelu" if "act_layer" in (*arguments, *nulls) else _hidden_act(str(config["architecture"]), name),
        num_heads=count("model_args.num_heads", arguments.get("num_heads", _num_heads(name, size, gated=gated))),
        image_size=table_size(config),
        dynamic=dynamic,
        evaluation_size=image_size(config),
        num_classes=classes,
        global_pool=pool,
        late_norm=late_norm,
        label_offset=label_offset(config, cfg, ["head", "head_dist"] if distilled else ["head"]),
        labels=labels(config, cfg, classes) | problem_type(config) if classes else {},
        arguments=_registers(name) | {key: value for key, value in arguments.items() if MODEL_ARGS[key] == "compared"},
    )


def _registers(name: Mapping[str, str]) -> dict[str, int]:
    """The number of register tokens of an architecture, to compare with the tensors."""
    stated = name["registers"] or name["dino_registers"]
    return {"reg_tokens": int(stated)} if stated else {}


def _num_heads(name: Mapping[str, str], size: str, *, gated: bool) -> int:
    if gated:
        return _HEADS_OF_GIANT_DINO
    if name["plus"] or name["clip_plus"]:
        return _HEADS_OF_PLUS
    return _HEADS_OF_BASE_GAP if name["gap"] == "base" and not name["registers"] else _HEADS[size]


def _default_pool(name: Mapping[str, str]) -> str:
    if name["siglip"]:
        return "avg" if name["siglip_gap"] else "map"
    if name["gap"]:
        return "avg" if name["gap_pool"] == "gap" else "map"
    return "avg" if name["beit"] or name["eva"] else "token"


def _late_norm(name: Mapping[str, str], pool: str) -> bool:
    """True if an architecture's norm follows the pooling; some state that it does not, whatever the pooling."""
    before = name["siglip_gap"] or (name["gap"] and not name["registers"]) or name["gap"] == "so150m"
    return pool == "avg" and not before


def _hidden_act(architecture: str, name: Mapping[str, str]) -> str:
    """The activation of an architecture, by its name in transformers; the only act_layer that is read is "gelu"."""
    tanh = _TANH.fullmatch(architecture)
    if tanh is not None and (name["siglip"] != "large" or tanh[1] == _TANH_SIZE_OF_LARGE):
        return "gelu_pytorch_tanh"
    return "quick_gelu" if name["quick_gelu"] else "gelu"


def _architecture(value: object) -> dict[str, str]:
    """The parts of the name; missing ones are empty."""
    other = family_in(value) if isinstance(value, str) else None
    if other is not None:
        message = f"timm checkpoint: {other}"  # optimum-onnx exports any timm model
        raise CheckpointError(message, what="architecture", found=value, hint=OPTIMUM)
    if not isinstance(value, str) or not value.startswith(_PREFIXES):
        raise refuse("architecture", f"starts with none of {', '.join(_PREFIXES)}", value)
    match = _ARCHITECTURE.fullmatch(value)
    if match is None:
        raise refuse(
            "architecture",
            "is not a plain ViT, DeiT, DeiT-3, DINOv2, BEiT, CLIP or SigLIP such as vit_base_patch16_224",
            value,
        )
    return match.groupdict(default="")


def image_size(config: Mapping[str, Any]) -> tuple[int, int]:
    """(height, width) in pixels for timm's evaluation.

    It is `input_size`, or `img_size` for a model of fixed size (timm `_parse_model_cfg`, `resolve_data_config`).

    Raises:
        CheckpointError: If a value is malformed, or the model does not take images of that size.
    """
    arguments = model_args(config)
    given = pair("image_size", _input_size(config)[1:])
    size = pair("image_size", arguments.get("img_size", given))
    if size == given or is_dynamic(arguments):
        return given
    if not pretrained_cfg(config).get("fixed_input_size"):
        raise unsupported(
            "pretrained_cfg.input_size",
            f"pretrained_cfg.input_size {given} is not the size {size} of model_args.img_size, which the model takes "
            f"alone; set input_size to it, or fixed_input_size to true",
        )
    return size


def num_channels(config: Mapping[str, Any]) -> int:
    """The model's channels, from model_args; pretrained_cfg often has the 3 channels of the original model.

    Raises:
        CheckpointError: If it is not 1, 3 or 4.
    """
    channels = model_args(config).get("in_chans", _input_size(config)[0])
    if type(channels) is not int or channels not in MODES:
        raise refuse("in_chans", "is not 1 (gray), 3 (RGB) or 4 (RGBA)", channels)
    return channels


def _input_size(config: Mapping[str, Any]) -> Sequence[object]:
    size = pretrained_cfg(config).get("input_size") or (3, _DEFAULT_SIZE, _DEFAULT_SIZE)
    if not isinstance(size, Sequence) or len(size) != 3:
        raise refuse("pretrained_cfg.input_size", "is not [channels, height, width]", size)
    return size


def is_dynamic(arguments: Mapping[str, Any]) -> bool:
    """True if a model interpolates its position table to each image."""
    return flag(arguments, "dynamic_img_size", default=False)


def takes_any_size(config: Mapping[str, Any]) -> bool:
    """True if the model in a config.json takes every image size that is made of whole patches."""
    return is_dynamic(model_args(config))


def table_size(config: Mapping[str, Any]) -> tuple[int, int]:
    """(height, width) in pixels of the position tables."""
    arguments = model_args(config)
    if "img_size" in arguments:
        return pair("image_size", arguments["img_size"])
    return (_DEFAULT_SIZE, _DEFAULT_SIZE) if is_dynamic(arguments) else image_size(config)


# Pooler of `vitdeploy.models.layers.heads`, by timm's global_pool and whether a norm follows.
POOLINGS = {
    ("token", False): "cls",
    ("token", True): "cls+norm",
    ("avg", False): "mean",
    ("avg", True): "mean+norm",
    ("map", False): "attention",
    ("", False): None,
}


def global_pool(
    config: Mapping[str, Any],
    arguments: Mapping[str, Any],
    default: str,
    classes: int,
    pools: Sequence[str] = ("token", "avg"),
) -> str:
    """The pooling: one of `pools`, or "" for a model without head and pooling.

    Raises:
        CheckpointError: If it is another, or stated twice with different values.
    """
    built, written = arguments.get("global_pool"), config.get("global_pool")
    pool = first(built, written, default)
    if pool not in (*pools, ""):
        raise unsupported(
            "global_pool",
            f"global_pool {pool!r:.80} is not supported for this architecture, only {', '.join(map(repr, pools))}, and "
            f"'' without a head",
        )
    if written not in (None, pool):
        raise unsupported(
            "global_pool", f"global_pool is {pool!r} in model_args and {written!r:.80} beside it; make them agree"
        )
    if not pool and classes:
        raise unsupported("global_pool", "global_pool '' classifies every token, which no model here does")
    return str(pool)
