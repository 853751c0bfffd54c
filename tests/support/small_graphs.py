"""Small graphs, made by hand."""

from __future__ import annotations

import collections
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

if TYPE_CHECKING:
    from collections.abc import Callable

X = np.random.default_rng(0).standard_normal((2, 4), np.float32)


def graph_of(text: str, **weights: np.ndarray) -> ir.Model:
    """The model of a graph in ONNX's text format, with these initializers."""
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20]> {text}')
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in weights.items())
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


def operators(model: ir.Model) -> dict[str, int]:
    return dict(collections.Counter(node.op_type for node in model.graph))


def answers(model: ir.Model) -> list[np.ndarray]:
    """ONNX Runtime's outputs for the input `x`, without graph optimization."""
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return list(ort.InferenceSession(proto.SerializeToString(), options).run(None, {"x": X}))


def check(rewrite: Callable[[ir.Model], None], model: ir.Model) -> None:
    """Apply a pass that must change neither the answers, nor the names and shapes of inputs and outputs."""
    before, signature = answers(model), signature_of(model)
    rewrite(model)
    assert signature_of(model) == signature
    for found, want in zip(answers(model), before, strict=True):
        np.testing.assert_allclose(found, want, rtol=1e-6, atol=1e-6)
    nodes = [node.op_type for node in model.graph]
    rewrite(model)
    assert [node.op_type for node in model.graph] == nodes, "a second time changes nothing"


def signature_of(model: ir.Model) -> list[tuple[str | None, str]]:
    return [(value.name, str(value.shape)) for value in (*model.graph.inputs, *model.graph.outputs)]
