"""Small graphs with chosen products in 8 bits, run as they are."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from raising import raises
from small_graphs import X, answers, graph_of, operators, signature_of

from vitdeploy.errors import UsageError
from vitdeploy.exporters.quantization.candidate import Activations, Candidate, quantize
from vitdeploy.exporters.quantization.number_format import Range
from vitdeploy.exporters.quantization.schemes.dynamic_int8 import DynamicInt8
from vitdeploy.exporters.quantization.schemes.scheme import Scheme, weighted_nodes
from vitdeploy.exporters.quantization.schemes.static_int8 import StaticInt8
from vitdeploy.exporters.quantization.schemes.tensorrt_fp8 import TensorRTFp8
from vitdeploy.exporters.quantization.schemes.tensorrt_int8 import TensorRTInt8
from vitdeploy.exporters.quantization.weights import output_axis

SCHEMES: tuple[Scheme, ...] = (
    DynamicInt8(),
    DynamicInt8(reduce_range=True),
    DynamicInt8(per_channel=False),
    StaticInt8(),
    StaticInt8(reduce_range=True),
    StaticInt8(per_channel=False),
    TensorRTInt8(),
    TensorRTFp8(),
)
# Of the largest value, to which terms add up that are larger: factors are off by up to 1/63 each, or by 1/16 in E4M3.
TOLERANCES = {"static-e4m3": 0.15}


def model() -> ir.Model:
    """Two products that share an activation, one behind another, one that shares a weight, and one without a weight."""
    generator = np.random.default_rng(1)
    spread = (10.0 ** np.linspace(-1, 0, 4)).astype(np.float32)  # of the output channels
    graph = graph_of(
        """agraph (float[N, 4] x) => (float[N, 4] y, float[N, 4] z, float[N, 4] w) {
            a = MatMul (x, first) b = MatMul (x, second) c = Add (b, bias) d = MatMul (b, first)
            t = Transpose (c) e = MatMul (c, t) f = MatMul (e, a) y = Tanh (f) z = Identity (d) w = Identity (c) }""",
        first=generator.standard_normal((4, 4), np.float32) * spread,
        second=generator.standard_normal((4, 4), np.float32) * spread,
        bias=np.arange(4, dtype=np.float32),
    )
    graph.graph.opset_imports[""] = 21
    return graph


def _ranges() -> dict[str, Range]:
    b = answers(model())[2] - np.arange(4)
    return {"x": Range(X.min(), X.max()), "b": Range(b.min(), b.max())}


RANGES = _ranges()


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_products_with_weights_are_quantized_and_nothing_else(scheme: Scheme) -> None:
    made, want = model(), answers(model())
    signature = signature_of(made)
    assert quantize(made, Candidate(scheme), Activations(ranges=RANGES)) == ("a", "b", "d")
    assert signature_of(made) == signature
    _, z, w = answers(made)
    for found, exact in ((z, want[1]), (w, want[2])):
        tolerance = TOLERANCES.get(scheme.name, 0.1)
        assert 0 < np.abs(found - exact).max() < tolerance * np.abs(exact).max()
    counts = operators(made)
    if scheme.static is None:
        assert (counts["MatMulInteger"], counts["DynamicQuantizeLinear"], counts["MatMul"]) == (3, 2, 2)
    else:  # x and b are quantized once; three weights are dequantized where they are used
        assert (counts["QuantizeLinear"], counts["DequantizeLinear"], counts["MatMul"]) == (2, 5, 5)
    kept = {value.name for value in made.graph.initializers.values() if value.dtype == ir.DataType.FLOAT}
    assert "bias" in kept
    assert {"first", "second"}.isdisjoint(kept)


@pytest.mark.parametrize("scheme", [StaticInt8(), TensorRTInt8(), TensorRTFp8(), DynamicInt8()], ids=str)
def test_kept_nodes_are_exact_and_a_shared_weight_stays_for_them(scheme: Scheme) -> None:
    made, want = model(), answers(model())
    assert quantize(made, Candidate(scheme), Activations(ranges=RANGES), ["a", "d"]) == ("b",)
    assert "first" in made.graph.initializers
    assert "second" not in made.graph.initializers
    for found, exact in zip(answers(made), want, strict=True):
        np.testing.assert_allclose(found, exact, atol=0.05 * np.abs(exact).max())
    made = model()
    assert quantize(made, Candidate(scheme), Activations(ranges=RANGES), ["a", "b", "d"]) == ()
    for found, exact in zip(answers(made), want, strict=True):
        np.testing.assert_array_equal(found, exact)


def test_symmetric_schemes_have_zero_points_of_zero() -> None:
    for scheme, dtype in ((TensorRTInt8(), ir.DataType.INT8), (TensorRTFp8(), ir.DataType.FLOAT8E4M3FN)):
        network = model()
        quantize(network, Candidate(scheme), Activations(ranges={name: Range(-1, 30) for name in RANGES}))
        points = [node.inputs[2] for node in network.graph if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
        for point in points:
            assert point is not None
            assert point.dtype == dtype
            assert point.const_value is not None
            assert not point.const_value.numpy().astype(np.float32).any()


def test_each_output_channel_has_its_own_scale() -> None:
    fine, coarse = model(), model()
    quantize(fine, Candidate(StaticInt8()), Activations(ranges=RANGES), ["b", "d"])
    quantize(coarse, Candidate(StaticInt8(per_channel=False)), Activations(ranges=RANGES), ["b", "d"])
    for made, count in ((fine, 4), (coarse, 1)):
        (scales,) = (value for name, value in made.graph.initializers.items() if name == "first_scale")
        assert scales.const_value is not None
        assert scales.const_value.numpy().size == count
    weight = model().graph.initializers["first"].const_value
    assert weight is not None
    (restored,) = (node for node in fine.graph if node.outputs[0].name == "a_weight")
    values, scale = (restored.inputs[index].const_value for index in (0, 1))  # type: ignore[union-attr]
    assert values is not None
    assert scale is not None
    off = np.abs(values.numpy() * scale.numpy() - weight.numpy()).max(axis=0)
    assert (off <= 0.501 * np.abs(weight.numpy()).max(axis=0) / 127).all()


def test_a_weight_of_a_convolution_or_a_transposed_one_has_its_outputs_first() -> None:
    value = ir.Value(name="v")
    assert output_axis(ir.node("MatMul", [value, value]), 2) == 1
    assert output_axis(ir.node("Conv", [value, value]), 4) == 0
    assert output_axis(ir.node("Gemm", [value, value], {"transB": 1}), 2) == 0
    assert output_axis(ir.node("Gemm", [value, value]), 2) == 1


def test_a_graph_input_and_an_output_of_the_graph_can_be_quantized() -> None:
    text = "agraph (float[N, 4] x) => (float[N, 4] y, float[N, 4] z) { y = MatMul (x, w) z = MatMul (y, w) }"
    for scheme in (DynamicInt8(), StaticInt8()):
        weight = np.random.default_rng(0).standard_normal((4, 4), np.float32)
        made, plain = graph_of(text, w=weight), graph_of(text, w=weight)
        quantize(made, Candidate(scheme), Activations(ranges={"x": Range(-3, 3), "y": Range(-9, 9)}))
        for found, want in zip(answers(made), answers(plain), strict=True):
            np.testing.assert_allclose(found, want, atol=0.05 * np.abs(want).max())
        assert answers(made)[0].shape == X.shape


def test_what_cannot_be_quantized() -> None:
    with raises(UsageError, what="keep_fp32", found=("e", "no")):
        quantize(model(), Candidate(StaticInt8()), Activations(ranges=RANGES), ["a", "e", "no"])
    plain = graph_of("agraph (float[N] x) => (float[N] y) { y = Abs (x) }")
    with raises(UsageError, what="precision", expected=("MatMul",)):
        quantize(plain, Candidate(DynamicInt8()), Activations())
    assert [node.outputs[0].name for node in weighted_nodes(model(), ["MatMul"])] == ["a", "b", "d"]
