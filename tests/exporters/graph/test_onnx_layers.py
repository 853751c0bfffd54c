"""A block traced once and repeated equals tracing every block."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from bundles import export_graph, make_feeds, tiny_model

from vitdeploy.exporters.graph.onnx_graph import DEFAULT_OPSET
from vitdeploy.exporters.graph.passes import simplify
from vitdeploy.exporters.graph.tracing import leading_tokens, traced
from vitdeploy.models.signature import Served
from vitdeploy.models.vit import VisionTransformer
from vitdeploy.specs import Task


def export(model: VisionTransformer, folder: Path) -> onnx.ModelProto:
    return onnx.load(folder / export_graph(model, folder).files[0])


@pytest.mark.parametrize("task", list(Task))
def test_the_graph_is_that_of_a_whole_trace(tmp_path: Path, task: Task) -> None:
    model = tiny_model(task, num_hidden_layers=3)
    repeated = export(model, tmp_path)
    tokens = leading_tokens(Served(model))
    traced_whole = traced(Served(model.with_attention("eager"), last_tokens=tokens).eval(), DEFAULT_OPSET)
    simplify(traced_whole)
    whole = ir.to_proto(traced_whole)
    onnx.save(whole, tmp_path / "whole.onnx")
    assert [node.op_type for node in repeated.graph.node] == [node.op_type for node in whole.graph.node]
    assert sum(node.op_type == "Softmax" for node in whole.graph.node) == 3
    feeds = make_feeds(model, 3)
    answers = [
        ort.InferenceSession(path).run(None, feeds)
        for path in (tmp_path / "onnx" / "model.onnx", tmp_path / "whole.onnx")
    ]
    for a, b in zip(*answers, strict=True):
        np.testing.assert_array_equal(a, b)


def test_every_layer_has_its_own_weights(tmp_path: Path) -> None:
    """A layer whose weights went to another would change nothing in a model of equal layers."""
    model = tiny_model(num_hidden_layers=3)
    graph = export(model, tmp_path).graph
    weights = [onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer]
    for index in range(3):
        want = model.state_dict()[f"layers.{index}.mlp.fc1.weight"].numpy().T
        assert sum(np.array_equal(want, found) for found in weights) == 1
