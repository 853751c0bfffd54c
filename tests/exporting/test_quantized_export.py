"""int8 and fp8 artifacts: proven, compiled, run, compared, bisected, and the same bytes again."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from bundles import TINY, export_graph, make_feeds, reference, tiny_model, write_checkpoint_of
from click.testing import CliRunner
from compiler import build_engine
from raising import raises

import vitdeploy
from vitdeploy import Calibration, GraphOptions, Quantization, ValidationOptions, VitDeployError
from vitdeploy.assess.debug.bisection import bisect
from vitdeploy.assess.inspection.inspection import inspect_artifact
from vitdeploy.assets import default_checkpoint, held_out_images
from vitdeploy.bundle.bundle import Bundle
from vitdeploy.bundle.manifest import Artifact
from vitdeploy.cli.export import export as export_command
from vitdeploy.cli.inspect_bundle import inspect as inspect_command
from vitdeploy.errors import CheckFailedError, InputError, UsageError
from vitdeploy.runtimes.onnxrt.runtime import OnnxRuntime
from vitdeploy.specs import Precision

IMAGES = Calibration(held_out_images(), count=48)
KINDS: dict[str, dict[str, Any]] = {
    "dynamic": {"precision": "int8"},
    "static": {"precision": "int8", "quantization": Quantization(IMAGES)},
    "static-symmetric": {"precision": "int8", "quantization": Quantization(IMAGES, target="tensorrt")},
    "static-e4m3": {"precision": "fp8", "quantization": Quantization(IMAGES)},
}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    """The embedded model in each scheme, by its name, with a float32 artifact beside it."""
    folder = tmp_path_factory.mktemp("quantized")
    plain = vitdeploy.export(default_checkpoint(), output=folder / "plain")
    found = {}
    for name, options in KINDS.items():
        shutil.copytree(plain.path, folder / name)
        found[name] = vitdeploy.export(default_checkpoint(), output=folder / name, **options)
    return found


def artifact_of(bundle: Bundle, name: str) -> Artifact:
    return bundle.artifact("onnx", KINDS[name]["precision"])


@pytest.mark.parametrize("name", KINDS)
def test_the_embedded_model_keeps_its_accuracy(bundles: dict[str, Bundle], name: str) -> None:
    bundle, precision = bundles[name], KINDS[name]["precision"]
    artifact = artifact_of(bundle, name)
    assert artifact.files[0].path == f"onnx/model_{precision}.onnx"
    assert artifact.options["scheme"] == name
    assert artifact.options["quantized_nodes"] == (31 if name == "static-symmetric" else 30)  # six a layer; patches
    assert artifact.options["float32_nodes"] == []
    limit = None if name == "static" else 90
    backends = [f"onnxruntime:{precision}", "torch"]
    evaluation = vitdeploy.evaluate(bundle, data=held_out_images(), backends=backends, batch_size=50, limit=limit)
    quantized, torch = (evaluation.top1(result).correct for result in evaluation.results)
    assert quantized >= torch - 2  # half a point of 450
    if name != "dynamic":
        (measured,) = artifact.validation["calibration_images"]
        assert artifact.options["calibration_images"] == 24 + 12
        assert artifact.options["calibration_sha256"] != artifact.validation["calibration_sha256"]
        assert artifact.validation["calibration_parts"] == {"ranges": 24, "choice": 12, "judge": 12}
        assert (measured["images"], measured["held_out"]) == (12, True)
        assert measured["top1_agreement"] >= 0.99
        assert 0.99 < measured["min_cosine"] <= measured["p5_cosine"] <= measured["mean_cosine"] < 1
        assert artifact.options["calibration"] == "minmax"
        assert artifact.options["calibration_margin"] == 0.1
    assert vitdeploy.compare(bundle).status == "passed"


@pytest.mark.parametrize("name", KINDS)
def test_what_is_in_the_graph(bundles: dict[str, Bundle], name: str) -> None:
    bundle = bundles[name]
    graph = onnx.load(bundle.path / artifact_of(bundle, name).files[0].path).graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    products = [node for node in graph.node if node.op_type in ("MatMul", "MatMulInteger")]
    assert len(products) == 40  # six with weights and two of activations, a layer
    makers = {name: node.op_type for node in graph.node for name in node.output}
    for node in graph.node:
        if node.op_type in ("Gelu", "LayerNormalization", "Softmax", "Gemm", "Add"):
            assert "DequantizeLinear" not in [makers.get(value) for value in node.input], node.op_type
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            assert "bias" not in node.input[0]
    large = [tensor.name for tensor in weights.values() if tensor.data_type == 1 and len(tensor.dims) > 1]
    assert not [name for name in large if weights[name].dims[0] == 96 and weights[name].dims[-1] > 10]
    summary = inspect_artifact(bundle, artifact_of(bundle, name)).graph
    assert summary is not None
    low = {"static-e4m3": "float8e4m3fn", "static-symmetric": "int8"}.get(name, "uint8")
    assert summary.layers["layers.0"][low] >= 6


@pytest.mark.parametrize("name", ["static-symmetric", "static-e4m3"])
def test_tensorrt_builds_it(bundles: dict[str, Bundle], tmp_path: Path, name: str) -> None:
    bundle = vitdeploy.export(default_checkpoint(), output=tmp_path / "out", **KINDS[name])
    (artifact,) = bundle.manifest.artifacts
    assert artifact.files == artifact_of(bundles[name], name).files, "the same bytes, whatever else the bundle holds"
    assert build_engine(bundle) > 0


_PROGRAM = """
import sys, vitdeploy
checkpoint, images, folder = sys.argv[1:]
static = vitdeploy.Quantization(vitdeploy.Calibration(images, count=48, cache=False))
for name, quantization in (("dynamic", None), ("static", static)):
    vitdeploy.export(checkpoint, precision="int8", output=f"{folder}/{name}", quantization=quantization)
"""


def test_another_process_writes_the_same_bytes(bundles: dict[str, Bundle], tmp_path: Path) -> None:
    environ = {**os.environ, "PYTHONHASHSEED": "7"}
    command = [sys.executable, "-c", _PROGRAM, str(default_checkpoint()), str(held_out_images()), str(tmp_path)]
    subprocess.run(command, env=environ, check=True)
    for name in ("dynamic", "static"):
        path = artifact_of(bundles[name], name).files[0].path
        first, second = ((folder / path).read_bytes() for folder in (bundles[name].path, tmp_path / name))
        assert hashlib.sha256(first).digest() == hashlib.sha256(second).digest()


@pytest.mark.parametrize("name", KINDS)
def test_nodes_that_are_kept_by_bisect(bundles: dict[str, Bundle], tmp_path: Path, name: str) -> None:
    bundle, precision = bundles[name], KINDS[name]["precision"]
    images: dict[str, Any] = {"images": held_out_images(), "max_images": 4}
    before = bisect(bundle, precision, tolerance=1.0, **images)
    assert (before.kept, before.candidates) == ((), artifact_of(bundle, name).options["quantized_nodes"])
    result = bisect(bundle, precision, tolerance=before.error * 0.7, max_runs=14, **images)
    assert result.kept
    assert result.error <= result.tolerance < before.error
    kept = [node.name for node in result.kept]
    again = vitdeploy.export(
        default_checkpoint(), output=tmp_path / "out", graph=GraphOptions(keep_fp32=kept), **KINDS[name]
    )
    (artifact,) = again.manifest.artifacts
    assert artifact.options["float32_nodes"] == kept
    assert artifact.options["quantized_nodes"] == before.candidates - len(kept)


def test_a_node_that_is_not_quantized_cannot_be_kept(tmp_path: Path) -> None:
    with raises(UsageError, what="keep_fp32", found=("logits",)):
        vitdeploy.export(
            default_checkpoint(), precision="int8", output=tmp_path / "out", graph=GraphOptions(keep_fp32=["logits"])
        )


@pytest.mark.parametrize(
    ("options", "how", "count"),
    [
        ({"input": "uint8", "io_dtype": "float16", "opset": 21}, {}, 6),
        ({"embed_resize": True}, {}, 6),
        ({"dynamic_image_size": True, "outputs": ["logits", "hidden_states"]}, {}, 6),
        ({"io_dtype": "float16"}, {"scheme": "dynamic", "reduce_range": True}, 6),
        ({"io_dtype": "float16"}, {"target": "tensorrt"}, 7),  # the patches too, under a name of their own
    ],
    ids=str,
)
def test_other_inputs_and_outputs(tmp_path: Path, options: dict[str, Any], how: dict[str, Any], count: int) -> None:
    """Calibrated on what the graph takes: bytes, images of any size, half floats."""
    checkpoint = write_checkpoint_of(tiny_model(num_hidden_layers=1), tmp_path / "checkpoint")
    # Weights of such a spread, in so narrow a model, add up to more than the default; it is the way that is tested.
    bundle = vitdeploy.export(
        checkpoint,
        precision="int8",
        output=tmp_path / "out",
        graph=GraphOptions(**options),
        quantization=Quantization(dataclasses.replace(IMAGES, count=3), **how),
        validation=ValidationOptions(tolerance=0.5),
    )
    (artifact,) = bundle.manifest.artifacts
    assert artifact.options["quantized_nodes"] == count
    if "input" not in options and "io_dtype" in options:
        assert {spec.dtype for spec in (*artifact.inputs, *artifact.outputs)} == {"float16"}
    if "reduce_range" in how:
        model = onnx.load(bundle.path / artifact.files[0].path)
        weights = [onnx.numpy_helper.to_array(each) for each in model.graph.initializer if each.data_type == 3]
        assert {int(np.abs(each).max()) for each in weights if each.ndim == 2} == {64}
    assert {each["output"] for each in artifact.validation["calibration_images"]} == {
        spec.name for spec in artifact.outputs
    }
    with vitdeploy.load(bundle.path, precision="int8") as predictor:
        assert len(predictor.predict([np.zeros((40, 50, 3), np.uint8)])[0]) == len(TINY["labels"])


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_the_rest_in_half_precision(bundles: dict[str, Bundle], tmp_path: Path, precision: str) -> None:
    """Scales are half too: TensorRT takes those of an activation and a weight in one type alone."""
    whole = bundles["static-symmetric" if precision == "int8" else "static-e4m3"]
    shutil.copytree(whole.path, tmp_path / "out")
    rest = Quantization(IMAGES, target="tensorrt", rest="fp16")
    bundle = vitdeploy.export(default_checkpoint(), precision=precision, output=tmp_path / "out", quantization=rest)
    artifact = bundle.artifact("onnx", precision)
    assert (artifact.options["rest"], artifact.options["float32_nodes"]) == ("fp16", [])
    assert artifact.options["rest_float32_nodes"] == []
    before, after = (onnx.load(each.path / artifact.files[0].path).graph for each in (whole, bundle))
    scales = {node.input[1] for node in after.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")}
    assert {tensor.data_type for tensor in after.initializer if tensor.name in scales} == {onnx.TensorProto.FLOAT16}
    makers = {name: node for node in after.node for name in node.output}
    products = [node for node in after.node if node.op_type == "MatMul"]
    from_8_bits = [{makers[name].op_type for name in node.input} == {"DequantizeLinear"} for node in products]
    assert (sum(from_8_bits), len(products)) == (30, 40)
    count = [sum(node.op_type == "Cast" for node in graph.node) for graph in (before, after)]
    assert count[0] < count[1] < 50
    assert build_engine(bundle, of="onnx", precision=precision) > 0
    with raises(UsageError, what=f"onnx-{precision}", where=bundle.path):
        bisect(bundle, precision)


def test_weights_in_a_file_of_their_own(tmp_path: Path) -> None:
    model = tiny_model()
    whole = export_graph(model, tmp_path / "whole", precision=Precision.INT8)
    apart = export_graph(model, tmp_path / "apart", precision=Precision.INT8, max_bytes=100)
    assert (whole.files, apart.files) == (
        ("onnx/model_int8.onnx",),
        ("onnx/model_int8.onnx", "onnx/model_int8.onnx.data"),
    )
    feeds = make_feeds(model, 2)
    outputs = []
    for folder in (tmp_path / "whole", tmp_path / "apart"):
        with OnnxRuntime(folder / "onnx/model_int8.onnx") as runtime:
            outputs.append(runtime.run(feeds)["logits"])
    np.testing.assert_array_equal(outputs[0], outputs[1])
    want = reference(model, feeds)["logits"]
    assert np.abs(outputs[0] - want).max() < 0.2 * np.abs(want).max()


def test_a_model_that_does_not_stand_it_is_not_written(tmp_path: Path) -> None:
    with raises(CheckFailedError, where="onnx-int8", expected=1e-4):
        strict = ValidationOptions(tolerance=1e-4)
        vitdeploy.export(default_checkpoint(), precision="int8", output=tmp_path / "out", validation=strict)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("precision", "graph", "quantization", "error", "what"),
    [
        ("fp8", GraphOptions(opset=20), Quantization(IMAGES), UsageError, "opset"),
        ("int8", GraphOptions(opset=18), Quantization(IMAGES, target="tensorrt", rest="fp16"), UsageError, "opset"),
        ("int8", GraphOptions(), "none", InputError, ""),
    ],
    ids=str,
)
def test_arguments_that_only_an_export_can_refuse(
    tmp_path: Path, precision: str, graph: GraphOptions, quantization: Any, error: type[VitDeployError], what: str
) -> None:
    with raises(error, **({"what": what} if what else {})):
        vitdeploy.export(
            default_checkpoint(), precision=precision, output=tmp_path / "out", graph=graph, quantization=quantization
        )
    assert not (tmp_path / "out").exists()


def test_on_the_command_line(tmp_path: Path) -> None:
    run = CliRunner()
    arguments = ["--model", str(default_checkpoint()), "-o", str(tmp_path / "out")]
    images = ["--calibration-data", str(held_out_images()), "--calibration-images", "16"]
    cache = tmp_path / "cache"
    printed = run.invoke(export_command, [*arguments, "--int8", *images, "--calibration-cache", str(cache)])
    assert printed.exit_code == 0, printed.output
    assert "onnx-int8  onnx/model_int8.onnx" in printed.output
    measured = "logits: top-1 agreement 100.00%, mean cosine 0.999"
    assert measured in printed.output
    assert "(4 held-out images)" in printed.output
    assert "candidates; --details lists them" in printed.output
    assert measured in run.invoke(inspect_command, [str(tmp_path / "out")]).output
    assert (
        len(list(cache.iterdir())) == 2
    )  # the extremes on the images that ranges come from, and on those of the choice
    printed = run.invoke(
        export_command, [*arguments, "--fp8", *images, "--calibration", "minmax", "--no-calibration-cache", "--json"]
    )
    names = {artifact["precision"]: artifact for artifact in json.loads(printed.output)["artifacts"]}
    assert list(names) == ["fp8", "int8"]
    assert names["fp8"]["options"]["calibration"] == "minmax"
    assert len(list(cache.iterdir())) == 2
    refused = run.invoke(export_command, [*arguments, "--int8", "--target", "tensorrt"])
    assert isinstance(refused.exception, UsageError)
