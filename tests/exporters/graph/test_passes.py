"""Passes over a graph, each by itself and all in their order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from bundles import export_graph, tiny_model
from small_graphs import check, graph_of, operators

from vitdeploy.exporters.graph.passes import (
    PASSES,
    drop_dead_code,
    drop_superfluous_nodes,
    fold_constants,
    merge_duplicated_constants,
    merge_repeated_nodes,
    simplify,
)
from vitdeploy.exporters.graph.tracing import traced
from vitdeploy.models.signature import Served


def test_each_pass_leaves_work_for_the_next() -> None:
    model = graph_of(
        "g (float[n, 4] x) => (float[n, 4] y) {"
        " s = Constant<value_ints = [0, 4]>() t = Constant<value_ints = [0, 4]>() zero = Sub(one, one)"
        " a = Add(x, zero) b = Reshape(a, s) c = Reshape(a, t) d = Exp(c) y = Mul(b, c) }",
        one=np.array(1, np.float32),
    )
    check(simplify, model)
    assert operators(model)["Mul"] == 1
    assert not {"Add", "Sub", "Exp", "Constant"} & set(operators(model))


def test_every_pass_says_its_rule() -> None:
    for rewrite in PASSES:
        assert rewrite.__doc__
        assert "in place" in rewrite.__doc__


def test_what_is_made_of_weights_is_a_weight() -> None:
    table = np.arange(40_000, dtype=np.float32).reshape(4, 10_000)  # beyond the library's own limits
    model = graph_of("g (float[n, 4] x) => (float[n, 10000] y) { t = Add(w, w) u = Neg(t) y = MatMul(x, u) }", w=table)
    check(fold_constants, model)
    assert operators(model) == {"MatMul": 1}
    (weight,) = [value for value in model.graph.initializers.values() if value.uses()]
    assert weight.const_value is not None
    np.testing.assert_array_equal(weight.const_value.numpy(), -2 * table)


def test_a_transposed_weight_keeps_its_name() -> None:
    weight = np.arange(12, dtype=np.float32).reshape(3, 4)
    model = graph_of(
        "g (float[n, 4] x) => (float[n, 3] y) { t = Transpose <perm=[1, 0]> (w) y = MatMul(x, t) }", w=weight
    )
    check(fold_constants, model)
    used = {name: value.const_value for name, value in model.graph.initializers.items() if value.uses()}
    assert list(used) == ["w.transposed"]
    np.testing.assert_array_equal(used["w.transposed"].numpy(), weight.T)  # type: ignore[union-attr]


def test_a_size_is_known_where_its_axis_is_fixed() -> None:
    fixed = "g (float[2, 4] x) => (float[2, 4] y) { s = Shape(x) a = Relu(x) y = Reshape(a, s) }"
    free = "g (float[n, 4] x) => (float[n, 4] y) { s = Shape(x) a = Relu(x) y = Reshape(a, s) }"
    for text, shapes in ((fixed, 0), (free, 1)):
        model = graph_of(text)
        check(fold_constants, model)
        assert operators(model).get("Shape", 0) == shapes


def test_random_numbers_are_drawn_at_every_run() -> None:
    model = graph_of(
        "g (float[n, 4] x) => (float[n, 4] y) { r = RandomNormalLike(w) y = Add(x, r) }", w=np.ones(4, np.float32)
    )
    fold_constants(model)
    assert operators(model) == {"RandomNormalLike": 1, "Add": 1}


def test_the_position_table_of_a_model_is_one_weight() -> None:
    model = tiny_model(num_hidden_layers=1, hidden_size=96, image_size=(128, 128))
    graph = traced(Served(model.with_attention("eager")).eval(), 20)
    fold_constants(graph)
    tokens = 1 + model.config.num_patches
    shapes = [tuple(value.shape or ()) for value in graph.graph.initializers.values() if value.uses()]
    assert (1, tokens, 96) in shapes


NUMBERS = {"zero": np.array(0, np.float32), "one": np.array(1, np.float32), "w": np.ones((4, 4), np.float32)}


@pytest.mark.parametrize(
    ("nodes", "left"),
    [
        ("a = Add(x, zero) b = Mul(a, one) y = Relu(b)", {"Relu": 1}),
        ("a = Identity(x) b = Cast<to = 1>(a) y = Relu(b)", {"Relu": 1}),
        ("a = Transpose<perm = [1, 0]>(x) b = Transpose<perm = [1, 0]>(a) y = Relu(b)", {"Relu": 1}),
        ("a = Mul(x, w2) y = Relu(a)", {"Mul": 1, "Relu": 1}),
    ],
)
def test_rules_for_superfluous_nodes(nodes: str, left: dict[str, int]) -> None:
    model = graph_of(f"g (float[n, 4] x) => (float[n, 4] y) {{ {nodes} }}", **NUMBERS, w2=np.full(4, 2, np.float32))
    check(drop_superfluous_nodes, model)
    assert operators(model) == left


def test_a_value_that_is_an_output_keeps_its_name() -> None:
    model = graph_of(
        "g (float[n, 4] x) => (float[4, n] t, float[n, 4] y, float[n, 4] z) {"
        " t = Transpose<perm = [1, 0]>(x) y = Transpose<perm = [1, 0]>(t) z = Identity(x) }"
    )
    check(drop_superfluous_nodes, model)
    assert operators(model)["Transpose"] >= 1
    assert operators(model)["Identity"] >= 1  # an output must not be an input


def test_one_value_under_two_names_stays_two_outputs() -> None:
    model = graph_of("g (float[n, 4] x) => (float[n, 4] y, float[n, 4] z) { y = Exp(x) z = Identity(y) }")
    check(drop_superfluous_nodes, model)
    assert operators(model) == {"Exp": 1, "Identity": 1}


def test_superfluous_nodes_of_a_model() -> None:
    """Keys are transposed once: to heads and then for their product."""
    graph = traced(Served(tiny_model(num_hidden_layers=1).with_attention("eager")).eval(), 20)
    fold_constants(graph)
    before = operators(graph)
    drop_superfluous_nodes(graph)
    after = operators(graph)
    assert after["Transpose"] < before["Transpose"]
    assert "Identity" not in after
    assert {name for name in before if name not in after} >= {"Dropout"} & set(before)


def test_nodes_and_weights_that_nothing_needs() -> None:
    text = "g (float[n, 4] x) => (float[n, 4] y) { a = Relu(x) b = Add(a, w) c = Neg(b) y = Add(x, v) }"
    model = graph_of(text, w=np.ones(4, np.float32), v=np.ones(4, np.float32))
    model.opset_imports["com.example"] = 1
    check(drop_dead_code, model)
    assert operators(model) == {"Add": 1}
    assert list(model.graph.initializers) == ["v"]
    assert dict(model.opset_imports) == {"": 20}


def test_an_input_stays_and_so_does_what_an_output_is_made_of() -> None:
    model = graph_of(
        "g (float[n, 4] x, float[n, 4] unused) => (float[n, 4] y, float[n, 4] z) { z = Neg(x) y = Relu(x) }"
    )
    drop_dead_code(model)
    assert [value.name for value in model.graph.inputs] == ["x", "unused"]
    assert operators(model) == {"Neg": 1, "Relu": 1}


def test_outputs_that_are_wanted_no_longer() -> None:
    model = tiny_model(num_hidden_layers=2)
    graph = traced(Served(model.with_attention("eager"), ["logits", "hidden_states"]).eval(), 20)
    graph.graph.outputs[:] = [value for value in graph.graph.outputs if value.name == "hidden_states.0"]
    drop_dead_code(graph)
    assert "Softmax" not in operators(graph)
    assert not [name for name in graph.graph.initializers if "layers." in name]


def test_equal_constants_are_one() -> None:
    model = graph_of(
        "g (float[n, 4] x) => (float[m, 2] y) {"
        " a = Constant<value_ints = [-1, 2]>() b = Mul(x, half) c = Reshape(b, a)"
        " d = Reshape(c, shape) e = Mul(d, half_too) y = Reshape(e, other) }",
        **{name: np.array(0.5, np.float32) for name in ("half", "half_too")},
        **{name: np.array([-1, 2]) for name in ("shape", "other")},
    )
    check(merge_duplicated_constants, model)
    assert len(model.graph.initializers) == 2


def test_types_and_shapes_count() -> None:
    text = "g (float[n, 4] x) => (float[n, 4] y) { f = Cast<to = 1>(i) a = Mul(x, one) b = Mul(a, f) y = Mul(b, ones) }"
    model = graph_of(text, one=np.array(1, np.float32), ones=np.array([1], np.float32), i=np.array(1, np.int32))
    check(merge_duplicated_constants, model)
    assert len(model.graph.initializers) == 3


def test_equal_weights_keep_their_names_and_their_order() -> None:
    text = "g (float[n, 4] x) => (float[n, 4] y) { a = Add(x, b0) b = Mul(a, half) c = Add(b, b1) y = Mul(c, half) }"
    model = graph_of(text, b1=np.zeros(4, np.float32), half=np.array(0.5, np.float32), b0=np.zeros(4, np.float32))
    check(merge_duplicated_constants, model)
    assert list(model.graph.initializers) == ["b1", "b0", "half"]
    assert [node.inputs[1].name for node in model.graph if node.inputs[1]] == ["b0", "half", "b1", "half"]


def test_a_model_whose_biases_are_all_equal(tmp_path: Path) -> None:
    model = tiny_model()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.zero_()
    exported = export_graph(model, tmp_path)
    graph = onnx.load(tmp_path / exported.files[0]).graph
    names = {tensor.name for tensor in graph.initializer}
    assert {name for name in model.state_dict() if name.startswith("layers") and name.endswith("bias")} <= names
    constants = [(t.data_type, tuple(t.dims), t.raw_data) for t in graph.initializer if t.data_type == t.INT64]
    assert len(set(constants)) == len(constants)


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
