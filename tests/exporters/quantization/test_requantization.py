"""Variants of quantized artifacts are the graphs that an export which keeps these nodes writes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import safetensors.numpy
from bundles import make_feeds, tiny_model, write_checkpoint_of
from raising import raises
from small_graphs import graph_of

import vitdeploy
from vitdeploy import Calibration, GraphOptions, Quantization, ValidationOptions
from vitdeploy.assess.debug.bisection import bisect
from vitdeploy.assess.debug.mixed_precision import LowerPrecision
from vitdeploy.assets import default_checkpoint, held_out_images
from vitdeploy.bundle.bundle import Bundle
from vitdeploy.errors import UsageError
from vitdeploy.exporters.graph.onnx_file import read_onnx_ir, write_onnx
from vitdeploy.exporters.quantization.requantization import recorded_variants
from vitdeploy.runtimes.onnxrt.runtime import OnnxRuntime
from vitdeploy.specs import ExportSpec, Precision

IMAGES = Calibration(held_out_images(), count=8)
LOOSE = ValidationOptions(tolerance=9)
WAYS: dict[str, tuple[str, dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    # precision, options of the float32 graph too, options of the quantized graph alone, the quantization
    "static": ("int8", {}, {}, {"scheme": "static", "smooth_quant": 0.5}),
    "dynamic": ("int8", {"dynamic_image_size": True}, {}, {"scheme": "dynamic", "smooth_quant": 0.8}),
    "half": ("int8", {}, {"io_dtype": "float16"}, {"scheme": "static", "reduce_range": True}),
    "fp8": ("fp8", {}, {}, {"smooth_quant": 0.5}),
    "both half": ("int8", {"io_dtype": "float16"}, {}, {"scheme": "static"}),
    "bytes": ("int8", {"input": "uint8", "opset": 18}, {}, {"target": "tensorrt", "smooth_quant": 0.5}),
}


def contents(path: Path) -> tuple[list[str], list[bytes], bytes]:
    """Nodes without names and initializers, whatever their order, and the rest."""
    model = onnx.load(path)
    for node in model.graph.node:
        node.name = ""
    parts = sorted(map(str, model.graph.node)), sorted(each.SerializeToString() for each in model.graph.initializer)
    for name in ("node", "initializer", "value_info"):
        model.graph.ClearField(name)
    return *parts, model.SerializeToString()


@pytest.mark.parametrize("way", WAYS)
def test_a_variant_is_what_an_export_that_keeps_its_nodes_writes(tmp_path: Path, way: str) -> None:
    precision, both, alone, how = WAYS[way]
    model = tiny_model(num_hidden_layers=1)
    checkpoint = write_checkpoint_of(model, tmp_path / "checkpoint")

    def export(folder: str, **keep: Any) -> Path:
        options = GraphOptions(**both, **alone, **keep)
        bundle = vitdeploy.export(
            checkpoint, output=tmp_path / folder, precision=precision, graph=options, validation=LOOSE,
            quantization=Quantization(IMAGES, **how),
        )  # fmt: skip
        return bundle.path / bundle.artifact("onnx", precision).files[0].path

    vitdeploy.export(checkpoint, output=tmp_path / "out", graph=GraphOptions(**both))
    artifact = export("out")
    variants = LowerPrecision.of(Bundle.open(tmp_path / "out"), precision, "a test").variants
    names = {label: name for name, label in variants.labels.items()}
    kept = [names[f"layers.0.{label}"] for label in ("mlp.fc2", "attention.v_proj", "attention.o_proj")]
    path = tmp_path / "variant.onnx"
    for nodes, exported in (([], artifact), (kept, export("kept", keep_fp32=kept))):
        variants.write(nodes, path)
        assert contents(path) == contents(exported)
    variants.write(variants.nodes, path)
    graph = onnx.load(path).graph
    assert {"QuantizeLinear", "DequantizeLinear", "MatMulInteger"}.isdisjoint(node.op_type for node in graph.node)
    if {"input", "io_dtype"}.isdisjoint(both | alone):  # both graphs take the same feeds
        kept_all, plain = (logits(file, make_feeds(model, 2)) for file in (path, tmp_path / "out/onnx/model.onnx"))
        np.testing.assert_allclose(kept_all, plain, rtol=1e-5, atol=1e-5)


def logits(path: Path, feeds: dict[str, np.ndarray]) -> np.ndarray:
    with OnnxRuntime(path) as runtime:
        return runtime.run(feeds)["logits"]


VALUE, OUTPUT = (f"vit.encoder.layer.2.attention.{part}" for part in ("attention.value", "output.dense"))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The embedded model in float32 and in int8, with one value channel of one block 2^12 times as large as it was.

    What reads it is so much smaller, and float32 does not notice; a scale for the whole tensor leaves nothing of the
    other channels.
    """
    folder = tmp_path_factory.mktemp("quantized")
    checkpoint = folder / "checkpoint"
    shutil.copytree(default_checkpoint(), checkpoint)
    weights = safetensors.numpy.load_file(checkpoint / "model.safetensors")
    weights[f"{VALUE}.weight"][5] *= 4096
    weights[f"{VALUE}.bias"][5] *= 4096
    weights[f"{OUTPUT}.weight"][:, 5] /= 4096
    safetensors.numpy.save_file(weights, checkpoint / "model.safetensors", {"format": "pt"})
    vitdeploy.export(checkpoint, output=folder / "out")
    static = Quantization(IMAGES, scheme="static", smooth_quant="off")
    return vitdeploy.export(checkpoint, output=folder / "out", precision="int8", quantization=static, validation=LOOSE)


def test_the_block_that_does_not_stand_int8(bundle: Bundle) -> None:
    before = bisect(bundle, "int8", images=held_out_images(), max_images=4, tolerance=10)
    assert (before.kept, before.runs) == ((), 1)
    result = bisect(bundle, "int8", images=held_out_images(), max_images=4, tolerance=before.error * 0.5)
    assert (result.status, result.minimal) == ("passed", True)
    assert result.kept
    assert {node.part for node in result.kept} == {"layers.2"}
    assert result.error <= result.tolerance < result.error_without == before.error


def changed_weight(model: ir.Model) -> None:
    name = next(name for name in model.graph.initializers if name.endswith("fc1.weight.transposed"))
    value = model.graph.initializers[name]
    assert value.const_value is not None
    array = value.const_value.numpy().copy()
    array[0, 0] += 1
    value.const_value = ir.Tensor(array)


def renamed_activation(model: ir.Model) -> None:
    """Whose range is recorded under another name."""
    next(node for node in model.graph if node.op_type == "Gelu").outputs[0].name = "renamed"


@pytest.mark.parametrize("change", [changed_weight, renamed_activation, None])
def test_another_graph_is_refused(bundle: Bundle, tmp_path: Path, change: Any) -> None:
    artifact, other = bundle.path / "onnx/model_int8.onnx", tmp_path / "other.onnx"
    model = graph_of("agraph (float[N] x) => (float[N] y) { y = Abs(x) }")
    if change is not None:
        change(model := read_onnx_ir(bundle.path / "onnx/model.onnx"))
    write_onnx(model, other)
    with raises(UsageError, where=artifact, expected=other):
        recorded_variants(artifact, other, ExportSpec(Precision.INT8, scheme="static"))


@pytest.mark.parametrize(
    "options", [{"scheme": "dynamic"}, {"reduce_range": True}, {"keep_fp32": ("absent",)}], ids=str
)
def test_other_options_are_refused(bundle: Bundle, options: dict[str, Any]) -> None:
    artifact, source = (bundle.path / "onnx" / name for name in ("model_int8.onnx", "model.onnx"))
    with raises(UsageError, where=artifact, expected=source):
        recorded_variants(artifact, source, ExportSpec(**{"precision": Precision.INT8, "scheme": "static", **options}))
    with raises(UsageError, found="onnx-fp8"):
        bisect(bundle, "fp8", tolerance=1)
