"""The parts of timm's config.json, in each of timm's forms, and the parsing of their values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vitdeploy.errors import CheckpointError
from vitdeploy.sources.timm_layouts.keys import (
    DINOV3_ARGS,
    DINOV3_PLAIN,
    EVA_ARGS,
    EVA_NULLABLE,
    EVA_PLAIN,
    MODEL_ARGS,
    NULLABLE,
    PLAIN,
    PRETRAINED_CFG,
    Fate,
)

MOST = 1 << 20  # limit of any count
EVA_PREFIXES = ("eva_giant_", "eva02_", "vit_pe_")  # of architectures of timm's class `Eva`; eva_large_ is a plain ViT


def is_timm(config: Mapping[str, Any]) -> bool:
    """True for timm's config.json, or that of transformers' wrapper around timm."""
    return is_wrapper(config) or ("architecture" in config and "model_type" not in config)


def is_eva(config: Mapping[str, Any]) -> bool:
    """True if the architecture in a config.json is an EVA or a Perception Encoder, supported or not."""
    name = config.get("architecture")
    return isinstance(name, str) and name.startswith(EVA_PREFIXES)


def is_dinov3(config: Mapping[str, Any]) -> bool:
    """True if the architecture in a config.json is a DINOv3, supported or not."""
    name = config.get("architecture")
    return isinstance(name, str) and name.startswith("vit_") and "_dinov3" in name


def is_wrapper(config: Mapping[str, Any]) -> bool:
    return config.get("model_type") == "timm_wrapper"


def model_args(config: Mapping[str, Any]) -> dict[str, Any]:
    """Constructor arguments that are not null.

    timm passes nulls to the constructor, few of whose arguments may be null. transformers' wrapper omits them.

    Raises:
        CheckpointError: If an argument is unknown, or has a value without an equivalent.
    """
    stated = mapping("model_args", config.get("model_args") or {})
    fates, plain_values, nullable = tables(config)
    arguments = {key: value for key, value in stated.items() if value is not None}
    for key in stated.keys() - arguments.keys() - nullable:
        if not is_wrapper(config):
            raise unsupported(key, f"model_args.{key:.80} is null; remove it, or set it as timm does")
    for key, value in arguments.items():
        if key not in fates:
            raise unsupported(key, f"model_args has {key!r:.80}, whose effect is not known")
        accepted = plain_values.get(key, ())
        if fates[key] == "refused" and not any(type(value) is type(plain) and value == plain for plain in accepted):
            only = f"; only {accepted[0]!r} is supported" if accepted else ""
            raise unsupported(key, f"model_args.{key} {value!r:.80} is not supported{only}")
    if is_dinov3(config):  # as in timm's registry
        arguments.setdefault("dynamic_img_size", True)
    return arguments


def null_args(config: Mapping[str, Any]) -> set[str]:
    """Constructor arguments that are null; transformers' wrapper omits them."""
    stated = mapping("model_args", config.get("model_args") or {})
    return set() if is_wrapper(config) else {key for key, value in stated.items() if value is None}


def tables(config: Mapping[str, Any]) -> tuple[dict[str, Fate], dict[str, tuple[object, ...]], set[str]]:
    """Effects, plain values and nullable keys of the arguments of an architecture's constructor."""
    if is_dinov3(config):
        return DINOV3_ARGS, DINOV3_PLAIN, EVA_NULLABLE
    return (EVA_ARGS, EVA_PLAIN, EVA_NULLABLE) if is_eva(config) else (MODEL_ARGS, PLAIN, NULLABLE)


def pretrained_cfg(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """`pretrained_cfg`; timm's first configurations have its keys at the top level.

    Raises:
        CheckpointError: If it is not an object, or a key is unknown or refused.
    """
    if "pretrained_cfg" not in config and not is_wrapper(config):
        cfg: Mapping[str, Any] = {key: config[key] for key in PRETRAINED_CFG if key in config}
    else:
        cfg = mapping("pretrained_cfg", config.get("pretrained_cfg"))
    for key, value in cfg.items():
        if key not in PRETRAINED_CFG:
            raise unsupported(key, f"pretrained_cfg has {key!r:.80}, which timm does not have; remove it")
        if PRETRAINED_CFG[key] == "refused" and value is not None:
            raise unsupported(key, f"pretrained_cfg.{key} names other weights than those of this folder; remove it")
    return cfg


def pair(key: str, value: object) -> tuple[int, int]:
    """Read 224 or [224, 224].

    Raises:
        CheckpointError: If it is neither.
    """
    if isinstance(value, Sequence) and len(value) == 2:
        return count(key, value[0]), count(key, value[1])
    return count(key, value), count(key, value)


def refuse(key: str, problem: str, value: object) -> CheckpointError:
    """The error for a value that has no equivalent or is malformed."""
    return CheckpointError(
        f"timm checkpoint: {key} {value!r:.80} {problem}; such a model cannot be converted", what=key, found=value
    )


def unsupported(key: str, reason: str) -> CheckpointError:
    """The error for a model that timm may build, with the reason why it is not supported."""
    return CheckpointError(f"timm checkpoint: {reason}", what=key)


def mapping(key: str, value: object) -> Mapping[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise refuse(key, "is not an object", value)
    return value


def count(key: str, value: object, *, least: int = 1) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= MOST:
        raise refuse(key, f"has other values than integers from {least} to {MOST}", value)
    return value


def number(key: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= MOST:
        raise refuse(key, f"is not a number up to {MOST}", value)
    return float(value)


def flag(arguments: Mapping[str, Any], key: str, *, default: bool) -> bool:
    value = arguments.get(key, default)
    if not isinstance(value, bool):
        raise unsupported(key, f"model_args.{key} is true or false, got {value!r:.80}")
    return value


def first(*values: Any) -> Any:
    """The first value that is not None, or None."""
    return next((value for value in values if value is not None), None)
