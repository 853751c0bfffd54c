"""Merge a PEFT LoRA exactly into its base's weights, with the result of peft's `merge_and_unload`."""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING

import torch

from vitdeploy.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from torch import Tensor

    from vitdeploy.sources.layouts.peft_config import LoraConfig

    Canonical = Callable[[Iterable[str]], Mapping[str, str]]

_PREFIX = "base_model.model."  # prefixes of PeftModel and LoraModel around the model
_FACTOR = re.compile(r"(?P<module>.+)\.(?P<part>lora_[A-Za-z_]+?)(?:\.default)?(?:\.(?P<leaf>weight|bias))?", re.DOTALL)
_SAVE_AGAIN = "save the adapter again"
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclasses.dataclass
class _Lora:
    """Tensors of one module's adapter; `key` is the first tensor's, for errors."""

    key: str
    a: Tensor | None = None  # (rank, inputs); for a convolution (rank, channels, height, width)
    b: Tensor | None = None  # (outputs, rank); for a convolution (outputs, rank, 1, 1)
    bias: Tensor | None = None  # (outputs,)
    magnitude: Tensor | None = None  # (outputs,); for a convolution (1, outputs, 1, 1)


@dataclasses.dataclass(frozen=True)
class Merged:
    """A model with its adapter merged.

    Attributes:
        weights: All tensors of the model, under the base's names.
        adapted: Canonical names of the weights with an added product.
        replaced: Canonical names of the tensors that the adapter replaces.
    """

    weights: dict[str, Tensor]
    adapted: tuple[str, ...]
    replaced: tuple[str, ...]


def merge(
    base: Mapping[str, Tensor], adapter: Mapping[str, Tensor], config: LoraConfig, canonical: Canonical, origin: str
) -> Merged:
    """Add to each weight the scaled product of its factors, W + s B A, and replace the adapter's whole tensors.

    For DoRA, the sum's rows are then scaled to the adapter's lengths: m (W + s B A) / |W + s B A|. Every tensor of the
    adapter is used. Changed weights are computed in float64 and stored in float32.

    Args:
        base: The base's weights, by name.
        adapter: The adapter's tensors, by name.
        config: The adapter's configuration.
        canonical: Maps names to the canonical name shared by all spellings of a weight.
        origin: The adapter's file, for errors.

    Raises:
        CheckpointError: If the adapter does not fit the base or its own configuration.
    """
    factors, whole = _sorted_out(adapter, config, origin)
    spelled = canonical([*(f"{module}.{leaf}" for leaf in ("weight", "bias") for module in factors), *whole])
    by_canonical = {ours: name for name, ours in canonical(base).items()}
    weights, replaced = dict(base), []
    for name, tensor in whole.items():
        ours = spelled[name]
        if ours in replaced:
            raise CheckpointError(
                f"{origin}: '{name}' is there twice, under two names",
                what=name, where=origin, hint="keep one of them",
            )  # fmt: skip
        _check_float(origin, name, tensor)
        replaced.append(ours)
        by_canonical.setdefault(ours, name)
        weights[by_canonical[ours]] = tensor
    for module, lora in factors.items():
        ours = spelled[f"{module}.weight"]
        if ours in replaced:
            raise CheckpointError(
                f"{origin}: '{module}' has both a whole weight and a product",
                what=module, where=origin, hint="keep one of them",
            )  # fmt: skip
        if ours not in by_canonical:
            raise CheckpointError(f"{origin}: the base has no weight for '{lora.key}'", what=lora.key, where=origin)
        place = by_canonical[ours]
        weights[place] = _sum(weights[place], lora, config, module, origin)
        if lora.bias is not None:
            bias = by_canonical.get(spelled[f"{module}.bias"])
            if bias is None or weights[bias].shape != lora.bias.shape:
                raise CheckpointError(f"{origin}: '{module}' has a bias of another shape", what=module, where=origin)
            total = weights[bias].double() + config.scale_of(module) * lora.bias.double()
            weights[bias] = total.float()
    return Merged(weights, tuple(spelled[f"{module}.weight"] for module in factors), tuple(replaced))


def _sorted_out(
    adapter: Mapping[str, Tensor], config: LoraConfig, origin: str
) -> tuple[dict[str, _Lora], dict[str, Tensor]]:
    """Factors by module, and whole tensors by name, without peft's additions to names."""
    factors: dict[str, _Lora] = {}
    whole: dict[str, Tensor] = {}
    fields = {
        ("lora_A", "weight"): "a",
        ("lora_B", "weight"): "b",
        ("lora_B", "bias"): "bias",
        ("lora_magnitude_vector", None): "magnitude",
        ("lora_magnitude_vector", "weight"): "magnitude",
    }
    for key, tensor in adapter.items():
        name = key.removeprefix(_PREFIX)
        match = _FACTOR.fullmatch(name)
        if match is None:
            if ".original_module." in name:  # the module before training; peft does not use it either
                continue
            plain = re.sub(r"\.(?:modules_to_save(?:\.default)?|base_layer)(?=\.)", "", name)
            if plain in whole and not torch.equal(whole[plain], tensor):
                raise _unusable(origin, key, "is there twice, with other values")
            whole[plain] = tensor
            continue
        field = fields.get((match["part"], match["leaf"]))
        if field is None or (field == "magnitude") > config.dora or (field == "bias") > config.lora_bias:
            raise _unusable(origin, key, "does not fit adapter_config.json")
        lora = factors.setdefault(match["module"], _Lora(key))
        if getattr(lora, field) is not None:
            raise _unusable(origin, key, "is there twice")
        setattr(lora, field, tensor)
    for name in whole:
        module = name.rpartition(".")[0]
        biased = config.bias == "all" or (config.bias == "lora_only" and module in factors)
        if not (biased and name.endswith(".bias")) and not _is_saved(module, config.saved_modules):
            problem = "is neither in modules_to_save nor a bias that adapter_config.json says was trained"
            raise _unusable(origin, name, problem)
    if not factors and not whole:
        raise CheckpointError(f"{origin} holds no tensor of an adapter", where=origin, hint=_SAVE_AGAIN)
    return factors, whole


def _is_saved(module: str, ends: Iterable[str]) -> bool:
    """True if a module or its parent has such a name suffix: the rule of peft.utils.other._set_trainable."""
    parts = module.split(".")
    modules = [".".join(parts[:count]) for count in range(1, len(parts) + 1)]
    return any(name.endswith(end) for name in modules for end in ends)


def _sum(weight: Tensor, lora: _Lora, config: LoraConfig, module: str, origin: str) -> Tensor:
    """The weight of a linear layer or convolution plus its product, in float32."""
    rank = config.rank_of(module)
    parts = {"lora_A": lora.a, "lora_B": lora.b, "lora_magnitude_vector": lora.magnitude, "lora_B.bias": lora.bias}
    required = ["lora_A", "lora_B", *(["lora_magnitude_vector"] if config.dora else [])]
    required += ["lora_B.bias"] if config.lora_bias else []
    missing = [name for name in required if parts[name] is None]
    if missing:
        raise _unusable(origin, module, f"has no {missing[0]}")
    for name, tensor in (("weight", weight), *parts.items()):
        if tensor is not None:
            _check_float(origin, f"{module}.{name}", tensor)
    assert lora.a is not None  # noqa: S101  (for mypy: they are in `required`)
    assert lora.b is not None  # noqa: S101
    wanted = (rank, *weight.shape[1:]), (*weight.shape[:1], rank, *(1,) * (weight.ndim - 2))
    if weight.ndim not in (2, 4) or (lora.a.shape, lora.b.shape) != wanted:
        shapes = tuple(lora.a.shape), tuple(lora.b.shape)
        raise CheckpointError(
            f"{origin}: the factors of '{module}', {shapes[0]} and {shapes[1]}, do not fit rank {rank} and the base's "
            f"weight, {tuple(weight.shape)}",
            what=module, where=origin, expected=tuple(weight.shape), found=shapes,
        )  # fmt: skip
    product = lora.b.double().flatten(1) @ lora.a.double().flatten(1)  # (outputs, inputs)
    total = weight.double() + config.scale_of(module) * product.reshape(weight.shape)
    if lora.magnitude is not None:
        if lora.magnitude.numel() != weight.shape[0]:
            raise _unusable(origin, module, "does not have one magnitude for each row")
        lengths = total.flatten(1).norm(dim=1)  # (outputs,)
        total = total * (lora.magnitude.double().flatten() / lengths).reshape(-1, *(1,) * (weight.ndim - 1))
    if not bool(total.isfinite().all()):
        raise _unusable(origin, module, "has a merged weight that is not finite")
    return total.float()


def _check_float(origin: str, name: str, tensor: Tensor) -> None:
    if tensor.dtype not in _FLOATS:
        raise CheckpointError(
            f"{origin}: '{name}' is of {tensor.dtype}; an adapter of a quantized base cannot be merged",
            what=name, where=origin, found=str(tensor.dtype),
        )  # fmt: skip


def _unusable(origin: str, name: str, problem: str) -> CheckpointError:
    return CheckpointError(f"{origin}: '{name}' {problem}", what=name, where=origin, hint=_SAVE_AGAIN)
