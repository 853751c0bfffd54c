"""Rotary positions in graphs: constants at a fixed size, no branch at any, always float32, and the sign."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from bundles import sign_again
from compiler import build_engine
from families import HEADS, random_config
from faults import copy_of
from onnx import TensorProto, numpy_helper
from raising import raises

import vitdeploy
from vitdeploy.assess.debug.layers import compare_layers
from vitdeploy.errors import CheckFailedError
from vitdeploy.exporters.graph import tracing
from vitdeploy.exporters.graph.initializers import ROTARY, register
from vitdeploy.exporters.graph.passes import simplify
from vitdeploy.models.layers.rotary import Rotation

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Checkpoint, WriteCheckpoint
    from vitdeploy.bundle.bundle import Bundle

DINOV3 = next(head for head in HEADS if head.family == "dinov3_vit")
COS, SIN = f"{ROTARY}cos", f"{ROTARY}sin"
HALF = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}


@pytest.fixture(scope="module")
def checkpoint(write_checkpoint: WriteCheckpoint) -> Checkpoint:
    return write_checkpoint(DINOV3, random_config(DINOV3, 1) | {"num_register_tokens": 4}, seed=1)


@pytest.fixture(scope="module")
def exported(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return vitdeploy.export(checkpoint.folder, output=tmp_path_factory.mktemp("rotary") / "out")


def graph_of(bundle: Bundle) -> onnx.GraphProto:
    (artifact,) = bundle.manifest.artifacts
    model = onnx.load(bundle.path / artifact.files[0].path)
    return onnx.shape_inference.infer_shapes(model, strict_mode=True).graph


def test_positions_of_a_fixed_size_are_constants(checkpoint: Checkpoint, exported: Bundle) -> None:
    graph, config = graph_of(exported), checkpoint.config
    assert not {"If", "Tile", "Expand", "Cos", "Sin", "Range"} & {node.op_type for node in graph.node}
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    assert config.rotary is not None
    weight = checkpoint.load().get_parameter("embeddings.patch_embeddings.projection.weight")
    rotation = Rotation(config.rotary, config.grid_size, 5, config.attention_head_dim, weight)
    np.testing.assert_allclose(constants[COS], rotation.cos, atol=1e-6)
    np.testing.assert_allclose(constants[SIN], rotation.sin, atol=1e-6)


def test_positions_of_any_size_have_no_branch(checkpoint: Checkpoint, tmp_path: Path) -> None:
    graph = vitdeploy.GraphOptions(dynamic_image_size=True)
    bundle = vitdeploy.export(checkpoint.folder, graph=graph, output=tmp_path / "out")
    operators = Counter(node.op_type for node in graph_of(bundle).node)
    assert not {"If", "Tile", "Expand", "Loop"} & operators.keys()
    assert operators["Cos"] == operators["Sin"] == 1  # for all layers
    build_engine(bundle)


@pytest.mark.parametrize(("precision", "dynamic"), [("fp16", False), ("fp16", True), ("bf16", False)])
def test_half_precision_rotates_in_float32(
    checkpoint: Checkpoint, tmp_path: Path, precision: str, *, dynamic: bool
) -> None:
    options = vitdeploy.GraphOptions(dynamic_image_size=dynamic)
    bundle = vitdeploy.export(checkpoint.folder, precision=precision, output=tmp_path / "out", graph=options)
    graph, half = graph_of(bundle), HALF[precision]
    types = {value.name: value.type.tensor_type.elem_type for value in graph.value_info}
    types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    assert types[COS] == types[SIN] == TensorProto.FLOAT
    products = [node.output[0] for node in graph.node if {COS, SIN} & set(node.input)]
    sums = [node for node in graph.node if node.op_type == "Add" and set(node.input) <= set(products)]
    assert len(products) == 2 * len(sums) == 4 * checkpoint.config.num_hidden_layers
    assert {types[name] for name in (*products, *(node.output[0] for node in sums))} == {TensorProto.FLOAT}
    assert {types[node.output[0]] for node in graph.node if node.op_type == "MatMul"} == {half}
    assert "rotary positions" in bundle.manifest.artifacts[0].options["float32_operators"]
    build_engine(bundle)


def flip(graph: ir.Graph) -> None:
    """Rotate the queries and keys of layer 1 the other way."""
    nodes = [node for node in graph if str(node.outputs[0].name).startswith("model.layers.1.")]
    sines = graph.initializers[SIN]
    assert sines.const_value is not None
    wrong = register(graph, "wrong", ir.tensor(-sines.const_value.numpy()))
    users = [(node, index) for node in nodes for index, value in enumerate(node.inputs) if value is sines]
    assert len(users) == 2  # queries and keys
    for node, index in users:
        node.replace_input_with(index, wrong)


def test_a_rotation_the_other_way_is_caught_by_export(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def simplify_and_flip(model: ir.Model) -> None:
        simplify(model)
        flip(model.graph)

    monkeypatch.setattr(tracing, "simplify", simplify_and_flip)
    with raises(CheckFailedError, where="onnx-fp32"):
        vitdeploy.export(checkpoint.folder, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_rotation_the_other_way_is_found_in_its_layer(exported: Bundle, tmp_path: Path) -> None:
    assert compare_layers(exported).status == "passed"
    spoilt = copy_of(exported, tmp_path / "copy")
    path = spoilt.path / spoilt.manifest.artifacts[0].files[0].path
    model = onnx.load(path)
    (sines,) = (tensor for tensor in model.graph.initializer if tensor.name == SIN)
    model.graph.initializer.append(numpy_helper.from_array(-numpy_helper.to_array(sines), "wrong"))
    products = [node for node in model.graph.node if SIN in node.input]
    for node in products[2:4]:  # of the second layer: queries and keys
        node.input[list(node.input).index(SIN)] = "wrong"
    onnx.save(model, path)
    (found,) = compare_layers(sign_again(spoilt)).results
    assert (found.status, found.first) == ("failed", "layers.1")
    assert [part.part for part in found.parts if not part.worst.within(found.tolerance)] == ["layers.1"]
