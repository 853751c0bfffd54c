"""Exported graphs: the same function as the model, in few and plain nodes, the same bytes every time."""

from __future__ import annotations

import collections
import copy
import gc
import itertools
import os
import re
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from bundles import (
    FLOAT32_TOLERANCE,
    export_graph,
    make_feeds,
    reference,
    tiny_model,
    worst_difference,
    write_checkpoint_of,
)
from raising import raises

from vitdeploy import __version__
from vitdeploy.errors import CheckFailedError, UsageError
from vitdeploy.exporters.graph.onnx_graph import DEFAULT_OPSET
from vitdeploy.exporters.graph.passes import simplify
from vitdeploy.exporters.graph.tracing import traced
from vitdeploy.models.layers.activations import ACTIVATIONS
from vitdeploy.models.signature import Served, input_specs, output_specs
from vitdeploy.models.vit import VisionTransformer
from vitdeploy.runtimes.onnxrt.runtime import OnnxRuntime
from vitdeploy.specs import OPSETS, Task, TensorSpec

BATCHES = (1, 2, 7)
ONNX_TYPES = {"float32": onnx.TensorProto.FLOAT, "bool": onnx.TensorProto.BOOL}


def export(model: VisionTransformer, folder: Path, **options: Any) -> onnx.ModelProto:
    """Export, compare with the reference on every batch size, and read what was written."""
    exported = export_graph(model, folder, **options)
    assert exported.files == ("onnx/model.onnx",)
    assert [path.name for path in (folder / "onnx").iterdir()] == ["model.onnx"]
    with OnnxRuntime(folder / "onnx" / "model.onnx") as runtime:
        assert runtime.inputs == exported.inputs == input_specs(model.config, model.task)
        assert runtime.outputs == exported.outputs == output_specs(model)
        for batch_size in BATCHES:
            arrays = make_feeds(model, batch_size)
            assert worst_difference(runtime.run(arrays), reference(model, arrays)) <= FLOAT32_TOLERANCE
    return onnx.load(folder / "onnx" / "model.onnx")


def count_operators(proto: onnx.ModelProto) -> collections.Counter[str]:
    assert {node.domain for node in proto.graph.node} == {""}
    return collections.Counter(node.op_type for node in proto.graph.node)


def plain_operators(model: VisionTransformer, opset: int) -> dict[str, int]:
    """What a ViT is made of, and nothing beside it."""
    depth = model.config.num_hidden_layers
    counts = collections.Counter(
        # The patches, a place for the class token, and the positions, which hold it; no size of a batch is asked.
        {"Conv": 1, "Reshape": 1, "Transpose": 1, "Pad": 1, "Add": 1}
    )
    counts["LayerNormalization"] = 2 * depth + 1
    # A block: four projections and two products of attention, two of the MLP; a bias for each of the six projections
    # and a residual for each half; heads are split three times (and the keys transposed in that), and joined once.
    counts.update({"MatMul": 8 * depth, "Add": 8 * depth, "Reshape": 4 * depth, "Transpose": 4 * depth})
    counts.update({"Mul": depth, "Softmax": depth})
    if opset >= 20:
        counts["Gelu"] = depth
    else:  # x * (erf(x / sqrt 2) + 1) * 0.5
        counts.update({"Div": depth, "Erf": depth, "Add": depth, "Mul": 2 * depth})
    if model.task is Task.MASKED_IMAGE_MODELING:  # x * (1 - mask) + token * mask; the decoder
        counts.update({"Unsqueeze": 1, "Cast": 1, "Sub": 1, "Mul": 2, "Add": 1})
        counts.update({"Slice": 1, "Transpose": 1, "Reshape": 1, "Conv": 1, "DepthToSpace": 1})
    else:
        counts.update({"Gather": 1, "Gemm": 1})
    if model.task is Task.FEATURES:
        counts["Tanh"] += 1
    if model.task is Task.CLASSIFICATION and depth > 1:  # the last layer's queries and residual of the class token
        counts["Slice"] += 2
    return dict(counts)


@pytest.mark.parametrize(
    ("opset", "task"),
    [*((opset, Task.CLASSIFICATION) for opset in OPSETS), *itertools.product((18, 23), [*Task][1:])],
    ids=str,
)
def test_every_opset_gives_the_same_function_in_plain_nodes(tmp_path: Path, opset: int, task: Task) -> None:
    model = tiny_model(task, num_hidden_layers=2 if opset == DEFAULT_OPSET else 1)
    proto = export(model, tmp_path, opset=opset)
    onnx.checker.check_model(proto, full_check=True)
    assert [(item.domain, item.version) for item in proto.opset_import] == [("", opset)]
    assert count_operators(proto) == plain_operators(model, opset)

    for specs, values in (
        (input_specs(model.config, task), proto.graph.input),
        (output_specs(model), proto.graph.output),
    ):
        found = [
            (
                value.name,
                value.type.tensor_type.elem_type,
                tuple(axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim),
            )
            for value in values
        ]
        assert found == [(spec.name, ONNX_TYPES[spec.dtype], spec.shape) for spec in specs]
    assert (proto.producer_name, proto.producer_version) == ("vitdeploy", __version__)
    assert not list(proto.functions)
    check_that_nothing_is_said_of_this_machine(proto)


def check_that_nothing_is_said_of_this_machine(proto: onnx.ModelProto) -> None:
    for message in (proto, proto.graph, *proto.graph.node, *proto.graph.initializer, *proto.graph.value_info):
        assert not message.metadata_props
        assert not message.doc_string
    content = proto.SerializeToString()
    for path in (Path(__file__).parents[3], Path(torch.__file__).parent.parent, Path.home(), Path.cwd()):
        assert str(path) == "/" or os.fsencode(path) not in content
    assert b".py" not in content


def test_a_vit_of_twelve_layers_has_at_most_420_nodes(tmp_path: Path) -> None:
    # Wide enough for a position table, and for weights, that no default limit of constant folding lets through.
    model = tiny_model(num_hidden_layers=12, hidden_size=96, intermediate_size=384, image_size=(128, 128))
    proto = export(model, tmp_path)
    assert len(proto.graph.node) <= 420
    assert count_operators(proto) == plain_operators(model, DEFAULT_OPSET)


class AllActivations(torch.nn.Module):
    """One input, and an output of each activation by its name."""

    inputs = (TensorSpec("x", "float32", ("batch", 1000)),)
    outputs = tuple(TensorSpec(name, "float32", ("batch", 1000)) for name in ACTIVATIONS)

    def example_inputs(self, batch_size: int) -> tuple[torch.Tensor, ...]:
        return (torch.zeros(batch_size, 1000),)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {name: function(x) for name, function in ACTIVATIONS.items()}


def test_every_activation() -> None:
    module: Any = AllActivations().eval()
    graph = traced(module, DEFAULT_OPSET)
    simplify(graph)
    proto = ir.to_proto(graph)
    count = count_operators(proto)
    assert (count["Gelu"], count["Tanh"]) == (2, 2)  # exact and approximate, for all but gelu_fast; its own and tanh's
    assert count["Erf"] == 1  # laplace's
    x = np.linspace(-12, 12, 2000, dtype=np.float32).reshape(2, 1000)
    found = ort.InferenceSession(proto.SerializeToString()).run(None, {proto.graph.input[0].name: x})
    for (name, want), value in zip(module(torch.from_numpy(x).double()).items(), found, strict=True):
        np.testing.assert_allclose(value, want, rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    ("task", "config", "size"),
    [
        (Task.CLASSIFICATION, {"head_dim": 5, "qkv_bias": False, "labels": ()}, None),
        (Task.FEATURES, {"pooler_output_size": 5, "patch_size": (8, 5), "num_channels": 1}, (24, 47)),
        (Task.MASKED_IMAGE_MODELING, {"encoder_stride": 3, "num_hidden_layers": 1}, (40, 16)),
    ],
    ids=["other heads", "one channel", "masked"],
)
def test_unusual_models(tmp_path: Path, task: Task, config: dict[str, Any], size: tuple[int, int] | None) -> None:
    """A resized model brings its position table with it: the graph has no Resize, for any size or shape."""
    model = tiny_model(task, **config)
    if size is not None:
        model.resize(size)
    proto = export(model, tmp_path)
    count = count_operators(proto)
    assert not {"Resize", "If", "Loop", "Where", "IsNaN"} & set(count)
    assert count["Expand"] == count["Shape"] == 0
    if not model.config.qkv_bias:
        assert count["Add"] == plain_operators(model, DEFAULT_OPSET)["Add"] - 3 * model.config.num_hidden_layers
    tables = [list(item.dims) for item in proto.graph.initializer]
    assert [1, 1 + model.config.num_patches, model.config.hidden_size] in tables


def test_the_model_stays_as_it_was_and_training_has_no_effect(tmp_path: Path) -> None:
    model = tiny_model(num_hidden_layers=1, hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5)
    model.train()
    before = {name: (tensor.data_ptr(), tensor.clone()) for name, tensor in model.state_dict().items()}
    randomness = torch.get_rng_state()
    count = count_operators(export(model, tmp_path))
    assert not {"Dropout", "RandomUniformLike", "Bernoulli"} & set(count)
    assert torch.equal(torch.get_rng_state(), randomness)
    assert all(module.training for module in model.modules())
    assert model.attention == "sdpa"
    assert {layer.attention.kind for layer in model.layers} == {"sdpa"}  # type: ignore[union-attr]
    assert not any(parameter.requires_grad for parameter in model.parameters())
    for name, tensor in model.state_dict().items():
        place, value = before[name]
        assert tensor.data_ptr() == place
        assert torch.equal(tensor, value)


def test_nothing_keeps_the_weights_when_the_model_is_gone(tmp_path: Path) -> None:
    """Those of a large model would stand beside the artifact's when that is proven."""
    model = tiny_model()
    weights = {name: weakref.ref(parameter) for name, parameter in model.named_parameters()}
    export_graph(model, tmp_path)
    del model
    gc.collect()
    assert [name for name, weight in weights.items() if weight() is not None] == []


@pytest.mark.parametrize("opset", [-1, 0, 17, 24])
def test_an_opset_out_of_range(tmp_path: Path, opset: int) -> None:
    with raises(UsageError, what="opset", found=opset):
        export_graph(tiny_model(), tmp_path, opset=opset)
    assert not list(tmp_path.iterdir())


def test_a_graph_of_another_type_than_stated_is_a_failed_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitdeploy.exporters.graph.onnx_graph.set_precision", lambda *_: None)
    with raises(CheckFailedError, what="graph", expected=re.compile("float16"), found=re.compile("float32")):
        export_graph(tiny_model(num_hidden_layers=0), tmp_path, io_dtype="float16")
    assert not list(tmp_path.iterdir())


def test_a_graph_that_is_not_valid_is_a_failed_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, *, full_check: bool) -> None:
        assert full_check
        raise onnx.checker.ValidationError("the reason\nmore")

    monkeypatch.setattr(onnx.checker, "check_model", refuse)
    with raises(CheckFailedError, what="graph", found="the reason"):
        export_graph(tiny_model(num_hidden_layers=0), tmp_path)


EXPORT = """
import pathlib, sys
from vitdeploy.exporters.graph.onnx_graph import trace_onnx
from vitdeploy.sources.read import read_checkpoint
from vitdeploy.specs import ExportSpec
checkpoint = read_checkpoint(sys.argv[1])
trace_onnx(checkpoint.model, ExportSpec(), checkpoint.processor).write(pathlib.Path(sys.argv[2]))
"""


def test_the_bytes_are_the_same_in_every_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With another order of sets, in another folder, and the second time in one process."""
    monkeypatch.setattr("torch.onnx.export", torch.onnx.export.__wrapped__)  # type: ignore[attr-defined]
    model = tiny_model(Task.MASKED_IMAGE_MODELING, num_hidden_layers=1)
    contents = []
    for name in ("first", "second"):
        export_graph(model, tmp_path / name)
        contents.append((tmp_path / name / "onnx" / "model.onnx").read_bytes())
    checkpoint = write_checkpoint_of(model, tmp_path / "checkpoint")
    environ = {**os.environ, "PYTHONHASHSEED": "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"}
    command = [sys.executable, "-c", EXPORT, str(checkpoint), str(tmp_path / "third")]
    subprocess.run(command, check=True, cwd=tmp_path, env=environ)
    contents.append((tmp_path / "third" / "onnx" / "model.onnx").read_bytes())
    assert len(set(contents)) == 1


@pytest.mark.parametrize(
    ("task", "depth", "dynamic"),
    [
        (Task.CLASSIFICATION, 0, True),
        (Task.FEATURES, 0, False),
        (Task.CLASSIFICATION, 1, False),
        (Task.FEATURES, 1, True),
        (Task.CLASSIFICATION, 3, True),
        (Task.FEATURES, 3, False),
    ],
    ids=str,
)
def test_every_layer_can_be_looked_into(tmp_path: Path, task: Task, depth: int, dynamic: bool) -> None:
    model = tiny_model(task, num_hidden_layers=depth)
    asked = ["hidden_states", *(["attentions"] if depth else []), *(spec.name for spec in output_specs(model))]
    exported = export_graph(model, tmp_path, outputs=asked, dynamic_image_size=dynamic)
    assert exported.outputs == output_specs(model, asked, dynamic_image_size=dynamic)
    proto = onnx.load(tmp_path / exported.files[0])
    assert not [tensor.name for tensor in proto.graph.initializer if tensor.name.startswith("model.")]
    with OnnxRuntime(tmp_path / exported.files[0]) as runtime:
        assert runtime.outputs == exported.outputs
        for size in ((32, 32), (24, 50)) if dynamic else ((32, 32),):
            pixels = np.random.default_rng(0).standard_normal((2, 3, *size), np.float32)
            with torch.inference_mode():
                exact = Served(copy.deepcopy(model).double().with_attention("eager"), asked, dynamic_image_size=dynamic)
                wanted = exact(torch.from_numpy(pixels))
            found = runtime.run({"pixel_values": pixels})
            assert worst_difference(found, {name: value.numpy() for name, value in wanted.items()}) <= FLOAT32_TOLERANCE


def test_a_dynamic_size_costs_few_nodes(tmp_path: Path) -> None:
    """The sizes are worked out once, not in every layer."""
    counts = []
    for depth in (2, 4):
        exported = export_graph(tiny_model(num_hidden_layers=depth), tmp_path / str(depth), dynamic_image_size=True)
        counts.append(count_operators(onnx.load(tmp_path / str(depth) / exported.files[0])))
    layer = collections.Counter(plain_operators(tiny_model(num_hidden_layers=4), DEFAULT_OPSET))
    layer -= collections.Counter(plain_operators(tiny_model(num_hidden_layers=2), DEFAULT_OPSET))
    assert counts[1] - counts[0] == layer
