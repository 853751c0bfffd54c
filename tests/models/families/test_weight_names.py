"""Names of weights: what is read is what is written, whatever the spelling."""

from __future__ import annotations

import pytest
from families import OF_TRANSFORMERS

from vitdeploy.models.families.table import FAMILIES
from vitdeploy.models.families.weight_names import disk_name, our_names

# A name on disk, and ours.
PAIRS = {
    "vit": [
        ("embeddings.cls_token", "embeddings.cls_token"),
        ("encoder.layer.11.attention.attention.query.weight", "layers.11.attention.q_proj.weight"),
        ("encoder.layer.0.attention.output.dense.bias", "layers.0.attention.o_proj.bias"),
        ("encoder.layer.0.output.dense.bias", "layers.0.mlp.fc2.bias"),
        ("layernorm.weight", "layernorm.weight"),
        ("pooler.dense.weight", "head.pooler.dense.weight"),
    ],
    "beit": [
        ("encoder.layer.3.lambda_2", "layers.3.layer_scale2"),
        ("encoder.layer.3.attention.attention.relative_position_bias.relative_position_bias_table",
         "layers.3.relative_position_bias.relative_position_bias_table"),
        ("encoder.relative_position_bias.relative_position_bias_table",
         "shared_position_bias.relative_position_bias_table"),
    ],
    "dinov2": [
        ("encoder.layer.0.norm1.weight", "layers.0.layernorm_before.weight"),
        ("encoder.layer.0.layer_scale1.lambda1", "layers.0.layer_scale1"),
        ("encoder.layer.0.mlp.weights_in.weight", "layers.0.mlp.weights_in.weight"),
    ],
    "timm_eva02": [
        ("blocks.0.mlp.fc1_g.weight", "layers.0.mlp.gate.weight"),
        ("blocks.0.mlp.fc1_x.weight", "layers.0.mlp.fc1.weight"),
        ("blocks.0.attn.norm.bias", "layers.0.attention.layernorm.bias"),
        ("blocks.0.attn.q_proj.bias", "layers.0.attention.q_proj.bias"),
        ("blocks.0.norm1.bias", "layers.0.layernorm_before.bias"),
        ("norm.bias", "layernorm.bias"),
        ("norm_pre.bias", "embeddings.layernorm.bias"),
        ("fc_norm.bias", "head.pooler.layernorm.bias"),
    ],
    "timm_perception_encoder": [
        ("attn_pool.q.weight", "head.pooler.attention.q_proj.weight"),
        ("attn_pool.norm.weight", "head.pooler.layernorm.weight"),
        ("blocks.0.gamma_1", "layers.0.layer_scale1"),
    ],
}  # fmt: skip


@pytest.mark.parametrize(("family", "on_disk", "ours"), [(f, *pair) for f, pairs in PAIRS.items() for pair in pairs])
def test_a_name_is_read_and_written(family: str, on_disk: str, ours: str) -> None:
    row = FAMILIES[family]
    assert our_names(row, [on_disk]) == {on_disk: ours}
    assert our_names(row, [row.prefix + on_disk]) == {row.prefix + on_disk: ours}
    assert disk_name(row, ours, beside_a_head=False) == on_disk
    assert disk_name(row, ours, beside_a_head=True) == row.prefix + on_disk


@pytest.mark.parametrize(
    ("family", "name", "ours"),
    [
        ("vit", "layers.0.attention.q_proj.weight", "layers.0.attention.q_proj.weight"),
        ("vit", "vit.layers.0.mlp.fc1.bias", "layers.0.mlp.fc1.bias"),
        ("beit", "layers.0.relative_position_bias.relative_position_bias_table",
         "layers.0.relative_position_bias.relative_position_bias_table"),
        ("beit", "beit.shared_position_bias.relative_position_bias_table",
         "shared_position_bias.relative_position_bias_table"),
        ("dinov2", "layers.0.norm2.bias", "layers.0.layernorm_after.bias"),
    ],
)  # fmt: skip
def test_the_module_names_of_transformers_5_are_read_too(family: str, name: str, ours: str) -> None:
    assert our_names(FAMILIES[family], [name]) == {name: ours}


@pytest.mark.parametrize(
    "name", ["classifier.weight", "cls_classifier.bias", "distillation_classifier.bias", "lm_head.bias"]
)
def test_a_head_has_no_prefix(name: str) -> None:
    for family in (FAMILIES[name] for name in OF_TRANSFORMERS):
        assert our_names(family, [name]) == {name: f"head.{name}"}
        assert disk_name(family, f"head.{name}", beside_a_head=True) == name


@pytest.mark.parametrize("part", ["weight", "bias"])
def test_timm_names_a_classifier_and_a_projection_alike(part: str) -> None:
    family = FAMILIES["timm_eva02"]
    for projects, ours in ((False, "head.classifier"), (True, "head.visual_projection")):
        assert our_names(family, [f"head.{part}"], projects=projects) == {f"head.{part}": f"{ours}.{part}"}
        assert disk_name(family, f"{ours}.{part}", beside_a_head=not projects) == f"head.{part}"


def test_only_the_prefix_tells_beits_two_norms_apart() -> None:
    names = ["beit.layernorm.weight", "layernorm.weight"]
    assert our_names(FAMILIES["beit"], names) == {names[0]: "layernorm.weight", names[1]: "head.layernorm.weight"}
    assert our_names(FAMILIES["beit"], names[1:]) == {names[1]: "layernorm.weight"}  # a base model has no head


def test_the_oldest_spelling_of_norms() -> None:
    names = our_names(FAMILIES["vit"], ["vit.layernorm.gamma", "vit.encoder.layer.0.layernorm_after.beta"])
    assert list(names.values()) == ["layernorm.weight", "layers.0.layernorm_after.bias"]
