"""Operators that change nothing go, and several that are one become it."""

from __future__ import annotations

import numpy as np
import pytest
from bundles import tiny_model
from small_graphs import check, graph_of, operators

from vitdeploy.exporters.graph.passes.constant_folding import fold_constants
from vitdeploy.exporters.graph.passes.superfluous_nodes import drop_superfluous_nodes
from vitdeploy.exporters.graph.tracing import traced
from vitdeploy.models.signature import Served

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
def test_rules(nodes: str, left: dict[str, int]) -> None:
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


def test_a_model() -> None:
    """Keys are transposed once: to heads and then for their product."""
    graph = traced(Served(tiny_model(num_hidden_layers=1).with_attention("eager")).eval(), 20)
    fold_constants(graph)
    before = operators(graph)
    drop_superfluous_nodes(graph)
    after = operators(graph)
    assert after["Transpose"] < before["Transpose"]
    assert "Identity" not in after
    assert {name for name in before if name not in after} >= {"Dropout"} & set(before)
