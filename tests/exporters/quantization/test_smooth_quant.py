"""Outliers of activations moved into weights: the same computation, with channels that are nearer to each other."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from small_graphs import X, answers, check, graph_of, operators

from vitdeploy.exporters.quantization.ranges.extremes import Extremes
from vitdeploy.exporters.quantization.smooth_quant import SmoothQuant, recorded_scales
from vitdeploy.exporters.quantization.smoothing_places import find_places

RNG = np.random.default_rng(0)
SCALE = np.array([1, 90, 1, 0.5], np.float32)  # a channel that stands out
BIAS = np.array([0.1, 9, -0.1, 0], np.float32)
W = {name: RNG.standard_normal((4, 3), np.float32) for name in ("v", "w")}
TEXT = (
    "g (float[n, 4] x) => (float[n, 3] y, float[n, 3] z) "
    "{ h = LayerNormalization(x, s, b) y = MatMul(h, v) z = MatMul(h, w) }"
)
NORM = "LayerNormalization"


def largest(scale: np.ndarray = SCALE, bias: np.ndarray = BIAS) -> np.ndarray:
    """(4,) the largest magnitude of each channel of `h` on X."""
    (normalised,) = answers(
        graph_of("g (float[n, 4] x) => (float[n, 4] y) { y = LayerNormalization(x, s, b) }", s=scale, b=bias)
    )
    return np.asarray(np.abs(normalised).max(axis=0))


def seen(magnitudes: np.ndarray, rms: np.ndarray | None = None) -> dict[str, Extremes]:
    """Of `h`; by default as large on all tokens."""
    return {"h": Extremes(-magnitudes, magnitudes, 0 * magnitudes, np.square(magnitudes if rms is None else rms))}


def test_the_graph_computes_the_same_with_no_more_operators() -> None:
    model = graph_of(TEXT, s=SCALE, b=BIAS, **W)
    want = answers(model)
    SmoothQuant().smooth(model, seen(largest()))
    for found, expected in zip(answers(model), want, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert operators(model) == {NORM: 1, "MatMul": 2}
    assert len(model.graph.initializers) == 4, "what was scaled takes the place of what was"


@pytest.mark.parametrize("strength", [0, 0.5, 1])
def test_how_much_moves(strength: float) -> None:
    model = graph_of(TEXT, s=SCALE, b=BIAS, **W)
    reach = largest()
    SmoothQuant(strength).smooth(model, seen(reach))
    moved = SCALE / tensors(model)["s.smoothed"]
    of_weights = np.max([np.abs(each).max(axis=1) for each in W.values()], axis=0)
    np.testing.assert_allclose(moved, reach**strength / of_weights ** (1 - strength), rtol=2**-16)
    if strength == 1:
        np.testing.assert_allclose(reach / moved, 1, rtol=2**-16)  # every channel reaches as far
    if strength == 0:
        rows = np.max([np.abs(tensors(model)[f"{name}.smoothed"]).max(axis=1) for name in W], axis=0)
        np.testing.assert_allclose(rows, 1, rtol=2**-16)


def test_a_channel_that_is_large_on_few_tokens_moves_less() -> None:
    """By the root of the share of its root mean square in its largest magnitude."""
    model, reach = graph_of(TEXT, s=SCALE, b=BIAS, **W), largest()
    rms = reach * np.array([1, 0.01, 0.25, 1], np.float32)
    SmoothQuant(1).smooth(model, seen(reach, rms))
    np.testing.assert_allclose(SCALE / tensors(model)["s.smoothed"], np.sqrt(reach * rms), rtol=1e-5)


def test_a_channel_whose_square_is_no_float32_stays() -> None:
    model, reach = graph_of(TEXT, s=SCALE, b=BIAS, **W), largest()
    rms = reach.copy()
    rms[1] = np.inf
    SmoothQuant().smooth(model, seen(reach, rms))
    assert tensors(model)["s.smoothed"][1] == SCALE[1]
    assert (tensors(model)["s.smoothed"][[0, 2, 3]] != SCALE[[0, 2, 3]]).all()


def test_a_channel_of_nothing_stays() -> None:
    scale, bias = SCALE.copy(), BIAS.copy()
    scale[2] = bias[2] = 0
    weights = {name: each.copy() for name, each in W.items()}
    for each in weights.values():
        each[3] = 0
    model = graph_of(TEXT, s=scale, b=bias, **weights)
    want = answers(model)
    SmoothQuant().smooth(model, seen(largest(scale, bias)))
    for found, expected in zip(answers(model), want, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    smoothed = model.graph.initializers["s.smoothed"].const_value
    assert smoothed is not None
    assert list(smoothed.numpy()[2:]) == [0, SCALE[3]]


def test_weights_that_others_take_too_stay_for_them() -> None:
    text = (
        "g (float[n, 4] x) => (float[n, 3] y, float[n, 3] z, float[n, 4] t) "
        "{ h = LayerNormalization(x, s, b) y = MatMul(h, v) z = MatMul(x, v) t = Add(x, s) }"
    )
    model = graph_of(text, s=SCALE, b=BIAS, v=W["v"])
    want = answers(model)
    SmoothQuant().smooth(model, seen(largest()))
    for found, expected in zip(answers(model), want, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert {"s", "v"} < set(model.graph.initializers)


@pytest.mark.parametrize(
    "text",
    [
        "g (float[n, 4] x) => (float[n, 4] h, float[n, 3] y) { h = LayerNormalization(x, s, b) y = MatMul(h, v) }",
        "g (float[n, 4] x) => (float[n, 4] y, float[n, 3] z) "
        "{ h = LayerNormalization(x, s, b) y = Relu(h) z = MatMul(h, v) }",
        "g (float[n, 4] x) => (float[n, n] y) { h = LayerNormalization(x, s, b) t = Transpose(x) y = MatMul(h, t) }",
        "g (float[n, 4] x) => (float[4, 4] y) { h = LayerNormalization(x, s, b) t = Transpose(x) y = MatMul(t, h) }",
        "g (float[n, 4] x) => (float[n, 4] y) { y = LayerNormalization(x, s, b) }",
        "g (float[n, 4] x) => (float[n, 3] y) { h = Add(x, s) y = MatMul(h, v) }",
        "g (float[n, 4] x) => (float[n, 3] y) { r = Add(s, b) h = LayerNormalization(x, r, b) y = MatMul(h, v) }",
    ],
)
def test_what_others_take_or_is_not_known_stays(text: str) -> None:
    model = graph_of(text, s=SCALE, b=BIAS, v=W["v"])
    assert find_places(model) == []

    def smooth(graph: ir.Model) -> None:
        SmoothQuant().smooth(graph, seen(np.abs(X).max(axis=0)))

    check(smooth, model)


def tensors(model: ir.Model) -> dict[str, np.ndarray]:
    return {name: value.const_value.numpy() for name, value in model.graph.initializers.items() if value.const_value}


def test_the_scales_are_told_by_the_graph() -> None:
    """By what is left of the norm alone: of products in 8 bits the weights are not known as they were."""
    scale, bias = SCALE.copy(), BIAS.copy()
    scale[3] = bias[2] = 0  # a channel of which only the bias tells, and one of which only the scale does
    bias[3] = 0.5
    smoothed, other = (graph_of(TEXT, s=scale, b=bias, **W) for _ in range(2))
    divided = SmoothQuant().smooth(smoothed, seen(largest(scale, bias)))
    recorded = recorded_scales(other, smoothed)
    assert set(recorded) == set(divided) == {"h"}
    np.testing.assert_array_equal(recorded["h"], divided["h"][1])


def test_a_graph_that_was_not_smoothed_has_no_scales() -> None:
    plain, other = (graph_of(TEXT, s=SCALE, b=BIAS, **W) for _ in range(2))
    assert recorded_scales(other, plain) == {}
    renamed = graph_of(TEXT.replace("h =", "k =").replace("(h,", "(k,"), s=BIAS, b=SCALE, **W)
    assert recorded_scales(other, renamed) == {}
    assert set(tensors(other)) == {"s", "b", "v", "w"}
