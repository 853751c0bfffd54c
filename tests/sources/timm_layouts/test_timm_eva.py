"""timm's EVA and Perception Encoder: names, arguments and tensors are read as timm reads them, or refused.

tests/golden/make_timm.py wrote timm's own settings and results; `test_timm_layout.py` compares every output.
"""

from __future__ import annotations

import copy
import json
import random
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from raising import raises
from torch import Tensor

from vitdeploy.errors import CheckpointError
from vitdeploy.models.checkpoint import make_model, save_model
from vitdeploy.models.config import ViTConfig
from vitdeploy.models.families.config_keys import OF_FAMILY, RULES
from vitdeploy.models.weights import read_weights
from vitdeploy.sources.timm_layouts.eva_config import eva_architecture, read_eva_config
from vitdeploy.sources.timm_layouts.layout import from_timm, processor_config
from vitdeploy.specs import Task

GOLDEN = Path(__file__).parents[2] / "golden" / "timm"
CASES = sorted(
    path.parent.name for path in GOLDEN.glob("*/config.json") if re.match(r"(dynamic_)?eva|pe_", path.parent.name)
)
ARCHITECTURES = json.loads((GOLDEN / "eva_architectures.json").read_text())


def read(case: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    config: dict[str, Any] = json.loads((GOLDEN / case / "config.json").read_text())
    return config, safetensors.torch.load_file(GOLDEN / case / "model.safetensors")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_is_read_as_timm_builds_it_or_refused(name: str) -> None:
    row = ARCHITECTURES[name]
    if row["block"] != "EvaBlock":
        with raises(CheckpointError, what="architecture", found=name):
            eva_architecture(name)
        return
    config = read_eva_config({"architecture": name, "num_classes": row["classes"][0], "pretrained_cfg": {}})
    architecture = config.architecture
    assert (config.num_heads, config.global_pool) == (row["num_heads"], row["pool"])
    assert (config.final_norm, config.late_norm) == (row["final_norm"], row["late_norm"])
    assert row["epsilons"] == [architecture.epsilon]
    assert row["norm_before"] == architecture.is_perception_encoder
    assert row["attention"] == {"rope": "AttentionRope", "eva": "EvaAttention"}[architecture.attn_type]
    assert row["mlp"] in (("SwiGLU", "GluMlp") if architecture.model_type == "timm_eva02" else ("Mlp",))
    assert row["act"] == ("SiLU" if architecture.model_type == "timm_eva02" else "GELU")
    assert row["pool_heads"] in (None, config.pool_heads)
    assert config.projects == ("_clip_" in name or "_core_" in name)
    rope, rotary = row["rope"], config.rotary
    assert (rope is None) == (rotary is None)
    if rotary is not None:
        assert (rope["class"], rope["grid_type"]) == ("RotaryEmbeddingCat", "index")
        assert list(rotary["reference_grid"]) == rope["reference_grid"]
        assert (rotary["offset"], rotary["theta"]) == (rope["offset"], rope["theta"])
        assert rotary["columns_first"] == (rope["indexing"] == "xy")
        assert rotary["pairs"] == ("halves" if rope["rotate_half"] else "neighbors")


@pytest.mark.parametrize("case", CASES)
def test_what_is_saved_is_read_again(case: str, tmp_path: Path) -> None:
    """A bundle's root: the configuration and the weights under timm's names, without timm's configuration."""
    config, tensors = read(case)
    content, weights = from_timm(config, tensors)
    vit = ViTConfig.from_dict(json.loads(json.dumps(content)))
    task = Task.CLASSIFICATION if "Classification" in content["architectures"][0] else Task.FEATURES
    model = make_model(vit, weights, task, origin=case)
    save_model(model, tmp_path / "model.safetensors")
    saved = read_weights([tmp_path / "model.safetensors"])
    assert saved.keys() == weights.keys()
    assert all(torch.equal(saved[name], tensor.float()) for name, tensor in weights.items())
    again = make_model(vit, saved, task, origin=case)
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_tensors_that_timm_does_not_split_keep_their_names() -> None:
    """Of the base EVA-02: with every argument in its registry, timm reads the bundle's weights itself."""
    _, tensors = read("eva02_1")
    assert from_timm(*read("eva02_1"))[1].keys() == tensors.keys()


def argument(key: str, value: object) -> Any:
    return lambda config, _: config["model_args"].update({key: value})


def top(key: str, value: object) -> Any:
    return lambda config, _: config.update({key: value})


def adding(name: str, *shape: int) -> Any:
    return lambda _, tensors: tensors.update({name: torch.zeros(shape)})


def dropping(name: str) -> Any:
    return lambda _, tensors: tensors.pop(name)


REFUSED: list[tuple[str, Any, str | re.Pattern[str]]] = [
    ("eva02_0", top("architecture", "eva02_enormous_patch14_clip_224"), "architecture"),
    ("eva02_0", top("architecture", "vit_pe_core_giant_patch14_448"), "architecture"),
    *(
        ("eva02_0", argument(key, value), key)
        for key, value in {
            "use_post_norm": True, "qk_norm": True, "num_kv_heads": 1, "num_reg_tokens": 4, "rope_type": "dinov3",
            "swiglu_align_to": 8, "attn_only_layer_scale": True, "dynamic_img_pad": True, "norm_layer": "rmsnorm",
            "rope_mrope_section": [1, 1, 2], "use_naflex": True, "fc_norm": True, "ref_feat_shape": None,
            "use_fc_norm": "yes", "use_rot_pos_emb": 1,
        }.items()
    ),
    *(
        ("eva02_0", argument(key, value), f"model_args.{key}")
        for key, value in {
            "ref_feat_shape": [16, 0], "rope_grid_indexing": "yx", "rope_temperature": "1e4", "rope_grid_offset": [1],
            "attn_type": "rope", "swiglu_mlp": False, "scale_mlp": True, "scale_attn_inner": True, "qkv_fused": False,
            "qkv_bias": False, "use_pre_transformer_norm": True, "class_token": False, "use_abs_pos_emb": False,
            "no_embed_class": True, "init_values": 0.1, "mlp_ratio": 2, "embed_dim": 48,
        }.items()
    ),
    ("pe_core_0", argument("attn_pool_mlp_ratio", 2), "model_args.attn_pool_mlp_ratio"),
    ("pe_core_0", argument("attn_pool_num_heads", 0), "model_args.attn_pool_num_heads"),
    ("pe_core_0", argument("attn_pool_num_heads", 5), "attn_pool_num_heads"),
    ("pe_core_0", argument("use_fc_norm", True), "use_fc_norm"),
    ("pe_spatial_0", argument("use_fc_norm", True), "use_fc_norm"),
    ("eva02_0", argument("global_pool", "max"), "global_pool"),
    ("eva02_0", lambda config, _: (config.pop("global_pool"), config["model_args"].update(global_pool="map")),
     "global_pool"),
    ("eva02_0", dropping("fc_norm.weight"), re.compile(r"missing fc_norm\.weight")),
    ("eva02_0", adding("norm.weight", 24), re.compile(r"unexpected norm\.weight")),
    ("eva02_0", adding("mask_token", 1, 1, 24), re.compile("unexpected mask_token")),
    ("eva02_0", adding("blocks.0.attn.k_bias", 24), re.compile(r"unexpected blocks\.0\.attn\.k_bias")),
    ("eva02_1", adding("blocks.0.attn.k_proj.bias", 24), re.compile(r"unexpected blocks\.0\.attn\.k_proj\.bias")),
    ("eva02_1", dropping("blocks.2.mlp.norm.bias"), re.compile(r"missing blocks\.2\.mlp\.norm\.bias")),
    ("eva02_0", adding("blocks.0.mlp.fc1.weight", 127, 24), re.compile(r"mlp\.fc1\.weight must be \(126, 24\)")),
    ("pe_core_0", dropping("attn_pool.latent"), re.compile(r"missing attn_pool\.latent")),
    ("pe_core_0", adding("patch_embed.proj.bias", 24), re.compile(r"unexpected patch_embed\.proj\.bias")),
]  # fmt: skip


@pytest.mark.parametrize(("case", "change", "key"), REFUSED)
def test_what_changes_the_computation_is_refused_by_name(case: str, change: Any, key: str | re.Pattern[str]) -> None:
    config, tensors = read(case)
    change(config, tensors)
    wanted: dict[str, object] = {"what": key} if isinstance(key, str) else {"what": "weights", "found": key}
    with raises(CheckpointError, **wanted):
        from_timm(config, tensors)


def test_stored_buffers_of_former_versions_are_left_out() -> None:
    """Rotary positions are computed again in timm, whatever a file has."""
    config, tensors = read("eva02_0")
    assert (
        from_timm(config, {**tensors, "rope.pos_embed": torch.zeros(16, 16)})[1].keys()
        == from_timm(config, tensors)[1].keys()
    )


@pytest.mark.parametrize("case", ["eva02_clip_0", "pe_core_0"])
def test_a_projection_of_another_width_or_with_names_is_a_classifier(case: str) -> None:
    config, tensors = read(case)
    assert from_timm(config, tensors)[0]["projection_size"] == 512
    assert "projection_size" not in from_timm(config, tensors, Task.CLASSIFICATION)[0]
    assert "projection_size" not in from_timm({**config, "label_names": [str(i) for i in range(512)]}, tensors)[0]
    for name in ("head.weight", "head.bias"):
        tensors[name] = tensors[name][:9]
    changed = copy.deepcopy(config) | {"num_classes": 9}
    changed["model_args"]["num_classes"] = 9
    content, _ = from_timm(changed, tensors)
    assert content["num_labels"] == 9
    assert content["architectures"][0].endswith("ForImageClassification")


# Values other than those of the checkpoint, for every key of our own in a bundle's config.json.
OTHER: dict[str, Any] = {
    "intermediate_size": 40, "qkv_bias": False, "class_token": False, "absolute_positions": False,
    "attention_norm": True, "mlp_norm": True, "final_norm": False, "layer_scale": True, "pooling": "mean",
    "pooler_attention_heads": 2, "pooler_intermediate_size": 40, "projection_size": 9,
}  # fmt: skip
ROTARY: dict[str, Any] = {
    "coordinates": "centered", "theta": 100.0, "pairs": "halves", "reference_grid": [3, 5], "offset": 0.5,
    "columns_first": False,
}  # fmt: skip


@pytest.mark.parametrize("change", [{key: value} for key, value in (OTHER | {"rotary": None}).items()], ids=str)
def test_every_key_of_our_own_is_applied(change: dict[str, Any]) -> None:
    """Another value gives another result, or does not fit the weights."""
    assert_applied(change)


@pytest.mark.parametrize("key", ROTARY)
def test_every_key_of_rotary_positions_is_applied(key: str) -> None:
    content, _ = from_timm(*read("pe_core_0"))
    assert content["rotary"].keys() == ROTARY.keys()
    assert_applied({"rotary": content["rotary"] | {key: ROTARY[key]}})


def assert_applied(change: dict[str, Any]) -> None:
    content, weights = from_timm(*read("pe_core_0"))
    pixels = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    plain = make_model(ViTConfig.from_dict(content), weights, Task.FEATURES, origin="here")(pixels)
    try:
        model = make_model(ViTConfig.from_dict(content | change), weights, Task.FEATURES, origin="here")
    except CheckpointError:
        return
    found = model(pixels)
    assert found.keys() != plain.keys() or any(not torch.equal(found[name], plain[name]) for name in plain)


def test_the_keys_are_those_of_the_table() -> None:
    rules = OF_FAMILY["timm_perception_encoder"]
    assert rules.keys() == OTHER.keys() | {"rotary"}
    for case in CASES:
        content, _ = from_timm(*read(case))
        assert not content.keys() - RULES[content["model_type"]].keys()


@pytest.mark.parametrize(
    ("value", "key"),
    [
        ("2d", "rotary"), ({"base": 100}, "rotary"), ({"theta": -1}, "rope_theta"), ({"offset": "1"}, "offset"),
        ({"reference_grid": [16]}, "reference_grid"), ({"columns_first": 1}, "columns_first"),
        ({"pairs": "odd"}, "pairs"), ({"coordinates": "polar"}, "coordinates"),
    ],
)  # fmt: skip
def test_invalid_rotary_positions_are_named(value: Any, key: str) -> None:
    content, _ = from_timm(*read("pe_core_0"))
    with raises(CheckpointError, what=key, where="config.json"):
        ViTConfig.from_dict(content | {"rotary": value})


@pytest.mark.parametrize("value", ["map", 1, ["mean"]])
def test_an_unknown_pooling_is_named(value: Any) -> None:
    content, _ = from_timm(*read("pe_core_0"))
    with raises(CheckpointError, what="classification_pooler", where="config.json"):
        ViTConfig.from_dict(content | {"pooling": value})


def test_nothing_but_a_checkpoint_error_comes_of_a_malformed_configuration() -> None:
    """Every value of a configuration replaced by every kind of value."""
    junk: list[Any] = [None, True, -1, 0, 1, 1 << 70, 0.5, float("nan"), "", "x", [], [1], [3, 3], {}, {"a": 1}]
    rng = random.Random(0)
    outcomes = {True: 0, False: 0}
    for case in ("eva02_2", "pe_core_2", "dynamic_eva_1", "eva_2"):
        original, tensors = read(case)
        for _ in range(200):
            config = copy.deepcopy(original)
            place = rng.choice([config, config["model_args"], config["pretrained_cfg"]])
            place[rng.choice(list(place))] = rng.choice(junk)
            for convert in (partial(from_timm, tensors=tensors), processor_config):
                try:
                    convert(config)
                except CheckpointError:
                    outcomes[False] += 1
                else:
                    outcomes[True] += 1
    assert min(outcomes.values()) > 100
