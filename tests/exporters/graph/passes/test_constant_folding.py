"""Constants are folded."""

from __future__ import annotations

import numpy as np
from bundles import tiny_model
from small_graphs import check, graph_of, operators

from vitdeploy.exporters.graph.passes.constant_folding import fold_constants
from vitdeploy.exporters.graph.tracing import traced
from vitdeploy.models.signature import Served


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
