"""Readable names of layers."""

from __future__ import annotations

import pytest

from vitdeploy.exporters.naming.layer_names import layer_name, normalized_name, readable_name


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("layers.3.mlp.fc1", "block 3, MLP, fc1"),
        ("layers.11.attention.q_proj", "block 11, attention, query"),
        ("layers.0", "block 0"),
        ("embeddings.patch_embeddings.projection", "embeddings, patch embeddings, projection"),
        ("head", "head"),
        ("graph", "graph"),
    ],
)
def test_readable_name(label: str, name: str) -> None:
    assert readable_name(label) == name


def test_a_node_without_weights_keeps_its_own_name() -> None:
    assert layer_name("model.layers.4.add_125", "layers.4", None) == "block 4, add_125"
    assert layer_name("gelu", "layers.0", None) == "block 0, gelu"
    assert layer_name("logits", "head", "head.classifier") == "head, classifier"
    assert normalized_name("Block 3 ,  MLP, fc1") == normalized_name("block 3, mlp,fc1")
