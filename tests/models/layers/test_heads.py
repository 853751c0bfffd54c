"""The attention pooler against torch's own multi-head attention, and models without a class token."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from raising import raises
from torch import nn

from models.parity import TOLERANCES, images
from vitdeploy.errors import UsageError
from vitdeploy.models.config import ViTConfig
from vitdeploy.models.layers.encoder import AttentionKind
from vitdeploy.models.layers.heads import AttentionPooler
from vitdeploy.models.presets import random_model
from vitdeploy.models.vit import VisionTransformer
from vitdeploy.specs import Task

WITHOUT_CLASS_TOKEN: dict[str, Any] = {
    "class_token": False, "classification_pooler": "mean", "feature_pooler": "attention", "hidden_size": 24,
    "num_attention_heads": 3, "intermediate_size": 40, "num_hidden_layers": 2, "image_size": (20, 15),
    "patch_size": (5, 5), "initializer_range": 0.2,
}  # fmt: skip


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_attention_pooler_is_torchs_attention_of_a_probe(attention: AttentionKind) -> None:
    model = random_model(ViTConfig(**WITHOUT_CLASS_TOKEN), Task.FEATURES).with_attention(attention)
    pooler = model.head.pooler
    assert isinstance(pooler, AttentionPooler)
    parts = pooler.attention.q_proj, pooler.attention.k_proj, pooler.attention.v_proj
    torch.nn.init.normal_(pooler.attention.k_proj.bias, generator=torch.Generator().manual_seed(1))
    oracle = nn.MultiheadAttention(24, 3, batch_first=True).eval()
    weight, bias = (torch.cat([getattr(part, leaf) for part in parts]) for leaf in ("weight", "bias"))
    output = {f"out_proj.{name}": value for name, value in pooler.attention.o_proj.state_dict().items()}
    oracle.load_state_dict({"in_proj_weight": weight, "in_proj_bias": bias, **output})
    x = images(3, 17, 24)
    attended = oracle(pooler.probe.expand(3, 1, 24), x, x)[0]
    want = (attended + pooler.mlp(pooler.layernorm(attended)))[:, 0]
    assert (pooler(x) - want).abs().max() <= TOLERANCES[torch.float32] * want.abs().max()


def test_tokens_are_patches_and_registers_without_a_class_token() -> None:
    config = ViTConfig(**WITHOUT_CLASS_TOKEN, num_register_tokens=2)
    assert config.num_prefix_tokens == 2
    model = random_model(config, Task.FEATURES)
    assert "embeddings.cls_token" not in model.state_dict()
    assert model.embeddings.position_embeddings is not None
    assert model.embeddings.position_embeddings.shape == (1, 12, 24)
    out = model(images(2, 3, 20, 15))
    assert out["last_hidden_state"].shape == (2, 14, 24)
    assert out["pooler_output"].shape == (2, 24)


def test_the_mean_is_that_of_the_patches() -> None:
    config = ViTConfig(**WITHOUT_CLASS_TOKEN | {"labels": (), "num_register_tokens": 2})
    classifier = random_model(config)
    features = VisionTransformer(config, Task.FEATURES, pooler=False).eval()
    features.load_state_dict({key: value for key, value in classifier.state_dict().items() if "head" not in key})
    pixels = images(2, 3, 20, 15)
    torch.testing.assert_close(classifier(pixels)["logits"], features(pixels)["last_hidden_state"][:, 2:].mean(1))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("distillation_token", True),
        ("relative_positions", True),
        ("shared_relative_positions", True),
        ("classification_pooler", "cls"),
        ("classification_pooler", "cls+mean"),
        ("feature_pooler", "dense"),
    ],
)
def test_what_reads_the_class_token_is_refused_without_one(key: str, value: object) -> None:
    with raises(UsageError, what=key, found=value):
        ViTConfig(**WITHOUT_CLASS_TOKEN | {key: value})
