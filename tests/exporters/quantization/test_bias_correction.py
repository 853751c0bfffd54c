"""Bias correction for the mean change caused by rounded weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from small_graphs import X, answers, graph_of

from vitdeploy.exporters.quantization.bias_correction import correct_biases
from vitdeploy.exporters.quantization.schemes.dynamic_int8 import DynamicInt8
from vitdeploy.exporters.quantization.schemes.scheme import quantizable
from vitdeploy.exporters.quantization.schemes.static_int8 import StaticInt8
from vitdeploy.exporters.quantization.schemes.tensorrt_fp8 import TensorRTFp8
from vitdeploy.exporters.quantization.weights import rounded_matrix

RNG = np.random.default_rng(0)
W, B = RNG.standard_normal((4, 3), np.float32), RNG.standard_normal(3).astype(np.float32)
TEXT = "g (float[n, 4] x) => (float[n, 3] y) { h = Relu(x) p = MatMul(h, w) y = Add(p, b) }"


@pytest.mark.parametrize("scheme", [StaticInt8(), DynamicInt8(reduce_range=True), TensorRTFp8()], ids=str)
def test_the_mean_is_that_of_the_float32_weights(scheme: Any) -> None:
    model = graph_of(TEXT, w=W, b=B)
    means = {"h": np.maximum(X, 0).mean(axis=0)}
    (want,) = answers(model)
    correct_biases(model, scheme, quantizable(model, scheme), means)
    assert set(model.graph.initializers) == {"w", "b.corrected"}
    weight = model.graph.initializers["w"]
    rounded = rounded_matrix(W, scheme.weight, per_channel=True)
    assert np.abs(rounded - W).max() > 1e-4
    weight.const_value = graph_of(TEXT, w=rounded, b=B).graph.initializers["w"].const_value
    (found,) = answers(model)
    assert np.abs(found - want).max() > 1e-4
    np.testing.assert_allclose(found.mean(axis=0), want.mean(axis=0), atol=1e-6)


def test_a_bias_of_two_products_is_corrected_for_each() -> None:
    text = (
        "g (float[n, 4] x) => (float[n, 3] y, float[n, 3] z) "
        "{ p = MatMul(x, w) y = Add(p, b) q = MatMul(x, v) z = Add(b, q) }"
    )
    model = graph_of(text, w=W, v=2.5 * W[::-1], b=B)
    correct_biases(model, StaticInt8(), quantizable(model, StaticInt8()), {"x": X.mean(axis=0)})
    found = {name: value.const_value.numpy() for name, value in model.graph.initializers.items() if value.const_value}
    assert set(found) == {"w", "v", "b.corrected", "b.corrected_"}
    for name, weights in (("b.corrected", W), ("b.corrected_", 2.5 * W[::-1])):
        lost = X.mean(axis=0) @ (weights - rounded_matrix(weights, StaticInt8().weight, per_channel=True))
        np.testing.assert_allclose(found[name], B + lost, atol=1e-6)


@pytest.mark.parametrize(
    "text",
    [
        "g (float[n, 4] x) => (float[n, 3] y) { y = MatMul(x, w) }",
        "g (float[n, 4] x) => (float[n, 3] p, float[n, 3] y) { p = MatMul(x, w) y = Add(p, b) }",
        "g (float[n, 4] x) => (float[n, 3] y, float[n, 3] z) { p = MatMul(x, w) y = Add(p, b) z = Relu(p) }",
        "g (float[n, 4] x) => (float[n, 3] y) { p = MatMul(x, w) y = Add(p, p) }",
    ],
)
def test_a_product_without_a_bias_of_its_own_stays(text: str) -> None:
    model = graph_of(text, w=W, b=B)
    correct_biases(model, StaticInt8(), quantizable(model, StaticInt8()), {"x": X.mean(axis=0)})
    assert set(model.graph.initializers) == {"w", "b"}
