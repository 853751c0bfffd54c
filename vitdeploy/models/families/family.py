"""A family: its tasks, fields of the configuration and weight names, and the image tower of a model with two."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from vitdeploy.specs import Task

# Names of a layer's parts here -> on disk. The Hub keeps transformers 4's names, which transformers 5 still writes; the
# names here are transformers 5's module names, which are also read.
ATTENTION = {
    "attention.q_proj": "attention.attention.query",
    "attention.k_proj": "attention.attention.key",
    "attention.v_proj": "attention.attention.value",
    "attention.o_proj": "attention.output.dense",
}
VIT_LAYER = {**ATTENTION, "mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense"}


@dataclasses.dataclass(frozen=True)
class Tower:
    """The image tower of a model with two, whose `config.json` nests its keys beside those of a text tower.

    Attributes:
        model_type: Its own family.
        nested_in: Keys with its keys; the first that is not null.
        shared: Keys beside them that its own `config.json` has, with their defaults.
        of_classifier: Nested keys of a classifier, which differ from those of the two towers.
    """

    model_type: str
    nested_in: tuple[str, ...] = ("vision_config",)
    shared: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    of_classifier: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def key(self, config: Mapping[str, Any]) -> str:
        """The key in a `config.json` with the tower's keys."""
        return next((key for key in self.nested_in if config.get(key) is not None), self.nested_in[-1])


@dataclasses.dataclass(frozen=True)
class Family:
    """One `model_type`: of transformers, or our own for models that only timm has.

    Attributes:
        prefix: Name prefix of the encoder's weights in a model with a head.
        architectures: Supported classes, with their tasks; the default class of a task first.
        backbone: transformers' class without a head, if any, whose feature maps are the dense features here.
        sets: Fields of `ViTConfig` that differ from ViT, or from ViT's defaults.
        keys: Other keys of its `config.json` that are fields.
        derive: Fields derived from other keys of its `config.json`.
        layer_names: Names of a layer's parts here -> on disk.
        other_names: The same for weights outside the layers.
        layers: Name of the layers on disk, before their numbers.
        stacked: Parts of names on disk of weights that are several here, stacked along the first axis -> the parts of
            their names, from the top.
        axes: Number of axes on disk of weights that have more here, with sizes of 1 before them; by their names here.
        always_prefixed: True if weights have the prefix in a model without a head, too.
        head_name: Name on disk of the last linear layer, if it is the same for a classifier and a projection.
        head_norm: True if a head has its own norm, distinguished from the encoder's only by the missing prefix.
        tower: The image tower of a model with two.
    """

    prefix: str
    architectures: Mapping[str, Task]
    backbone: str | None = None
    sets: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    keys: tuple[str, ...] = ()
    derive: Callable[[Mapping[str, Any]], dict[str, Any]] | None = None
    layer_names: Mapping[str, str] = dataclasses.field(default_factory=lambda: VIT_LAYER)
    other_names: Mapping[str, str] = dataclasses.field(default_factory=dict)
    layers: str = "encoder.layer"
    stacked: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    axes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    always_prefixed: bool = False
    head_name: str | None = None
    head_norm: bool = False
    tower: Tower | None = None
