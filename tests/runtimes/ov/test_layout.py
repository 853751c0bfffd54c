"""Products of an OpenVINO model as convolutions: the same results, and nothing in between two of them."""

from __future__ import annotations

import collections
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import openvino as ov
import pytest
from bundles import export_graph, make_feeds, tiny_model, worst_difference
from small_graphs import graph_of

from vitdeploy.runtimes.ov.layout import convolve_tokens, rewrite
from vitdeploy.specs import Task

if TYPE_CHECKING:
    from pathlib import Path

QUANTIZED_MLP = """g (float[3, 5, 8] x) => (float[3, 5, 8] y) {
    a = QuantizeLinear(x, s, z)
    b = DequantizeLinear(a, s, z)
    u = DequantizeLinear<axis = 1>(w1, s1, z1)
    c = MatMul(b, u)
    d = Add(b1, c)
    e = Gelu(d)
    f = QuantizeLinear(e, s, z)
    h = DequantizeLinear(f, s, z)
    v = DequantizeLinear<axis = 1>(w2, s2, z2)
    i = MatMul(h, v)
    j = Add(i, b2)
    k = Mul(j, b2)
    y = Add(x, k)
}"""


def quantized_mlp(folder: Path, text: str = QUANTIZED_MLP) -> ov.Model:
    draw = np.random.default_rng(0)
    weights = {
        "s": np.float32(0.02), "z": np.uint8(117),
        "w1": draw.integers(-127, 128, (8, 16), np.int8), "s1": draw.uniform(0.01, 0.02, 16).astype(np.float32),
        "w2": draw.integers(-127, 128, (16, 8), np.int8), "s2": draw.uniform(0.01, 0.02, 8).astype(np.float32),
        "z1": np.zeros(16, np.int8), "z2": np.zeros(8, np.int8),
        "b1": draw.standard_normal(16, np.float32), "b2": draw.standard_normal(8, np.float32),
    }  # fmt: skip
    ir.save(graph_of(text, **{name: np.asarray(weight) for name, weight in weights.items()}), folder / "mlp.onnx")
    return ov.Core().read_model(folder / "mlp.onnx")


def run(model: ov.Model, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    results = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(arrays)
    return {min(output.get_names()): results[index] for index, output in enumerate(model.outputs)}


def types_of(model: ov.Model) -> dict[str, int]:
    return collections.Counter(operator.get_type_name() for operator in model.get_ops())


@pytest.mark.parametrize(
    ("task", "config", "convolutions"),
    [
        (Task.CLASSIFICATION, {}, 13),
        (Task.CLASSIFICATION, {"model_type": "dinov2_with_registers"}, 13),
        (Task.CLASSIFICATION, {"model_type": "beit"}, 13),
    ],
    ids=lambda value: str(value),
)
def test_a_model_keeps_its_results(tmp_path: Path, task: Task, config: dict[str, Any], convolutions: int) -> None:
    model = tiny_model(task, **config)
    exported = export_graph(model, tmp_path)
    plain, rewritten = (ov.Core().read_model(tmp_path / exported.files[0]) for _ in range(2))
    assert rewrite(rewritten)
    assert types_of(rewritten)["Convolution"] == convolutions  # six a layer, and the patches
    products = [operator for operator in rewritten.get_ops() if operator.get_type_name() == "MatMul"]
    assert len(products) < types_of(plain)["MatMul"]
    assert sum(product.get_attributes()["transpose_b"] for product in products) >= 2
    arrays = make_feeds(model, 1)
    assert worst_difference(run(rewritten, arrays), run(plain, arrays)) <= 1e-5


def test_quantization_between_two_products_is_computed_on_the_image(tmp_path: Path) -> None:
    plain, rewritten = (quantized_mlp(tmp_path) for _ in range(2))
    convolve_tokens(rewritten)
    assert types_of(rewritten)["MatMul"] == 0
    on_path = collections.Counter(
        operator.get_type_name() for operator in rewritten.get_ops()
        if operator.get_type_name() == "Transpose" and operator.get_output_partial_shape(0).rank.get_length() == 4
    )  # fmt: skip
    assert on_path == {"Transpose": 2}, "into the first convolution, and out of the second"
    arrays = {"x": np.random.default_rng(1).standard_normal((3, 5, 8), np.float32)}
    np.testing.assert_allclose(run(rewritten, arrays)["y"], run(plain, arrays)["y"], rtol=1e-5, atol=1e-5)


def test_a_hidden_value_with_another_user_stays(tmp_path: Path) -> None:
    text = QUANTIZED_MLP.replace("=> (", "=> (float[3, 5, 16] e, ")
    plain, rewritten = (quantized_mlp(tmp_path, text) for _ in range(2))
    convolve_tokens(rewritten)
    assert types_of(rewritten)["Convolution"] == 2
    arrays = {"x": np.random.default_rng(1).standard_normal((3, 5, 8), np.float32)}
    found = run(rewritten, arrays)
    assert found["e"].shape == (3, 5, 16)
    assert worst_difference(found, run(plain, arrays)) <= 1e-5


def test_a_second_time_changes_nothing(tmp_path: Path) -> None:
    exported = export_graph(tiny_model(), tmp_path)
    model = ov.Core().read_model(tmp_path / exported.files[0])
    counts = []
    for _ in range(2):
        rewrite(model)
        counts.append(types_of(model))
    assert counts[0] == counts[1]
