"""Common subexpressions are eliminated."""

from __future__ import annotations

from pathlib import Path

import onnx
from bundles import export_graph, tiny_model
from small_graphs import check, graph_of, operators

from vitdeploy.exporters.graph.passes.repeated_nodes import merge_repeated_nodes


def test_equal_nodes_are_one() -> None:
    model = graph_of(
        "g (float[n, 4] x) => (float[n, 4] y) { a = Relu(x) b = Relu(x) c = Neg(a) d = Neg(b) y = Add(c, d) }"
    )
    check(merge_repeated_nodes, model)
    assert operators(model) == {"Relu": 1, "Neg": 1, "Add": 1}


def test_attributes_and_outputs_count() -> None:
    model = graph_of(
        "g (float[n, 4] x) => (float[n, 4] y, float[n, 4] z, float[n, 4] v) {"
        " a = Softmax<axis = 0>(x) b = Softmax<axis = 1>(x) v = Add(a, b) y = Relu(x) z = Relu(x) }"
    )
    check(merge_repeated_nodes, model)
    assert operators(model)["Softmax"] == 2
    assert [value.name for value in model.graph.outputs] == ["y", "z", "v"]


def test_random_numbers_are_drawn_by_each() -> None:
    model = graph_of(
        "g (float[n, 4] x) => (float[n, 4] y) { a = RandomNormalLike(x) b = RandomNormalLike(x) y = Sub(a, b) }"
    )
    merge_repeated_nodes(model)
    assert operators(model) == {"RandomNormalLike": 2, "Sub": 1}


def test_a_model_asks_its_size_once(tmp_path: Path) -> None:
    exported = export_graph(tiny_model(num_hidden_layers=3), tmp_path, dynamic_image_size=True)
    nodes = onnx.load(tmp_path / exported.files[0]).graph.node
    asked = [(tuple(node.input), str(node.attribute)) for node in nodes if node.op_type == "Shape"]
    assert len(asked) == len(set(asked))
