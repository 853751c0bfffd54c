"""Nodes that no output needs are dropped."""

from __future__ import annotations

import numpy as np
from bundles import tiny_model
from small_graphs import check, graph_of, operators

from vitdeploy.exporters.graph.passes.dead_code import drop_dead_code
from vitdeploy.exporters.graph.tracing import traced
from vitdeploy.models.signature import Served


def test_nodes_and_weights_that_nothing_needs() -> None:
    model = graph_of(
        "g (float[n, 4] x) => (float[n, 4] y) { a = Relu(x) b = Add(a, w) c = Neg(b) y = Add(x, v) }",
        w=np.ones(4, np.float32),
        v=np.ones(4, np.float32),
    )
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
