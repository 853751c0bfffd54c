"""timm's DINOv3: names, arguments and tensors are read as timm reads them, or refused.

tests/golden/make_timm.py wrote timm's own settings and results; `test_timm_layout.py` compares every output.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from raising import raises
from torch import Tensor

from vitdeploy.errors import CheckpointError
from vitdeploy.sources.timm_layouts.config import takes_any_size
from vitdeploy.sources.timm_layouts.dinov3_config import read_dinov3_config
from vitdeploy.sources.timm_layouts.keys import DINOV3_ARGS, DINOV3_PLAIN
from vitdeploy.sources.timm_layouts.layout import from_timm, processor_config
from vitdeploy.specs import Task

GOLDEN = Path(__file__).parents[2] / "golden" / "timm"
ARCHITECTURES = json.loads((GOLDEN / "dinov3_architectures.json").read_text())
KEYS = json.loads((GOLDEN / "keys.json").read_text())
Tensors = dict[str, Tensor]


def read(case: str) -> tuple[dict[str, Any], Tensors]:
    config: dict[str, Any] = json.loads((GOLDEN / case / "config.json").read_text())
    return config, safetensors.torch.load_file(GOLDEN / case / "model.safetensors")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_is_read_as_timm_builds_it(name: str) -> None:
    row = ARCHITECTURES[name]
    for size in row["input_sizes"]:
        stated = read_dinov3_config({"architecture": name, "pretrained_cfg": {"input_size": [3, size, size]}})
        assert stated.image_size == (size, size)
    assert (stated.num_heads, stated.theta) == (row["num_heads"], row["rope"]["theta"])
    assert (row["mlp"], row["act"]) == (("Mlp", "GELU") if stated.aligned is None else ("SwiGLU", "SiLU"))
    assert row["hidden"] % (stated.aligned or 1) == 0
    assert row["epsilons"] == [1e-5]
    assert (row["rope"]["class"], row["rope"]["rotate_half"]) == ("RotaryEmbeddingDinoV3", True)
    assert (row["final_norm"], row["late_norm"], row["dynamic"]) == (True, False, True)
    assert row["biased"] == name.endswith("_qkvb")
    assert takes_any_size({"architecture": name})


def test_every_argument_has_its_place_in_the_table() -> None:
    assert set(KEYS["eva_args"]) <= DINOV3_ARGS.keys()
    assert DINOV3_PLAIN.keys() <= {key for key, fate in DINOV3_ARGS.items() if fate == "refused"}


def argument(key: str, value: object) -> Callable[[dict[str, Any], Tensors], object]:
    return lambda config, _: config["model_args"].update({key: value})


REFUSED: list[tuple[str, Callable[[dict[str, Any], Tensors], object], str]] = [
    ("dinov3_0", lambda config, _: config.update(architecture="vit_giant_patch16_dinov3"), "architecture"),
    *(
        ("dinov3_0", argument(key, value), key)
        for key, value in {
            "rope_type": "cat", "rope_rotate_half": False, "rope_grid_offset": 0.5, "rope_grid_indexing": "xy",
            "use_abs_pos_emb": True, "use_rot_pos_emb": False, "class_token": False, "use_fc_norm": True,
            "qkv_fused": False, "attn_type": "rope", "qk_norm": True, "use_post_norm": True, "scale_mlp": True,
            "num_kv_heads": 1, "norm_layer": "rmsnorm", "global_pool": "max", "fc_norm": True,
        }.items()
    ),
    *(
        ("dinov3_0", argument(key, value), f"model_args.{key}")
        for key, value in {
            "num_reg_tokens": 3, "qkv_bias": True, "init_values": None, "mlp_ratio": 3, "swiglu_mlp": True,
            "rope_temperature": "100", "embed_dim": 48, "patch_size": 4, "depth": 3,
        }.items()
        if value is not None
    ),
    ("dinov3_mean_0", argument("mlp_ratio", 3), "model_args.mlp_ratio"),
    ("dinov3_mean_0", argument("swiglu_align_to", 63), "model_args.mlp_ratio"),
    ("dinov3_0", lambda _, tensors: tensors.update({"pos_embed": torch.zeros(1, 21, 24)}), "weights"),
    ("dinov3_0", lambda _, tensors: tensors.update({"blocks.0.attn.q_bias": torch.zeros(24)}), "weights"),
    ("dinov3_2", lambda _, tensors: tensors.pop("blocks.1.attn.v_bias"), "weights"),
    ("dinov3_2", lambda _, tensors: tensors.pop("blocks.2.mlp.fc1_g.bias"), "weights"),
]  # fmt: skip


@pytest.mark.parametrize(("case", "change", "key"), REFUSED)
def test_what_changes_the_computation_is_refused_by_name(case: str, change: Any, key: str) -> None:
    config, tensors = read(case)
    config.pop("global_pool")
    change(config, tensors)
    with raises(CheckpointError, what=key):
        from_timm(config, tensors)


def test_a_classifier_has_features_only(caplog: pytest.LogCaptureFixture) -> None:
    config, tensors = read("dinov3_0")
    changed = config | {"num_classes": 7}
    del changed["model_args"]["num_classes"]
    tensors |= {"head.weight": torch.zeros(7, 24), "head.bias": torch.zeros(7)}
    with raises(CheckpointError, what="num_classes"):
        from_timm(changed, tensors)
    content, weights = from_timm(changed, tensors, Task.FEATURES)
    assert content["architectures"] == ["DINOv3ViTModel"]
    assert weights.keys() == from_timm(*read("dinov3_0"))[1].keys()
    assert not caplog.records


def test_the_average_of_timm_is_not_the_pooled_output(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="vitdeploy"):
        from_timm(*read("dinov3_mean_0"))
    (record,) = caplog.records
    assert "--pool mean" in record.message


def test_halves_of_a_gated_mlp_in_one_layer() -> None:
    """As timm has them with swiglu_align_to 0."""
    config, tensors = read("dinov3_mean_0")
    wanted = from_timm(config, tensors)[1]
    for index in range(2):
        for leaf in ("weight", "bias"):
            parts = [tensors.pop(f"blocks.{index}.mlp.fc1_{part}.{leaf}") for part in "gx"]
            tensors[f"blocks.{index}.mlp.fc1.{leaf}"] = torch.cat(parts)
    config["model_args"] |= {"swiglu_align_to": 0, "mlp_ratio": 64 / 24 + 1e-9}
    got = from_timm(config, tensors)[1]
    assert got.keys() == wanted.keys()
    assert all(torch.equal(got[name], tensor) for name, tensor in wanted.items())


def test_buffers_are_computed_again_and_pixels_are_timms() -> None:
    config, tensors = read("dinov3_0")
    assert (
        from_timm(config, tensors | {"rope.periods": torch.zeros(2)})[1].keys() == from_timm(config, tensors)[1].keys()
    )
    assert processor_config(config)["crop_size"] == {"height": 40, "width": 40}
