"""A block that was traced once and repeated is what tracing every block gives."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from bundles import make_feeds, tiny_model
from vitdeploy.exporters import onnx_graph
from vitdeploy.exporters.onnx_graph import export_onnx
from vitdeploy.specs import Task

if TYPE_CHECKING:
    from pathlib import Path

    from vitdeploy.models.vit import VisionTransformer


def export(model: VisionTransformer, folder: Path) -> onnx.ModelProto:
    return onnx.load(folder / export_onnx(model, folder).files[0])


def export_without_repeating(
    model: VisionTransformer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> onnx.ModelProto:
    """All blocks traced: the slice that leaves one of them leaves all, and nothing is repeated."""

    class AllLayers(type(model.layers)):  # type: ignore[misc]
        def __getitem__(self, index: int | slice) -> object:
            return self if isinstance(index, slice) else super().__getitem__(index)

    model.layers = AllLayers(list(model.layers))
    with monkeypatch.context() as patch:
        patch.setattr(onnx_graph, "repeat_first_layer", lambda *_: None)
        return export(model, folder)


@pytest.mark.parametrize("task", list(Task))
def test_the_graph_is_that_of_a_whole_trace(tmp_path: Path, task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(task, num_hidden_layers=4)
    repeated = export(model, tmp_path / "repeated")
    traced = export_without_repeating(model, tmp_path / "traced", monkeypatch)
    assert [node.op_type for node in repeated.graph.node] == [node.op_type for node in traced.graph.node]
    assert sum(node.op_type == "Softmax" for node in traced.graph.node) == 4
    feeds = make_feeds(model, 3)
    answers = [
        ort.InferenceSession(tmp_path / name / "onnx" / "model.onnx").run(None, feeds)
        for name in ("repeated", "traced")
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
