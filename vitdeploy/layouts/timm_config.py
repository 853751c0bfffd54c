"""Read timm's config.json: the architecture, its constructor arguments and its labels."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from vitdeploy.errors import CheckpointError
from vitdeploy.specs import MODES

# The names of timm 1.0 whose blocks are plain: exact GELU (SwiGLU in the giant DINOv2), LayerNorm with eps 1e-6, one
# attention then one MLP. Other names with these prefixes (clip, siglip, rpn ...) may differ where no tensor shows it.
_ARCHITECTURE = re.compile(
    r"vit_(?P<vit>tiny|small|base|large|huge|giant|gigantic)_patch\d+(?P<plus>_plus)?"
    r"_(?:(?:reg\d+_)?(?P<dino>dinov2|tipsv2)|(?:36x1_)?\d+(?:_miil)?)"
    r"|deit_(?P<deit>tiny|small|base)(?P<distilled>_distilled)?_patch\d+_\d+"
    r"|deit3_(?P<deit3>small|medium|base|large|huge)_patch\d+_\d+"
    r"|beit(?:v2)?_(?P<beit>base|large)_patch\d+_\d+"
)
_PREFIXES = ("vit_", "deit_", "deit3_", "beit_", "beitv2_")
# No file stores the number of heads: it is what timm's registry gives an architecture of that name, at any width.
_HEADS = {"tiny": 3, "small": 6, "medium": 8, "base": 12, "large": 16, "huge": 16, "giant": 16, "gigantic": 16}
_HEADS_OF_PLUS, _HEADS_OF_GIANT_DINO = 14, 24
MOST = 1 << 20  # of anything that is counted

# Constructor arguments that must have one of these values: what they turn on has no equivalent.
_FIXED: dict[str, tuple[object, ...]] = {
    "class_token": (True,),
    "pos_embed": ("learn",),
    "pre_norm": (False,),
    "final_norm": (True,),
    "fc_norm": (None, False),
    "pool_include_prefix": (False,),
    "qk_norm": (False,),
    "scale_attn_norm": (False,),
    "scale_mlp_norm": (False,),
    "scale_mlp": (False,),
    "swiglu_mlp": (False,),
    "proj_bias": (True,),
    "dynamic_img_pad": (False,),
    "norm_layer": (None,),
    "embed_norm_layer": (None,),
    "act_layer": (None, "gelu"),
}
# Arguments that are read here, or compared with the tensors by `vitdeploy.layouts.timm_layout`.
_READ = {"img_size", "num_heads", "global_pool", "num_classes"}
COMPARED = (
    "embed_dim", "depth", "patch_size", "in_chans", "mlp_ratio", "qkv_bias", "init_values", "reg_tokens",
    "no_embed_class", "use_abs_pos_emb", "use_rel_pos_bias", "use_shared_rel_pos_bias", "use_fc_norm",
)  # fmt: skip
# Arguments that change nothing of an evaluation at the model's own image size.
_WITHOUT_EFFECT = {
    "dynamic_img_size", "strict_img_size", "weight_init", "fix_init", "head_init_scale", "drop_rate", "pos_drop_rate",
    "patch_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class TimmConfig:
    """What a config.json says of a model.

    Attributes:
        beit: whether it is a BEiT.
        distilled: whether it has DeiT's second token and second head.
        gated: whether its MLP is SwiGLU.
        num_heads: of every attention.
        image_size: (height, width) in pixels that the model was made for.
        num_classes: 0 where there is no head.
        global_pool: "token", or "avg" in a BEiT; "" where a model without a head does not pool.
        labels: the keys of a Hugging Face config.json that state the classes.
        arguments: constructor arguments to compare with the tensors, each one of `COMPARED`.
    """

    beit: bool
    distilled: bool
    gated: bool
    num_heads: int
    image_size: tuple[int, int]
    num_classes: int
    global_pool: str
    labels: dict[str, Any]
    arguments: dict[str, Any]


def is_timm(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is timm's own, or that of transformers' wrapper around timm."""
    return config.get("model_type") == "timm_wrapper" or ("architecture" in config and "model_type" not in config)


def read_config(config: Mapping[str, Any]) -> TimmConfig:
    """Read the content of a config.json.

    Raises:
        CheckpointError: a value is malformed, or the model has no equivalent among Hugging Face's.
    """
    mapping("pretrained_cfg", config.get("pretrained_cfg"))
    arguments = mapping("model_args", config.get("model_args") or {})
    name = _architecture(config.get("architecture"))
    for key, value in arguments.items():
        if key in _FIXED and value not in _FIXED[key]:
            raise refuse(f"model_args.{key} must be {' or '.join(map(repr, _FIXED[key]))}", value)
        if key not in (*_FIXED, *_READ, *COMPARED, *_WITHOUT_EFFECT):
            raise refuse(f"every key of model_args must be one whose effect is known, such as {COMPARED[0]}", key)
    size = next(name[family] for family in ("vit", "deit", "deit3", "beit") if name[family])
    gated = bool(size == "giant" and name["dino"])
    heads = _HEADS_OF_GIANT_DINO if gated else _HEADS_OF_PLUS if name["plus"] else _HEADS[size]
    classes = _num_classes(config, arguments)
    return TimmConfig(
        beit=bool(name["beit"]),
        distilled=bool(name["distilled"]),
        gated=gated,
        num_heads=_count("model_args.num_heads", arguments.get("num_heads", heads)),
        image_size=image_size(config),
        num_classes=classes,
        global_pool=_global_pool(config, arguments, beit=bool(name["beit"]), classes=classes),
        labels=_labels(config, classes),
        arguments={
            key: value
            for key, value in arguments.items()
            if key in COMPARED and (key, value) != ("use_fc_norm", None)  # None: it follows from global_pool
        },
    )


def pair(key: str, value: object) -> tuple[int, int]:
    """Read 224 or [224, 224].

    Raises:
        CheckpointError: it is neither.
    """
    if isinstance(value, Sequence) and len(value) == 2:
        return _count(key, value[0]), _count(key, value[1])
    return _count(key, value), _count(key, value)


def refuse(must: str, got: object) -> CheckpointError:
    """The error for something that has no equivalent or is malformed."""
    return CheckpointError(f"timm checkpoint: {must}, got {got!r:.80}; other models cannot be converted")


def mapping(key: str, value: object) -> Mapping[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise refuse(f"{key} must be an object", value)
    return value


def _count(key: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MOST:
        raise refuse(f"{key} must be made of integers from 1 to {MOST}", value)
    return value


def _architecture(value: object) -> dict[str, str]:
    """The parts of the name that are there, the others empty."""
    if not isinstance(value, str) or not value.startswith(_PREFIXES):
        raise refuse(f"architecture must start with one of {', '.join(_PREFIXES)}", value)
    match = _ARCHITECTURE.fullmatch(value)
    if match is None:
        raise refuse(
            "architecture must be a plain ViT, DeiT, DeiT-3, DINOv2 or BEiT such as vit_base_patch16_224", value
        )
    return match.groupdict(default="")


def image_size(config: Mapping[str, Any]) -> tuple[int, int]:
    """(height, width): model_args go first, as a model of fixed size takes no other whatever pretrained_cfg says."""
    arguments = mapping("model_args", config.get("model_args") or {})
    size = mapping("pretrained_cfg", config.get("pretrained_cfg")).get("input_size") or (3, 224, 224)
    if not isinstance(size, Sequence) or len(size) != 3:
        raise refuse("pretrained_cfg.input_size must be [channels, height, width]", size)
    return pair("the image size", arguments.get("img_size") or size[1:])


def num_channels(config: Mapping[str, Any]) -> int:
    """The model's, of model_args; pretrained_cfg often keeps the 3 channels of the model that this one was made from.

    Raises:
        CheckpointError: it is not 1, 3 or 4.
    """
    arguments = mapping("model_args", config.get("model_args") or {})
    size = mapping("pretrained_cfg", config.get("pretrained_cfg")).get("input_size") or (3, 224, 224)
    channels = arguments.get("in_chans", size[0])
    if type(channels) is not int or channels not in MODES:
        raise refuse("a model must take images of 1 (gray), 3 (RGB) or 4 (RGBA) channels", channels)
    return channels


def _num_classes(config: Mapping[str, Any], arguments: Mapping[str, Any]) -> int:
    if config.get("architectures") == ["TimmWrapperModel"]:
        return 0  # it has no head, though its configuration counts classes as every one in transformers does
    classes = config.get("num_classes")
    if isinstance(classes, bool) or not isinstance(classes, int) or not 0 <= classes <= MOST:
        raise refuse("num_classes must be an integer, 0 where there is no head", classes)
    if arguments.get("num_classes", classes) != classes:
        raise refuse(f"model_args.num_classes must be num_classes, {classes}", arguments["num_classes"])
    return classes


def _global_pool(config: Mapping[str, Any], arguments: Mapping[str, Any], *, beit: bool, classes: int) -> str:
    allowed = ["token", *(["avg"] if beit else []), *([] if classes else [""])]
    stated = [value for value in (config.get("global_pool"), arguments.get("global_pool")) if value is not None]
    pool = stated[0] if stated else "avg" if beit else "token"
    if pool not in allowed or any(value != pool for value in stated):
        raise refuse(f"global_pool must be one of {', '.join(map(repr, allowed))} throughout", stated)
    return str(pool)


def _labels(config: Mapping[str, Any], classes: int) -> dict[str, Any]:
    """The classes by their descriptions or, without those, their names; by number alone where there are no names."""
    if not classes:
        return {}
    names = config.get("label_names") or config["pretrained_cfg"].get("label_names")
    if not names:
        return {"num_labels": classes}
    if isinstance(names, Mapping):  # timm writes an object where some classes have no name
        names = [names.get(str(index), f"LABEL_{index}") for index in range(classes)]
    if not isinstance(names, Sequence) or len(names) != classes or not all(isinstance(name, str) for name in names):
        raise refuse(f"label_names must be {classes} strings", names)
    descriptions = mapping(
        "label_descriptions",
        config.get("label_descriptions") or config["pretrained_cfg"].get("label_descriptions") or {},
    )
    labels = [str(descriptions.get(name, name)) for name in names]
    return {
        "id2label": {str(index): label for index, label in enumerate(labels)},
        "label2id": {label: index for index, label in enumerate(labels)},
    }
