"""The family of a `config.json`, and the part of it that describes the encoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vitdeploy.errors import CheckpointError, shown
from vitdeploy.models.families.family import Family
from vitdeploy.models.families.table import FAMILIES
from vitdeploy.models.families.unsupported import UNSUPPORTED
from vitdeploy.specs import Task


def family_of(data: Mapping[str, Any]) -> Family:
    """The family in a parsed `config.json`; CheckpointError unless it is one of `FAMILIES`."""
    model_type = data.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        other = UNSUPPORTED.get(model_type) if isinstance(model_type, str) else None
        if other is not None:
            raise CheckpointError(
                f"config.json: {other}",
                what="model_type", where="config.json", expected=tuple(FAMILIES), found=model_type,
                hint=other.alternative,
            )  # fmt: skip
        written = [name for name in FAMILIES if not name.startswith("timm_")]  # those are of our own bundles
        raise CheckpointError(
            f"config.json: unknown model_type {shown(model_type)}; supported: {', '.join(written)}",
            what="model_type", where="config.json", expected=tuple(FAMILIES), found=model_type,
        )  # fmt: skip
    return FAMILIES[model_type]


def encoder_keys(data: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of the encoder in a parsed `config.json`: nested in that of a model with an image and a text tower."""
    tower = family_of(data).tower
    if tower is None:
        return data if isinstance(data, dict) else dict(data)
    key = tower.key(data)
    keys = {} if data.get(key) is None else data[key]
    if not isinstance(keys, dict):
        message = f"config.json: {key} is {shown(keys)}, expected an object"
        raise CheckpointError(message, what=key, where="config.json", found=keys)
    return keys


def image_tower(data: Mapping[str, Any], task: Task) -> dict[str, Any]:
    """The `config.json` of the image tower alone, for the features of a model with two towers; otherwise `data`.

    A classifier keeps both, because transformers' class has the configuration of both.
    """
    tower = family_of(data).tower
    if tower is None:
        return dict(data)
    keys = encoder_keys(data)
    if task is Task.FEATURES:
        own = ("architectures", "dtype", "torch_dtype", "transformers_version")
        beside = {key: data.get(key, default) for key, default in tower.shared.items()}
        return {**keys, **beside, **{key: data[key] for key in own if key in data}, "model_type": tower.model_type}
    return {**data, tower.key(data): {**keys, **tower.of_classifier}}
