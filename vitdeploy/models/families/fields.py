"""Fields of `ViTConfig` that are derived from other keys of a family's `config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vitdeploy.errors import UsageError, shown
from vitdeploy.models.rotary import Rotary


def beit(config: Mapping[str, Any]) -> dict[str, Any]:
    mean = _flag(config, "use_mean_pooling", default=True)
    return {
        "qkv_bias": True,  # transformers has no such key here
        "absolute_positions": _flag(config, "use_absolute_position_embeddings", default=False),
        "relative_positions": _flag(config, "use_relative_position_bias", default=False),
        "shared_relative_positions": _flag(config, "use_shared_relative_position_bias", default=False),
        "layer_scale": _number(config, "layer_scale_init_value", default=0.1) > 0,
        "final_norm": not mean,
        "classification_pooler": "mean+norm" if mean else "cls",
        "feature_pooler": "mean+norm" if mean else "cls",
        "vocab_size": config.get("vocab_size", 8192),
    }


def dinov2(config: Mapping[str, Any]) -> dict[str, Any]:
    swiglu = _flag(config, "use_swiglu_ffn", default=False)
    size = config.get("hidden_size", 768)
    ratio = _number(config, "mlp_ratio", default=4)
    if isinstance(size, bool) or not isinstance(size, int):
        return {}  # ViTConfig reports the problem
    width = int(size * ratio)
    if swiglu:  # two thirds of the MLP's width, rounded up to a multiple of 8: transformers' Dinov2SwiGLUFFN
        width = (int(width * 2 / 3) + 7) // 8 * 8
    return {
        "intermediate_size": width,
        "swiglu": swiglu,
        "mask_token": _flag(config, "use_mask_token", default=True),
        "feature_norm": "all" if _flag(config, "apply_layernorm", default=True) else "none",
    }


def registers(config: Mapping[str, Any]) -> dict[str, Any]:
    return {**dinov2(config), "mask_token": True, "num_register_tokens": config.get("num_register_tokens", 4)}


def dinov3(config: Mapping[str, Any]) -> dict[str, Any]:
    biases = {"query_bias": True, "key_bias": False, "value_bias": True, "proj_bias": True, "mlp_bias": True}
    return {
        "qkv_bias": True,  # one key for each
        **{key: _flag(config, key, default=default) for key, default in biases.items()},
        "head_dim": None,  # transformers ignores such a key here
        "gated_mlp": _flag(config, "use_gated_mlp", default=False),
        "num_register_tokens": config.get("num_register_tokens", 0),
        "rotary": Rotary("centered", config.get("rope_theta", 100.0)),
        "feature_norm": "all" if _flag(config, "apply_layernorm", default=True) else "last",
    }


def clip(config: Mapping[str, Any]) -> dict[str, Any]:
    named = config.get("architectures")
    without = ("VisionModel", "ForImageClassification")  # endings of classes without the projection
    projected = not isinstance(named, list) or not any(str(name).endswith(without) for name in named)
    # transformers has no such keys here
    return {
        "qkv_bias": True,
        "head_dim": None,
        "projection_size": _size(config, "projection_dim", default=512) if projected else None,
    }


def siglip(config: Mapping[str, Any]) -> dict[str, Any]:
    pools = _flag(config, "vision_use_head", default=True)
    # transformers has no such keys as the first two here
    return {"qkv_bias": True, "head_dim": None, "feature_pooler": "attention" if pools else None}


def timm(config: Mapping[str, Any]) -> dict[str, Any]:
    pooling, rotary = config.get("pooling"), config.get("rotary")
    return {
        "classification_pooler": "mean" if pooling is None else pooling,
        "feature_pooler": pooling,
        "rotary": None if rotary is None else Rotary.from_dict(rotary),
    }


def _flag(config: Mapping[str, Any], key: str, *, default: bool) -> bool:
    value = config.get(key, default)
    if not isinstance(value, bool):
        raise UsageError(f"{key} is {shown(value)}, expected true or false", what=key, found=value)
    return value


def _size(config: Mapping[str, Any], key: str, *, default: int) -> int:
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 2**15:
        raise UsageError(f"{key} is {shown(value)}, expected an integer from 1 to {2**15}", what=key, found=value)
    return value


def _number(config: Mapping[str, Any], key: str, *, default: float) -> float:
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 2**15:
        raise UsageError(f"{key} is {shown(value)}, expected a number from 0 to {2**15}", what=key, found=value)
    return value
