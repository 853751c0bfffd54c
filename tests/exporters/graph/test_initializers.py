"""Labels of nodes, after their weights."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from small_graphs import graph_of

from vitdeploy.exporters.graph.initializers import labels_of

W, B = np.eye(4, dtype=np.float32), np.ones(4, np.float32)
TEXT = (
    "g (float[n, 4] x) => (float[n, 4] y) "
    "{ a = MatMul(x, w) c = Add(b, a) d = Tanh(c) e = Add(a, d) f = MatMul(e, v) y = Add(f, b) }"
)


def model(**names: str) -> ir.Model:
    graph = graph_of(TEXT, w=W, b=B, v=W * 2)
    for old, new in names.items():
        graph.graph.initializers[old].name = new
    return graph


@pytest.mark.parametrize("ending", ["", ".transposed", ".transposed.smoothed"])
def test_a_product_and_the_addition_of_its_bias_are_one_module(ending: str) -> None:
    graph = model(w=f"layers.0.fc1.weight{ending}", b="shared").graph
    assert labels_of(graph) == {"a": "layers.0.fc1", "c": "layers.0.fc1"}  # of v no name tells, and e adds no bias


def test_modules_whose_names_begin_with_weight() -> None:
    graph = model(w="layers.0.mlp.weights_in.weight.transposed", v="layers.0.mlp.weights_out.weight.transposed").graph
    assert {labels_of(graph)[name] for name in "af"} == {"layers.0.mlp.weights_in", "layers.0.mlp.weights_out"}


def test_a_bias_that_two_products_share_is_of_each() -> None:
    """Equal weights are stored once, under the name of the first."""
    graph = model(w="layers.0.fc1.weight", v="layers.0.fc2.weight", b="layers.0.fc1.bias").graph
    of_first, of_second = ("layers.0.fc1", "layers.0.fc2")
    assert labels_of(graph) == {"a": of_first, "c": of_first, "f": of_second, "y": of_second}
