"""The last layer computes only the tokens that the head reads, with the same outputs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import onnx
import pytest
import torch
from bundles import FLOAT32_TOLERANCE, export_graph, make_feeds, reference, tiny_model, worst_difference

from vitdeploy.exporters.graph.tracing import leading_tokens
from vitdeploy.models.config import ViTConfig
from vitdeploy.models.signature import Served
from vitdeploy.models.vit import VisionTransformer
from vitdeploy.runtimes.onnxrt.runtime import OnnxRuntime
from vitdeploy.specs import Task

if TYPE_CHECKING:
    from pathlib import Path

TEACHER = {"teacher": True, "distillation_token": True}


def model_of(task: Task = Task.CLASSIFICATION, *, teacher: bool = False, **config: Any) -> VisionTransformer:
    model = tiny_model(task, **config)
    if not teacher:
        return model
    distilled = VisionTransformer(ViTConfig.from_dict(model.config.to_dict()), task, teacher=True)
    generator = torch.Generator().manual_seed(7)
    for parameter in distilled.parameters():
        parameter.data.normal_(0, 0.2, generator=generator)
    return distilled.eval()


@pytest.mark.parametrize(
    ("tokens", "task", "config", "spec"),
    [
        (1, Task.CLASSIFICATION, {"num_hidden_layers": 3}, {}),
        (1, Task.CLASSIFICATION, {}, {"dynamic_image_size": True}),
        (1, Task.CLASSIFICATION, {"relative_positions": True, "layer_scale": True}, {}),
        (1, Task.CLASSIFICATION, {}, {"outputs": ("logits", "hidden_states.1")}),
        (1, Task.FEATURES, {}, {"outputs": ("pooler_output",)}),
        (2, Task.CLASSIFICATION, TEACHER, {}),
    ],
    ids=["class token", "any size", "relative positions", "an earlier state", "pooled features", "two tokens"],
)
def test_the_outputs_are_the_same(
    tmp_path: Path, tokens: int, task: Task, config: dict[str, Any], spec: dict[str, Any]
) -> None:
    model = model_of(task, **config)
    outputs = spec.get("outputs")
    assert leading_tokens(Served(model, outputs)) == tokens
    path = tmp_path / export_graph(model, tmp_path, **spec).files[0]
    graph = onnx.shape_inference.infer_shapes(onnx.load(path)).graph
    last = model.config.num_hidden_layers - 1
    (product,) = (node for node in graph.node if f"layers.{last}.mlp.fc2.weight.transposed" in node.input)
    (shape,) = (
        [axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in graph.value_info
        if value.name == product.output[0]
    )
    assert shape[1] == tokens
    arrays = make_feeds(model, 3)
    wanted = reference(model, arrays)
    with OnnxRuntime(path) as runtime:
        found = runtime.run(arrays)
    if outputs and "hidden_states.1" in outputs:
        assert found.pop("hidden_states.1").shape[1] > tokens
    wanted = {name: wanted[name] for name in found}
    assert worst_difference(found, wanted) <= FLOAT32_TOLERANCE


@pytest.mark.parametrize(
    ("task", "config", "outputs"),
    [
        (Task.CLASSIFICATION, {"classification_pooler": "mean"}, None),
        (Task.CLASSIFICATION, {"classification_pooler": "mean+norm"}, None),
        (Task.FEATURES, {"feature_pooler": "attention"}, ("pooler_output",)),
        (Task.CLASSIFICATION, {"classification_pooler": "cls+mean"}, None),
        (Task.CLASSIFICATION, {"num_hidden_layers": 1}, None),
        (Task.CLASSIFICATION, {}, ("logits", "hidden_states.2")),
        (Task.CLASSIFICATION, {}, ("logits", "attentions.1")),
        (Task.FEATURES, {}, None),
        (Task.MASKED_IMAGE_MODELING, {}, None),
    ],
)
def test_every_token_that_an_output_needs_is_computed(
    task: Task, config: dict[str, Any], outputs: tuple[str, ...] | None
) -> None:
    assert leading_tokens(Served(tiny_model(task, **config), outputs)) is None
