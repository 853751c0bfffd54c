"""The nodes of each layer, of the exporter's graphs: what the layers compute is the same in each."""

from __future__ import annotations

import collections
from pathlib import Path
from typing import Any

import onnx
import pytest
from bundles import export_graph, tiny_model

from vitdeploy.exporters.naming.parts import nodes_by_part
from vitdeploy.models.vit import VisionTransformer
from vitdeploy.specs import Task


def parts_of(model: VisionTransformer, folder: Path, **options: Any) -> dict[str, list[onnx.NodeProto]]:
    export_graph(model, folder, **options)
    graph = onnx.load(folder / "onnx" / "model.onnx").graph
    parts = nodes_by_part(graph.node, {value.name for value in graph.input})
    assert sum(len(nodes) for nodes in parts.values()) == len(graph.node)
    return parts


def operators(nodes: list[onnx.NodeProto]) -> list[str]:
    return [node.op_type for node in nodes]


@pytest.mark.parametrize(
    ("task", "config", "options", "head"),
    [
        (Task.CLASSIFICATION, {}, {}, ["Gather", "Gemm"]),
        (Task.CLASSIFICATION, {"num_hidden_layers": 1}, {}, ["Gather", "Gemm"]),
        (
            Task.MASKED_IMAGE_MODELING,
            {"qkv_bias": False},
            {},
            ["Slice", "Transpose", "Reshape", "Conv", "DepthToSpace"],
        ),
        # the relative positions of each layer are interpolated from sizes that all of them share
        (Task.CLASSIFICATION, {"relative_positions": True}, {"dynamic_image_size": True}, ["Gather", "Gemm"]),
    ],
)
def test_every_layer_has_the_same_nodes(
    task: Task, config: dict[str, Any], options: dict[str, Any], head: list[str], tmp_path: Path
) -> None:
    parts = parts_of(tiny_model(task, **config), tmp_path, **options)
    layers = [f"layers.{index}" for index in range(config.get("num_hidden_layers", 2))]
    assert list(parts) == ["embeddings", *layers, "head"]
    first, last = (collections.Counter(operators(parts[layer])) for layer in (layers[0], layers[-1]))
    if task is Task.CLASSIFICATION and len(layers) > 1:  # of the class token alone: queries, residual, and any bias
        assert last.pop("Slice") == 2 + bool(config.get("relative_positions"))
        last["Concat"] += bool(options.get("dynamic_image_size"))  # which leaves one shape less to work out
    assert +last == first
    for layer in layers:
        assert parts[layer][-1].op_type == "Add"
    assert "Conv" in operators(parts["embeddings"])
    assert operators(parts["head"]) == ["LayerNormalization", *head]
