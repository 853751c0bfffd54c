"""Nodes that compute shapes, compared with onnx's inferred types."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from bundles import export_graph, tiny_model

from vitdeploy.runtimes.onnxrt.shape_nodes import shape_nodes
from vitdeploy.specs import Precision

WHOLE = (onnx.TensorProto.INT32, onnx.TensorProto.INT64, onnx.TensorProto.BOOL)


def write(path: Path, text: str, **weights: np.ndarray) -> Path:
    """The model of a graph in ONNX's text format, with these initializers."""
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20, "other" : 1]> {text}')
    model.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in weights.items())
    for node in model.graph.node:
        node.name = node.name or f"of_{node.output[0]}"
    onnx.save(model, path)
    return path


def names(path: Path) -> set[str]:
    return {name.removeprefix("of_") for name, _ in shape_nodes(path)}


@pytest.mark.parametrize("opset", [18, 20, 23])
@pytest.mark.parametrize("precision", [Precision.FP32, Precision.FP16])
def test_of_a_vit_of_any_size_they_are_those_of_whole_numbers(tmp_path: Path, precision: Precision, opset: int) -> None:
    options: dict[str, Any] = {"precision": precision, "opset": opset, "dynamic_image_size": True}
    path = tmp_path / export_graph(tiny_model(), tmp_path, **options).files[0]
    graph = onnx.shape_inference.infer_shapes(onnx.load(path), strict_mode=True).graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.output)}
    nodes = shape_nodes(path)
    assert nodes == {(node.name, node.op_type) for node in graph.node if types[node.output[0]] in WHOLE}
    assert {"Shape", "Concat", "Reshape", "Div"} <= {operator for _, operator in nodes}
    assert {"Concat", "Reshape", "Mul"} <= {node.op_type for node in graph.node if types[node.output[0]] not in WHOLE}


def test_of_a_vit_of_one_size_there_are_none(tmp_path: Path) -> None:
    assert shape_nodes(tmp_path / export_graph(tiny_model(), tmp_path).files[0]) == set()


def test_what_lies_beside_the_file_is_as_large_as_it_is(tmp_path: Path) -> None:
    options: dict[str, Any] = {"dynamic_image_size": True}
    inside = shape_nodes(tmp_path / "a" / export_graph(tiny_model(), tmp_path / "a", **options).files[0])
    outside = shape_nodes(tmp_path / "b" / export_graph(tiny_model(), tmp_path / "b", max_bytes=0, **options).files[0])
    assert inside == outside != set()


def test_a_shape_may_go_through_any_type(tmp_path: Path) -> None:
    path = write(
        tmp_path / "m.onnx",
        """g (float[n, m] x) => (float[k] y) {
            size = Shape(x)
            scale = Cast <to = 1> (size)
            y = Mul(scale, half)
        }""",
        half=np.array([0.5], np.float32),
    )
    assert names(path) == {"size", "scale", "y"}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("(int64[n] x) => (int64[n] y) { y = Add(x, few) }", set()),  # values, though whole numbers
        ("(int64[n] x) => (int64[n] y) { s = Shape(x) y = Gather(x, s) }", {"s"}),
        ("(int64[n] x) => (int64[n] y) { y = Add(few, few) }", {"y"}),
        ("(int64[n] x) => (int64[n] y) { y = Add(few, many) }", set()),  # a table of positions is one
        ("(int64[n] x) => (float[n] y) { s = Shape(x) y = ConstantOfShape(s) }", {"s"}),  # as large as it likes
        ("(int64[n] x) => (float[n] y) { s = Shape(x) t = Expand(few, s) y = Neg(t) }", {"s"}),
        ("(int64[n] x) => (int64[n] y) { s = Shape(x) y = other.Add(s, few) }", {"s"}),
        ("(int64[n] x) => (int64[n] y) { y = Size(x) }", {"y"}),
    ],
)
def test_images_and_what_is_large_are_no_shapes(tmp_path: Path, text: str, found: set[str]) -> None:
    weights = {"few": np.arange(100), "many": np.arange(101)}
    assert names(write(tmp_path / "m.onnx", f"g {text}", **weights)) == found


def test_a_name_that_another_node_has_too_tells_nothing(tmp_path: Path) -> None:
    path = write(tmp_path / "m.onnx", "g (int64[n] x) => (int64[n] y) { s = Shape(x) t = Neg(s) y = Neg(x) }")
    model = onnx.load(path)
    for node in model.graph.node:
        node.name = ""
    onnx.save(model, path)
    assert shape_nodes(path) == {("", "Shape")}


def test_dims_that_are_packed(tmp_path: Path) -> None:
    """As another writer than onnx may have them: field 1 of an initializer as one string of numbers."""
    text = "g (int64[n] x) => (int64[n] y) { s = Shape(x) y = Add(s, w) }"
    for dims, found in ((b"\x02\x03", {"s", "y"}), (b"\x02\xac\x02", {"s"})):
        path = write(tmp_path / "m.onnx", text)
        tensor = b"\x0a" + bytes([len(dims)]) + dims + b"\x10\x07\x42\x01w"  # dims, data_type INT64, name "w"
        graph = b"\x2a" + bytes([len(tensor)]) + tensor + onnx.load(path).graph.SerializeToString()
        path.write_bytes(b"\x3a" + bytes([len(graph)]) + graph)
        assert names(path) == found
