"""Families that are not built: refused by name, with the reason and an alternative."""

from __future__ import annotations

import pytest
from raising import raises
from transformers import CONFIG_MAPPING

from vitdeploy.errors import CheckpointError
from vitdeploy.models.config import ViTConfig
from vitdeploy.models.families.table import FAMILIES
from vitdeploy.models.families.unsupported import OPTIMUM, UNSUPPORTED, family_in
from vitdeploy.sources.timm_layouts.config import read_config


def test_each_is_a_model_of_transformers_that_is_not_built() -> None:
    assert not UNSUPPORTED.keys() & FAMILIES.keys()
    assert not [model_type for model_type in UNSUPPORTED if model_type not in CONFIG_MAPPING]


@pytest.mark.parametrize("model_type", UNSUPPORTED)
def test_it_is_refused_by_name(model_type: str) -> None:
    family = UNSUPPORTED[model_type]
    fields = {"what": "model_type", "where": "config.json", "found": model_type, "hint": family.alternative}
    with raises(CheckpointError, expected=tuple(FAMILIES), **fields) as caught:
        ViTConfig.from_dict({"model_type": model_type})
    message = str(caught.value)
    assert family.name in message
    assert family.reason in message
    assert "\n" not in message
    assert len(message) < 240


@pytest.mark.parametrize(
    ("architecture", "name"),
    [
        ("swin_tiny_patch4_window7_224", "Swin"),
        ("swinv2_base_window8_256", "Swin V2"),
        ("convnext_base", "ConvNeXt"),
        ("convnextv2_tiny", "ConvNeXt V2"),
        ("pvt_v2_b0", "PVT v2"),
        ("vit_base_patch16_224", None),
        ("swinging", None),
    ],
)
def test_timms_models_are_refused_by_name_too(architecture: str, name: str | None) -> None:
    family = family_in(architecture)
    assert (None if family is None else family.name) == name
    if family is not None:
        with raises(CheckpointError, what="architecture", found=architecture, hint=OPTIMUM):
            read_config({"architecture": architecture})
