"""The table of timm's architectures has every name that can be converted, with values that are read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from raising import raises

from vitdeploy.errors import CheckpointError
from vitdeploy.sources.architectures.timm_table import is_timm_name, names_of_sizes, reader_of, timm_config, timm_names
from vitdeploy.sources.timm_layouts.config import read_config
from vitdeploy.sources.timm_layouts.layout import processor_config
from vitdeploy.sources.timm_layouts.parts import is_dinov3, is_eva

GOLDEN = Path(__file__).parents[2] / "golden" / "timm"
ARCHITECTURES: dict[str, Any] = json.loads((GOLDEN / "architectures.json").read_text())


def _is_read(name: str) -> bool:
    try:
        read_config({"architecture": name, "num_classes": 0, "pretrained_cfg": {"fixed_input_size": True}})
    except CheckpointError:
        return False
    return True


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if _is_read(name)])
def test_each_architecture_that_is_read_has_its_row(name: str) -> None:
    assert name in timm_names()
    config = timm_config(name)
    stated = read_config({**config, "num_classes": 0})
    assert stated.num_heads == ARCHITECTURES[name]["num_heads"]
    assert processor_config(config)["crop_size"] == dict(zip(("height", "width"), stated.image_size, strict=True))


def test_families_of_other_modules_have_rows_that_are_read() -> None:
    families = {is_eva: "eva02_base_patch14_448", is_dinov3: "vit_base_patch16_dinov3"}
    for matches, example in families.items():
        names = [name for name in timm_names() if matches({"architecture": name})]
        assert example in names
        for name in names:
            config = timm_config(name)
            assert reader_of(config)({**config, "num_classes": 0}).num_heads == config["model_args"]["num_heads"]


def test_a_tag_has_the_transform_of_its_weights() -> None:
    plain, tagged = (
        processor_config(timm_config(name)) for name in ("vit_base_patch16_224", "vit_base_patch16_224.dino")
    )
    assert plain["image_mean"] == [0.5] * 3
    assert tagged["image_mean"] == [0.485, 0.456, 0.406]
    with raises(CheckpointError, what="arch", found="vit_base_patch16_224.nobody"):
        timm_config("vit_base_patch16_224.nobody")
    assert is_timm_name("vit_base_patch16_224.nobody")


def test_names_are_found_by_the_sizes_of_weights() -> None:
    sizes = {"embed_dim": 192, "depth": 12, "patch_size": 16}
    assert {"vit_tiny_patch16_224", "deit_tiny_patch16_224"} <= set(names_of_sizes(sizes))
    assert names_of_sizes(sizes | {"depth": 13}) == ()
