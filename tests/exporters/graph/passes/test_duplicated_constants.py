"""Equal constants are one; equal weights stay the weights of their layers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from bundles import export_graph, tiny_model
from small_graphs import check, graph_of

from vitdeploy.exporters.graph.passes.duplicated_constants import merge_duplicated_constants


def test_equal_constants_are_one() -> None:
    model = graph_of(
        "g (float[n, 4] x) => (float[m, 2] y) {"
        " a = Constant<value_ints = [-1, 2]>() b = Mul(x, half) c = Reshape(b, a)"
        " d = Reshape(c, shape) e = Mul(d, half_too) y = Reshape(e, other) }",
        half=np.array(0.5, np.float32),
        half_too=np.array(0.5, np.float32),
        shape=np.array([-1, 2]),
        other=np.array([-1, 2]),
    )
    check(merge_duplicated_constants, model)
    assert len(model.graph.initializers) == 2


def test_types_and_shapes_count() -> None:
    model = graph_of(
        "g (float[n, 4] x) => (float[n, 4] y) { f = Cast<to = 1>(i) a = Mul(x, one) b = Mul(a, f) y = Mul(b, ones) }",
        one=np.array(1, np.float32),
        ones=np.array([1], np.float32),
        i=np.array(1, np.int32),
    )
    check(merge_duplicated_constants, model)
    assert len(model.graph.initializers) == 3


def test_equal_weights_keep_their_names_and_their_order() -> None:
    model = graph_of(
        "g (float[n, 4] x) => (float[n, 4] y) { a = Add(x, b0) b = Mul(a, half) c = Add(b, b1) y = Mul(c, half) }",
        b1=np.zeros(4, np.float32),
        half=np.array(0.5, np.float32),
        b0=np.zeros(4, np.float32),
    )
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
