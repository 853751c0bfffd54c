"""Summaries of ONNX files, on handmade models in mixed precision."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper
from onnx_models import BRAIN, HALF, SINGLE, WIDTH, mixed_model
from raising import raises

from vitdeploy.assess.inspection.graph_summary import GraphSummary, merge_layers
from vitdeploy.assess.inspection.onnx_reader import read_onnx
from vitdeploy.errors import BundleError


def read(model: onnx.ModelProto, folder: Path) -> GraphSummary:
    onnx.save(model, folder / "model.onnx")
    return read_onnx(folder / "model.onnx")


def test_counts_and_sizes(tmp_path: Path) -> None:
    summary = read(mixed_model([HALF, HALF, BRAIN]), tmp_path)
    assert summary.versions == {"IR version": 10, "opset": 20}
    assert list(summary.node_types.items()) == [
        ("Cast", 8), ("Add", 6), ("MatMul", 5), ("LayerNormalization", 3), ("Shape", 1),
    ]  # fmt: skip
    assert (summary.nodes, summary.weights) == (23, 11)
    product, bias = WIDTH * WIDTH * 2, WIDTH * 2
    assert summary.weight_bytes == {
        "float32": WIDTH * WIDTH * 4 + 3 * WIDTH * 4,
        "float16": 2 * (product + bias) + WIDTH * 3 * 2,
        "bfloat16": product + bias,
    }
    assert list(summary.weight_bytes) == ["float32", "float16", "bfloat16"]
    assert (summary.duplicates, summary.duplicate_bytes) == (1, product)


def test_precision_by_layer(tmp_path: Path) -> None:
    summary = read(mixed_model([HALF, HALF, BRAIN, SINGLE]), tmp_path)
    layer = {"float16": 3, "float32": 3}
    assert summary.layers == {
        "embeddings": {"float32": 1},
        "layers.0": layer,
        "layers.1": layer,
        "layers.2": {"bfloat16": 3, "float32": 3},
        "layers.3": {"float32": 6},
        "head": {"float16": 2, "float32": 1},
    }
    assert list(merge_layers(summary.layers)) == ["embeddings", "layers 0-1", "layer 2", "layer 3", "head"]


def test_the_tail_of_a_single_layer_is_not_the_head(tmp_path: Path) -> None:
    summary = read(mixed_model([HALF]), tmp_path)
    assert summary.layers["head"] == {"float16": 2, "float32": 1}
    assert summary.layers["layers.0"] == {"float16": 3, "float32": 3}


def test_weights_in_another_file_are_counted_and_not_loaded(tmp_path: Path) -> None:
    inside = read(mixed_model([HALF, HALF]), tmp_path)
    onnx.save(
        mixed_model([HALF, HALF]), tmp_path / "model.onnx", save_as_external_data=True, location="x.data",
        size_threshold=0,
    )  # fmt: skip
    (tmp_path / "x.data").unlink()
    outside = read_onnx(tmp_path / "model.onnx")
    assert (inside.duplicates, outside.duplicates) == (1, 0)
    assert (outside.weights, outside.weight_bytes) == (inside.weights, inside.weight_bytes)
    assert outside.layers == inside.layers


def test_a_quantized_weight_belongs_to_the_layer_that_uses_it(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["embedded"]),
        helper.make_node("DequantizeLinear", ["w", "scale"], ["weight"]),
        helper.make_node("MatMul", ["embedded", "weight"], ["layers.0.product"]),
        helper.make_node("QuantizeLinear", ["layers.0.product", "scale", "zero"], ["y"]),
    ]
    weights = [
        helper.make_tensor("w", TensorProto.INT4, (4, 4), list(range(-8, 8))),
        helper.make_tensor("scale", SINGLE, (), [0.5]),
        helper.make_tensor("zero", TensorProto.UINT8, (), [3]),
    ]
    ends = [helper.make_tensor_value_info(name, dtype, [1, 4]) for name, dtype in (("x", SINGLE), ("y", 2))]
    graph = helper.make_graph(nodes, "quantized", ends[:1], ends[1:], weights)
    summary = read(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), tmp_path)
    assert summary.weight_bytes == {"int4": 8, "float32": 4, "uint8": 1}
    assert summary.layers == {"embeddings": {"float32": 1}, "layers.0": {"float32": 2}, "head": {"uint8": 1}}


def test_operators_of_others_and_graphs_without_layers(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Fast", ["x"], ["fast"], domain="com.example"),
        helper.make_node("Slow", ["fast"], ["y"], domain="com.example"),
    ]
    ends = [helper.make_tensor_value_info(name, HALF, [1]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "custom", ends[:1], ends[1:])
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.example", 3)]
    summary = read(helper.make_model(graph, opset_imports=opsets, ir_version=10), tmp_path)
    assert summary.versions == {"IR version": 10, "opset": 20, "opset com.example": 3}
    assert summary.node_types == {"com.example.Fast": 1, "com.example.Slow": 1}
    assert summary.layers == {"graph": {"float16": 1, "unknown": 1}}


@pytest.mark.parametrize("content", [b"", b"no model", b"\x08\x0a"], ids=["empty", "text", "no graph"])
def test_what_is_no_model_is_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    with raises(BundleError, where=tmp_path / "model.onnx", expected="ONNX"):
        read_onnx(tmp_path / "model.onnx")


def test_an_element_type_that_there_is_not_is_refused(tmp_path: Path) -> None:
    model = mixed_model([HALF])
    model.graph.initializer[0].data_type = 99
    with raises(BundleError, expected="ONNX"):
        read(model, tmp_path)


def test_a_graph_out_of_order_is_refused(tmp_path: Path) -> None:
    model = mixed_model([HALF])
    nodes = list(model.graph.node)
    model.graph.ClearField("node")
    model.graph.node.extend(reversed(nodes))
    with raises(BundleError, expected="ONNX"):
        read(model, tmp_path)


@pytest.mark.parametrize("elem_type", [999, -5])
@pytest.mark.parametrize("place", ["value", "output", "input"])
def test_a_value_of_a_type_that_there_is_not_is_refused(tmp_path: Path, place: str, elem_type: int) -> None:
    model = mixed_model([HALF])
    graph = model.graph
    value = {"value": graph.value_info, "output": graph.output, "input": graph.input}[place]
    if place == "value":
        value.add().name = graph.node[0].output[0]
    value[0].type.tensor_type.elem_type = elem_type
    with raises(BundleError, expected="ONNX"):
        read(model, tmp_path)


def test_a_value_of_no_type_counts_as_it_is_inferred(tmp_path: Path) -> None:
    model = mixed_model([HALF])
    want = read(model, tmp_path).layers
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.UNDEFINED
    assert read(model, tmp_path).layers == want
