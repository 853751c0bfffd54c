"""Quantized graphs with chosen nodes in float32, made with ONNX Runtime's own quantizer."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Collection
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import safetensors.numpy
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static
from raising import raises
from small_graphs import graph_of

import vitdeploy
from vitdeploy.assess.data.folder_listing import list_images
from vitdeploy.assess.debug.bisection import bisect
from vitdeploy.assets import default_checkpoint, held_out_images
from vitdeploy.bundle.bundle import Bundle
from vitdeploy.bundle.manifest import MANIFEST, FileRecord
from vitdeploy.errors import UsageError
from vitdeploy.exporters.quantization.quantized_variants import quantized_variants
from vitdeploy.predictor import load_processor
from vitdeploy.runtimes.onnxrt import OnnxRuntime

VALUE, OUTPUT = (f"vit.encoder.layer.2.attention.{part}" for part in ("attention.value", "output.dense"))


class Calibration(CalibrationDataReader):  # type: ignore[misc]  # without types of its own
    def __init__(self, pixel_values: np.ndarray) -> None:
        self._batches = iter([{"pixel_values": pixel_values}])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._batches, None)


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
    return with_int8(vitdeploy.export(checkpoint, output=folder / "out"))


def with_int8(bundle: Bundle) -> Bundle:
    images = list_images(held_out_images()).files[::30]
    quantize_static(
        bundle.path / "onnx/model.onnx",
        bundle.path / "onnx/model_int8.onnx",
        Calibration(load_processor(bundle)(images)),
        quant_format=QuantFormat.QDQ,
    )
    (artifact,) = bundle.manifest.artifacts
    record = FileRecord.of(bundle.path, "onnx/model_int8.onnx")
    quantized = dataclasses.replace(artifact, precision="int8", files=(record,))
    manifest = dataclasses.replace(bundle.manifest, artifacts=(artifact, quantized))
    (bundle.path / MANIFEST).write_text(json.dumps(manifest.to_dict()), encoding="utf-8")
    return Bundle.open(bundle.path)


def logits(path: Path, pixel_values: np.ndarray) -> np.ndarray:
    with OnnxRuntime(path) as runtime:
        return runtime.run({"pixel_values": pixel_values})["logits"]


def variant(bundle: Bundle, kept: Collection[str] | None, folder: Path) -> Path:
    """The graph that keeps these nodes, or all."""
    paths = [bundle.path / "onnx" / name for name in ("model_int8.onnx", "model.onnx")]
    variants = quantized_variants(*paths)
    variants.write(variants.nodes if kept is None else kept, folder / "variant.onnx")
    return folder / "variant.onnx"


def test_nothing_and_everything_kept(bundle: Bundle, tmp_path: Path) -> None:
    pixel_values = load_processor(bundle)(list_images(held_out_images()).files[:4])
    quantized, plain = (logits(bundle.path / "onnx" / name, pixel_values) for name in ("model_int8.onnx", "model.onnx"))
    np.testing.assert_array_equal(logits(variant(bundle, (), tmp_path), pixel_values), quantized)
    graph = variant(bundle, None, tmp_path)
    assert {"QuantizeLinear", "DequantizeLinear"}.isdisjoint(node.op_type for node in onnx.load(graph).graph.node)
    np.testing.assert_allclose(logits(graph, pixel_values), plain, atol=1e-5)
    assert np.abs(quantized - plain).max() > 1e-2


def test_a_kept_node_takes_floats_and_others_do_not(bundle: Bundle, tmp_path: Path) -> None:
    original = onnx.load(bundle.path / "onnx/model.onnx").graph
    (added,) = [node for node in original.node if "layers.1.mlp.fc1.bias" in node.input]
    (product,) = [node for node in original.node if node.output[0] in added.input]
    graph = onnx.load(variant(bundle, product.output, tmp_path)).graph
    maker = {name: node.op_type for node in graph.node for name in node.output}
    products = [node for node in graph.node if node.op_type == "MatMul"]
    plain = [found for found in products if "DequantizeLinear" not in (maker.get(name) for name in found.input)]
    assert [found.output[0] for found in plain] == [product.output[0]]
    assert len(products) == 40  # six with weights and two of activations, a layer
    weights, want = (
        {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in each.initializer} for each in (graph, original)
    )
    np.testing.assert_array_equal(weights[plain[0].input[1]], want[product.input[1]])


def test_the_block_that_does_not_stand_int8(bundle: Bundle) -> None:
    before = bisect(bundle, "int8", images=held_out_images(), max_images=4, tolerance=10)
    assert (before.kept, before.runs) == ((), 1)
    result = bisect(bundle, "int8", images=held_out_images(), max_images=4, tolerance=before.error * 0.5)
    assert (result.status, result.minimal) == ("passed", True)
    assert result.kept
    assert {node.part for node in result.kept} == {"layers.2"}
    assert result.error <= result.tolerance < result.error_without == before.error


def test_int8_needs_the_graph_that_it_was_made_from(bundle: Bundle, tmp_path: Path) -> None:
    (artifact, _) = bundle.manifest.artifacts
    other = Bundle(bundle.path, dataclasses.replace(bundle.manifest, artifacts=(artifact,)))
    unrelated = tmp_path / "unrelated.onnx"
    ir.save(graph_of("agraph (float[N] x) => (float[N] y) { y = Abs(x) }"), unrelated)
    with raises(UsageError, where=bundle.path / "onnx/model_int8.onnx", expected=unrelated):
        quantized_variants(bundle.path / "onnx/model_int8.onnx", unrelated)
    with raises(UsageError, found="onnx-int8"):
        bisect(other, "int8", tolerance=1)
