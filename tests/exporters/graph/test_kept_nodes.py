"""Names of nodes, layers and parts that stay in float32."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from raising import raises

from vitdeploy.errors import UsageError
from vitdeploy.exporters.graph.kept_nodes import kept_nodes
from vitdeploy.exporters.graph.precision import on_data_path

WEIGHTS = {
    "embeddings.projection.weight": (4, 4),
    "layers.0.mlp.fc1.weight": (4, 4),
    "layers.0.mlp.fc1.bias": (4,),
    "layers.1.mlp.fc1.weight": (4, 4),
}


@pytest.fixture(scope="module")
def model() -> ir.Model:
    node = onnx.helper.make_node
    nodes = [
        node("MatMul", ["x", "embeddings.projection.weight"], ["e"]),
        node("MatMul", ["e", "layers.0.mlp.fc1.weight"], ["val_1"]),
        node("Add", ["val_1", "layers.0.mlp.fc1.bias"], ["linear"]),
        node("Gelu", ["linear"], ["gelu"]),
        node("MatMul", ["gelu", "layers.1.mlp.fc1.weight"], ["model.layers.1.val_1"]),
        node("Gelu", ["model.layers.1.val_1"], ["model.layers.1.gelu"]),
        node("Add", ["model.layers.1.gelu", "gelu"], ["y"]),
    ]
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, (2, 4)) for name in "xy"]
    weights = [onnx.numpy_helper.from_array(np.ones(shape, np.float32), name) for name, shape in WEIGHTS.items()]
    graph = onnx.helper.make_graph(nodes, "g", values[:1], values[1:], weights)
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)])
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


@pytest.mark.parametrize(
    ("names", "nodes"),
    [
        ([], ()),
        (["gelu"], ("gelu",)),
        (["block 0, gelu"], ("gelu",)),
        (["Block 1,GELU"], ("model.layers.1.gelu",)),
        (["block 0, MLP, fc1"], ("val_1", "linear")),
        (["layers.0.mlp.fc1", "e"], ("e", "val_1", "linear")),
        (["block 0"], ("val_1", "linear", "gelu")),
        (["layers.1"], ("model.layers.1.val_1", "model.layers.1.gelu", "y")),
        (["embeddings"], ("e",)),
    ],
)
def test_names(names: list[str], nodes: tuple[str, ...], model: ir.Model) -> None:
    assert kept_nodes(names, model, on_data_path(model), "{}") == nodes


def test_a_part_stands_for_those_of_its_nodes_that_can_be_kept(model: ir.Model) -> None:
    products = [node for node in on_data_path(model) if node.op_type == "MatMul"]
    assert kept_nodes(["block 0"], model, products, "{}") == ("val_1",)
    with raises(UsageError, what="keep_fp32", found=("block 0, gelu",)):
        kept_nodes(["block 0, gelu"], model, products, "{}")


def test_a_name_that_is_none_leads_to_the_nearest(model: ir.Model) -> None:
    with raises(UsageError, what="keep_fp32", found=("block 7, MLP, fc1", "no")) as caught:
        kept_nodes(["block 0", "block 7, MLP, fc1", "no"], model, on_data_path(model), "no {}")
    assert "mlp, fc1'?" in str(caught.value)
    assert len(model.graph.initializers) == len(WEIGHTS)
