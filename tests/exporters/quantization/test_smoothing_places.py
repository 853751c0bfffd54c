"""Smoothed graphs compute the same, in every family and every place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import pytest
from bundles import export_graph, make_feeds, tiny_model, write_checkpoint_of
from families import HEADS, ONE_A_FAMILY, Head, random_config
from onnx_ir.passes.common import ShapeInferencePass
from small_graphs import answers, graph_of

import vitdeploy
from vitdeploy import Calibration, GraphOptions, Quantization, SourceOptions, ValidationOptions
from vitdeploy.exporters.graph.onnx_file import write_onnx
from vitdeploy.exporters.graph.precision import name_of
from vitdeploy.exporters.quantization.bias_correction import correct_biases
from vitdeploy.exporters.quantization.candidate import Activations, Candidate, quantize
from vitdeploy.exporters.quantization.number_format import Range
from vitdeploy.exporters.quantization.ranges.extremes import Extremes
from vitdeploy.exporters.quantization.schemes.dynamic_int8 import DynamicInt8
from vitdeploy.exporters.quantization.schemes.scheme import quantizable
from vitdeploy.exporters.quantization.schemes.static_int8 import StaticInt8
from vitdeploy.exporters.quantization.smooth_quant import SmoothQuant, recorded_scales
from vitdeploy.exporters.quantization.smoothing_places import find_places
from vitdeploy.runtimes.onnxrt.runtime import OnnxRuntime
from vitdeploy.specs import Task

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import WriteCheckpoint
    from vitdeploy.bundle.bundle import Bundle

RNG = np.random.default_rng(0)
# Another order of operations in float32: some units in the last place a layer, of the largest value.
TOLERANCE = 2e-5


def loaded(path: Path) -> ir.Model:
    model = ir.load(path)
    ShapeInferencePass()(model)
    return model


def outliers(model: ir.Model) -> dict[str, Extremes]:
    """Channels from a hundredth to a hundred, so that what is divided wrongly is seen."""
    found = {}
    for place in find_places(model):
        reach = np.exp(RNG.uniform(-4.6, 4.6, len(place.rows()))).astype(np.float32)
        found[place.name] = Extremes(-reach, reach, 0 * reach, reach**2)
    return found


def outputs(path: Path, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    with OnnxRuntime(path) as runtime:
        return runtime.run(feeds)


def check_same(model: ir.Model, path: Path, feeds: dict[str, np.ndarray]) -> None:
    wanted = outputs(path, feeds)
    smoothed = path.with_name("smoothed.onnx")
    SmoothQuant(0.75).smooth(model, outliers(model))
    write_onnx(model, smoothed)
    for name, found in outputs(smoothed, feeds).items():
        scale = np.abs(wanted[name]).max()
        np.testing.assert_allclose(found, wanted[name], rtol=0, atol=TOLERANCE * scale, err_msg=name)


# Places are in the layers of a family and at the last norm, which one classifier, two, or a decoder of masks reads.
CHOSEN = tuple(dict.fromkeys((*ONE_A_FAMILY, *(head for head in HEADS if head.family == "deit"))))


@pytest.mark.parametrize(("head", "seed"), [(head, 1 + index % 2) for index, head in enumerate(CHOSEN)], ids=str)
def test_every_family_computes_the_same(
    write_checkpoint: WriteCheckpoint, tmp_path: Path, head: Head, seed: int
) -> None:
    """Gated MLPs, layer scale, relative positions, no biases, masks: as transformers' classes have them."""
    checkpoint = write_checkpoint(head, random_config(head, seed))
    bundle = vitdeploy.export(checkpoint.folder, output=tmp_path / "out", source=SourceOptions(task=str(head.task)))
    path = bundle.path / bundle.manifest.artifacts[0].files[0].path
    model = loaded(path)
    with OnnxRuntime(path) as runtime:
        feeds = {
            spec.name: (RNG.random((2, *spec.shape[1:])) < 0.5 if spec.dtype == "bool"  # type: ignore[arg-type]
                        else RNG.standard_normal((2, *spec.shape[1:]), np.float32))  # type: ignore[arg-type]
            for spec in runtime.inputs
        }  # fmt: skip
    kinds = [place.kind for place in find_places(model)]
    layers = kinds.count("attention")
    assert layers >= checkpoint.config.num_hidden_layers > 0, "the values of every layer"
    assert kinds.count("mlp") == layers
    assert kinds.count("layer_norm") >= 2 * layers
    check_same(model, path, feeds)


@pytest.mark.parametrize("qkv_bias", [True, False])
@pytest.mark.parametrize("dynamic", [True, False])
def test_any_image_size_and_no_biases(tmp_path: Path, *, qkv_bias: bool, dynamic: bool) -> None:
    model = tiny_model(qkv_bias=qkv_bias)
    exported = export_graph(model, tmp_path, dynamic_image_size=dynamic)
    path = tmp_path / exported.files[0]
    graph = loaded(path)
    assert {place.kind for place in find_places(graph)} == {"layer_norm", "attention", "mlp"}
    assert all((place.values_bias is not None) == qkv_bias for place in find_places(graph) if place.kind == "attention")
    check_same(graph, path, make_feeds(model, 2))


def test_a_mul_is_left_out_where_it_is_not_wanted_or_nobody_needs_it(tmp_path: Path) -> None:
    model = tiny_model()
    path = tmp_path / export_graph(model, tmp_path).files[0]
    plain = loaded(path)
    count = [node.op_type for node in plain.graph].count("Mul")
    of_mlp = [name_of(place.products[0]) for place in find_places(plain) if place.kind == "mlp"]
    extremes = outliers(plain)
    for smooth, kept, more in (
        (SmoothQuant(0.5), (), len(of_mlp)),
        (SmoothQuant(0.5, multiply=False), (), 0),
        (SmoothQuant(0.5), of_mlp[:1], len(of_mlp) - 1),
    ):
        graph = loaded(path)
        divided = smooth.smooth(graph, extremes, kept)
        assert [node.op_type for node in graph.graph].count("Mul") == count + more
        assert {name for name, _ in divided.values()} <= set(extremes)


ATTENTION = """g (float[b, 4] x) => (float[b, 4] y) {{
  t = Reshape(x, s0) v0 = MatMul(t, w) v = Add(v0, c) r = Reshape(v, s1) h = Transpose<perm = [0, 2, 1, 3]>(r)
  a = MatMul(p, h) m = Transpose<perm = {perm}>(a) j = Reshape(m, s2) o = MatMul(j, u) y = Reshape(o, s3)
}}"""


@pytest.mark.parametrize(("perm", "kinds"), [([0, 2, 1, 3], ["attention"]), ([0, 2, 3, 1], [])])
def test_channels_that_are_joined_in_another_order_stay(perm: list[int], kinds: list[str]) -> None:
    shapes = {"s0": [-1, 1, 4], "s1": [-1, 1, 2, 2], "s2": [-1, 1, 4], "s3": [-1, 4]}
    weights: dict[str, Any] = {name: RNG.standard_normal((4, 4)).astype(np.float32) for name in "wu"}
    weights |= {"c": np.ones(4, np.float32), "p": np.ones((1, 2, 1, 1), np.float32)}
    model = graph_of(ATTENTION.format(perm=perm), **weights, **{name: np.array(axes) for name, axes in shapes.items()})
    assert [place.kind for place in find_places(model)] == kinds
    want = answers(model)
    SmoothQuant(1.0).smooth(model, outliers(model))
    np.testing.assert_allclose(answers(model)[0], want[0], rtol=1e-4, atol=1e-4)


def test_weights_that_layers_share(tmp_path: Path) -> None:
    """One matrix for values of two layers, which are divided by other numbers."""
    model = tiny_model()
    path = tmp_path / export_graph(model, tmp_path).files[0]
    graph = loaded(path)
    first, second = (place.values_projection for place in find_places(graph) if place.kind == "attention")
    assert first is not None
    assert second is not None
    old = second.inputs[1]
    second.replace_input_with(1, first.inputs[1])
    del graph.graph.initializers[str(old.name)]  # type: ignore[union-attr]
    shared = tmp_path / "shared.onnx"
    write_onnx(graph, shared)
    check_same(loaded(shared), shared, make_feeds(model, 2))


@pytest.mark.parametrize("scheme", [StaticInt8(), DynamicInt8()], ids=["static", "dynamic"])
@pytest.mark.parametrize("smooth", [SmoothQuant(0.75), SmoothQuant(0.75, multiply=False), None], ids=str)
def test_a_quantized_file_tells_all_scales(
    tmp_path: Path, scheme: StaticInt8 | DynamicInt8, smooth: SmoothQuant | None
) -> None:
    path = tmp_path / export_graph(tiny_model(), tmp_path).files[0]
    smoothed, other = loaded(path), loaded(path)
    for graph in (smoothed, other):  # biases beyond the weights, which are corrected below
        for name, value in graph.graph.initializers.items():
            if name.endswith("v_proj.bias"):
                value.const_value = ir.Tensor(np.linspace(8, 9, 24, dtype=np.float32))
    divided = {} if smooth is None else smooth.smooth(smoothed, outliers(smoothed))
    nodes = quantizable(smoothed, scheme)
    ranges = {str(node.inputs[0].name): Range(-1, 1) for node in nodes if node.inputs[0]}
    correct_biases(smoothed, scheme, nodes, {name: np.ones(24, np.float32) for name in ranges})
    quantize(smoothed, Candidate(scheme), Activations(ranges=ranges))
    recorded = recorded_scales(other, smoothed)
    assert set(recorded) == {place for place, _ in divided.values()}
    for place, scales in divided.values():
        np.testing.assert_array_equal(recorded[place], scales, err_msg=place)


def test_the_artifact_names_its_places(tmp_path: Path) -> None:
    from vitdeploy.assets import held_out_images

    checkpoint = write_checkpoint_of(tiny_model(Task.FEATURES), tmp_path / "checkpoint")
    how: dict[str, Any] = {
        "precision": "int8",
        "quantization": Quantization(Calibration(held_out_images(), count=16), smooth_quant=0.5),
        "validation": ValidationOptions(tolerance=9),
    }
    bundle = vitdeploy.export(checkpoint, output=tmp_path / "out", **how)
    (artifact,) = bundle.manifest.artifacts
    assert artifact.options["smooth_quant_places"] == ["attention", "layer_norm", "mlp"]
    multiplied = _multiplied(bundle)
    assert len(multiplied) == 2
    second = [value for mul in multiplied for quantize, _ in mul.outputs[0].uses() for value in _products(quantize)]
    bundle = vitdeploy.export(checkpoint, output=tmp_path / "kept", graph=GraphOptions(keep_fp32=second), **how)
    (artifact,) = bundle.manifest.artifacts
    assert artifact.options["float32_nodes"] == second
    assert artifact.options["smooth_quant_places"] == ["attention", "layer_norm"], "no Mul is put before them"
    assert not _multiplied(bundle)


def _multiplied(bundle: Bundle) -> list[ir.Node]:
    """The Mul nodes before second products of MLPs."""
    (artifact,) = bundle.manifest.artifacts
    model = loaded(bundle.path / artifact.files[0].path)
    return [node for node in model.graph if node.op_type == "Mul" and name_of(node).endswith(".smoothed")]


def _products(quantize: ir.Node) -> list[str]:
    """Users of a dequantized activation."""
    return [name_of(node) for each, _ in quantize.outputs[0].uses() for node, _ in each.outputs[0].uses()]
