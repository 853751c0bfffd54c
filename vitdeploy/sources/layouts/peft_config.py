"""Read PEFT's adapter_config.json, which defines how a LoRA changes its base's weights.

The keys are those of `peft.LoraConfig` up to 0.21, including keys of earlier versions that were removed.
"""

from __future__ import annotations

import dataclasses
import math
import re
from typing import TYPE_CHECKING, Any

from vitdeploy.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Mapping

_APPLIED = {
    "peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "bias", "lora_bias", "use_dora",
    "modules_to_save", "auto_mapping", "base_model_name_or_path", "revision", "init_lora_weights",
}  # fmt: skip
# Keys about training or loading, or about which modules are adapted, which the tensors show.
_WITHOUT_EFFECT = {
    "task_type", "peft_version", "inference_mode", "lora_dropout", "target_modules", "exclude_modules",
    "layers_to_transform", "layers_pattern", "runtime_config",
    "fan_in_fan_out",  # for GPT-2's Conv1D only: peft sets it to false for torch's layers
    "megatron_core",  # a package name, used with megatron_config
    "qalora_group_size",  # used with use_qalora
    "loftq_config", "eva_config", "corda_config", "lora_ga_config",  # used with the value of init_lora_weights
    "ensure_weight_tying",  # for embeddings and output layers of language models
    "merge_weights",  # in peft 0.2: merge on evaluation
}  # fmt: skip
# Initializations that leave the base unchanged. The others (pissa, olora, corda, lora_ga, loftq) take the adapter's
# initial values out of the base's weights, so the saved adapter fits weights that were not saved.
_PLAIN_INITS = (True, False, None, "gaussian", "eva", "orthogonal", "mica")
_MERGE = "merge it with peft: PeftModel.from_pretrained(model, ADAPTER).merge_and_unload().save_pretrained(NEW_FOLDER)"
_MOST = 2**20


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """The content of an adapter_config.json.

    Attributes:
        base: Hub id or path of the model that the adapter was trained on; empty if not stated.
        base_revision: Its Hub revision.
        model_class: Class name of that model; empty if not stated.
        rank: Rank of modules that `rank_pattern` does not match.
        alpha: Numerator of the scale of modules that `alpha_pattern` does not match.
        rank_pattern: Ranks by regular expression for the end of a module's name.
        alpha_pattern: The same for `alpha`.
        rslora: True for the scale alpha / sqrt(rank) instead of alpha / rank.
        bias: Trained biases: "none", "all" or "lora_only".
        lora_bias: True if the second factor of every product has a bias.
        dora: True if weights are split into magnitude and direction (DoRA, arXiv:2402.09353).
        saved_modules: Name suffixes of fully trained modules.
    """

    base: str
    base_revision: str | None
    model_class: str
    rank: int
    alpha: float
    rank_pattern: Mapping[str, float]
    alpha_pattern: Mapping[str, float]
    rslora: bool
    bias: str
    lora_bias: bool
    dora: bool
    saved_modules: tuple[str, ...]

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> LoraConfig:
        """Read the content of an adapter_config.json.

        Raises:
            CheckpointError: If it is not a LoRA, has a feature that cannot be merged exactly, or a value is malformed.
        """
        kind = data.get("peft_type")
        if kind is None:
            raise refuse("peft_type", "it has no peft_type", "merge the adapter with the library that made it")
        if kind != "LORA":
            raise refuse("peft_type", f"peft_type {kind!r:.80} is not LORA", f"if that method can be merged, {_MERGE}")
        for key, value in data.items():
            off = value is None or value is False or value in ({}, [])
            if key not in _APPLIED | _WITHOUT_EFFECT and not off:
                raise refuse(key, f"{key} {value!r:.80} is not supported", _MERGE)
        init = data.get("init_lora_weights")
        if init not in _PLAIN_INITS:
            raise refuse("init_lora_weights", f"init_lora_weights {init!r:.80} changed the weights of the base", _MERGE)
        mapping = data.get("auto_mapping") or {}
        modules = data.get("modules_to_save") or ()
        bias = data.get("bias") or "none"
        if bias not in ("none", "all", "lora_only"):
            raise _malformed("bias", "none, all or lora_only", bias)
        if not isinstance(mapping, dict):
            raise _malformed("auto_mapping", "an object", mapping)
        if not isinstance(modules, (list, tuple)) or not all(isinstance(name, str) and name for name in modules):
            raise _malformed("modules_to_save", "a list of names", modules)
        return cls(
            base=_text(data, "base_model_name_or_path") or "",
            base_revision=_text(data, "revision"),
            model_class=str(mapping.get("base_model_class") or ""),
            rank=int(_number("r", data.get("r", 8), whole=True)),
            alpha=_number("lora_alpha", data.get("lora_alpha", 8)),
            rank_pattern=_pattern(data, "rank_pattern", whole=True),
            alpha_pattern=_pattern(data, "alpha_pattern"),
            rslora=_flag(data, "use_rslora"),
            bias=bias,
            lora_bias=_flag(data, "lora_bias"),
            dora=_flag(data, "use_dora"),
            saved_modules=tuple(modules),
        )

    def rank_of(self, module: str) -> int:
        return int(_matching(self.rank_pattern, module, self.rank))

    def scale_of(self, module: str) -> float:
        rank, alpha = self.rank_of(module), _matching(self.alpha_pattern, module, self.alpha)
        return alpha / math.sqrt(rank) if self.rslora else alpha / rank


def refuse(key: str, problem: str, remedy: str) -> CheckpointError:
    """The error for an adapter that cannot be merged here."""
    return CheckpointError(f"adapter_config.json: {problem}", what=key, where="adapter_config.json", hint=remedy)


def _matching(pattern: Mapping[str, float], module: str, default: float) -> float:
    """As peft.utils.other.get_pattern_key: the first expression that matches a complete suffix of the name."""
    for expression, value in pattern.items():
        if re.match(rf"(.*\.)?({expression})$", module):
            return value
    return default


def _pattern(data: Mapping[str, Any], key: str, *, whole: bool = False) -> dict[str, float]:
    value = data.get(key) or {}
    if not isinstance(value, dict):
        raise _malformed(key, "an object of names and numbers", value)
    for expression in value:
        try:
            re.compile(rf"(.*\.)?({expression})$")
        except (re.error, OverflowError, RecursionError) as exc:
            raise _malformed(key, f"an object of regular expressions ({exc})", expression) from exc
    return {expression: _number(key, number, whole=whole) for expression, number in value.items()}


def _number(key: str, value: object, *, whole: bool = False) -> float:
    kinds = (int,) if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not abs(value) <= _MOST or (whole and value < 1):
        raise _malformed(key, f"{'an integer from 1' if whole else 'a number up'} to {_MOST}", value)
    return value


def _flag(data: Mapping[str, Any], key: str) -> bool:
    value = data.get(key) or False
    if not isinstance(value, bool):
        raise _malformed(key, "true or false", value)
    return value


def _text(data: Mapping[str, Any], key: str) -> str | None:
    value = data.get(key)
    if value is not None and not isinstance(value, str):
        raise _malformed(key, "a name", value)
    return value or None


def _malformed(key: str, expected: str, value: object) -> CheckpointError:
    return CheckpointError(
        f"adapter_config.json: {key} is {value!r:.80}, not {expected}",
        what=key, where="adapter_config.json", expected=expected, found=value,
    )  # fmt: skip
