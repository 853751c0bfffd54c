"""Read PEFT's adapter_config.json: how a LoRA changes the weights of its base.

The keys are those of `peft.LoraConfig` up to 0.21, and of the versions before that have since lost some.
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
# Keys that say how the adapter was trained or loaded, or which modules have one, which its tensors tell.
_WITHOUT_EFFECT = {
    "task_type", "peft_version", "inference_mode", "lora_dropout", "target_modules", "exclude_modules",
    "layers_to_transform", "layers_pattern", "runtime_config",
    "fan_in_fan_out",  # of GPT-2's Conv1D alone: peft sets it to false for torch's layers, all that these models have
    "megatron_core",  # the name of a package, used with megatron_config
    "qalora_group_size",  # used with use_qalora
    "loftq_config", "eva_config", "corda_config", "lora_ga_config",  # used with the value of init_lora_weights
    "ensure_weight_tying",  # of embeddings and output layers of language models
    "merge_weights",  # of peft 0.2: whether evaluation merges
}  # fmt: skip
# Initialisations that leave the base as it was. The others (pissa, olora, corda, lora_ga, loftq) take the adapter's
# first values out of the base's weights, so that the saved adapter belongs to weights that nobody has saved.
_PLAIN_INITS = (True, False, None, "gaussian", "eva", "orthogonal", "mica")
_MERGE = "merge it with peft: PeftModel.from_pretrained(model, ADAPTER).merge_and_unload().save_pretrained(NEW_FOLDER)"
_MOST = 2**20


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """The content of an adapter_config.json.

    Attributes:
        base: The Hub id or path of the model that the adapter was trained on; empty where it is not said.
        base_revision: Its revision on the Hub.
        model_class: The name of that model's class; empty where it is not said.
        rank: Of the modules that `rank_pattern` does not name.
        alpha: The numerator of the scale of the modules that `alpha_pattern` does not name.
        rank_pattern: Ranks by regular expressions for the ends of modules' names.
        alpha_pattern: The same for `alpha`.
        rslora: Whether the scale is alpha / sqrt(rank) instead of alpha / rank.
        bias: Whose biases were trained: "none", "all" or "lora_only".
        lora_bias: Whether the second factor of every product has a bias.
        dora: Whether weights are split into a magnitude and a direction (DoRA, arXiv:2402.09353).
        saved_modules: The ends of the names of modules that were trained whole.
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
            CheckpointError: If it is no LoRA, or has a feature that cannot be merged exactly, or a value is malformed.
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
        """The rank of a module's product."""
        return int(_matching(self.rank_pattern, module, self.rank))

    def scale_of(self, module: str) -> float:
        """The factor of a module's product."""
        rank, alpha = self.rank_of(module), _matching(self.alpha_pattern, module, self.alpha)
        return alpha / math.sqrt(rank) if self.rslora else alpha / rank


def refuse(key: str, problem: str, remedy: str) -> CheckpointError:
    """The error for an adapter that cannot be merged here."""
    return CheckpointError(f"adapter_config.json: {problem}", what=key, where="adapter_config.json", hint=remedy)


def _matching(pattern: Mapping[str, float], module: str, default: float) -> float:
    """As peft.utils.other.get_pattern_key matches: the first expression that a whole end of the name fits."""
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
