"""Models with an image and a text tower: the image tower's configuration is that of transformers."""

from __future__ import annotations

from typing import Any

import pytest
import transformers
from raising import raises

from vitdeploy.errors import CheckpointError
from vitdeploy.models.config import ViTConfig
from vitdeploy.models.families.lookup import image_tower
from vitdeploy.specs import Task

NESTED = {"hidden_size": 64, "num_attention_heads": 4, "image_size": 48, "patch_size": 16, "projection_dim": 9}
CLIP: dict[str, Any] = {"model_type": "clip", "architectures": ["CLIPModel"], "vision_config": NESTED}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"projection_dim": 24},
        {"vision_config": None},
        {"vision_config_dict": None},
        # the former key takes precedence, with the defaults of what it does not have
        {"vision_config_dict": {"hidden_size": 96, "hidden_act": "gelu"}},
    ],
    ids=str,
)
def test_a_tower_is_configured_as_by_transformers(changes: dict[str, Any]) -> None:
    data = CLIP | changes
    of_both = transformers.CLIPConfig.from_dict({key: value for key, value in data.items() if value is not None})
    want = of_both.vision_config.to_dict() | {"projection_dim": of_both.projection_dim}
    tower = image_tower(data, Task.FEATURES)
    assert ViTConfig.from_dict(tower) == ViTConfig.from_dict(want)
    assert ViTConfig.from_dict(tower).projection_size == of_both.projection_dim
    classifier = ViTConfig.from_dict(image_tower(data, Task.CLASSIFICATION))
    assert (classifier.hidden_size, classifier.hidden_act) == (want["hidden_size"], want["hidden_act"])


def test_the_features_of_a_classifier_have_no_projection() -> None:
    tower = image_tower(CLIP | {"architectures": ["CLIPForImageClassification"]}, Task.FEATURES)
    assert ViTConfig.from_dict(tower).projection_size is None


@pytest.mark.parametrize("value", [7, [NESTED], "clip"], ids=str)
def test_a_tower_that_is_no_object_is_refused(value: object) -> None:
    with raises(CheckpointError, what="vision_config", where="config.json", found=value):
        image_tower(CLIP | {"vision_config": value}, Task.FEATURES)


@pytest.mark.parametrize("key", ["head_dim", "qkv_bias"])
def test_a_key_that_the_tower_does_not_have_has_no_effect(key: str) -> None:
    changed = {**NESTED, key: 8 if key == "head_dim" else False}
    for task in (Task.FEATURES, Task.CLASSIFICATION):
        plain, other = (image_tower(CLIP | {"vision_config": keys}, task) for keys in (NESTED, changed))
        assert ViTConfig.from_dict(plain) == ViTConfig.from_dict(other)
