"""OpenVINO artifacts from end to end: proven in OpenVINO, in the precision that the manifest pins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
from bundles import FLOAT32_TOLERANCE, worst_difference
from command_line import run
from raising import raises

import vitdeploy
from vitdeploy import Calibration, MinAgreement, Quantization
from vitdeploy.assess.debug import quantization_error
from vitdeploy.assess.debug.layers import compare_layers
from vitdeploy.assess.inspection.inspection import inspect_artifact
from vitdeploy.assets import default_checkpoint, held_out_images
from vitdeploy.bundle.bundle import Bundle
from vitdeploy.errors import CheckFailedError, UsageError
from vitdeploy.exporters import openvino_ir
from vitdeploy.exporting.quantization import mixed_precision
from vitdeploy.runtimes import open_runtime

BF16 = "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
needs_bf16 = pytest.mark.skipif(not BF16, reason="this CPU does not compute in bfloat16")
IMAGES = Calibration(held_out_images(), count=48)
STATIC = Quantization(IMAGES, scheme="static")


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The embedded model in float32, and with 8-bit products, in ONNX too."""
    folder = tmp_path_factory.mktemp("openvino") / "out"
    vitdeploy.export(default_checkpoint(), to="openvino", output=folder)
    for to in ("onnx", "openvino"):
        made = vitdeploy.export(default_checkpoint(), to=to, precision="int8", quantization=STATIC, output=folder)
    return made


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """In bfloat16, and with bfloat16 beside 8-bit products."""
    folder = tmp_path_factory.mktemp("bfloat16") / "out"
    vitdeploy.export(default_checkpoint(), to="openvino", precision="bf16", output=folder)
    rest = Quantization(IMAGES, rest="bf16")
    return vitdeploy.export(default_checkpoint(), to="openvino", precision="int8", quantization=rest, output=folder)


def outputs(bundle: Bundle, backend: str, precision: str = "fp32") -> dict[str, np.ndarray]:
    pixels = np.random.default_rng(0).standard_normal((3, 3, 32, 32), np.float32)
    with open_runtime(bundle, backend, precision=precision) as runtime:
        return runtime.run({"pixel_values": pixels})


def difference(bundle: Bundle, precision: str, other: Bundle, backend: str, other_precision: str) -> float:
    return worst_difference(outputs(bundle, "openvino", precision), outputs(other, backend, other_precision))


def test_float32_is_float32_and_8_bits_are_those_of_onnx(single: Bundle) -> None:
    assert difference(single, "fp32", single, "torch", "fp32") <= FLOAT32_TOLERANCE
    assert 1e-2 < difference(single, "int8", single, "torch", "fp32") < 0.1
    # A value next to the border of two steps may be rounded to either: seen 3e-3.
    assert difference(single, "int8", single, "onnxruntime", "int8") < 1e-2
    ours, theirs = (single.artifact(to, "int8") for to in ("openvino", "onnx"))
    assert ours.options == {**theirs.options, "inference_precision": "f32"}
    assert (ours.inputs, ours.outputs) == (theirs.inputs, theirs.outputs)
    assert (ours.validation["backend"], ours.validation["calibration_images"][0]["held_out"]) == ("openvino", True)
    assert not (set(ours.files) & set(theirs.files))
    evaluation = vitdeploy.evaluate(single, data=held_out_images(), backends=["openvino:int8", "torch"], limit=90)
    quantized, torch = (evaluation.top1(result).correct for result in evaluation.results)
    assert quantized >= torch - 1


@needs_bf16
def test_bfloat16_is_bfloat16_beside_8_bits_too(half: Bundle, single: Bundle) -> None:
    assert 1e-3 < difference(half, "bf16", single, "torch", "fp32") < 2e-2
    for name, types in (("bf16", {"bf16"}), ("int8", {"bf16", "u8"})):
        artifact = half.artifact("openvino", name)
        assert artifact.options["inference_precision"] == "bf16"
        with open_runtime(half, "openvino", precision=name) as runtime:
            assert types <= set(runtime.details["computes_in"])
    quantized = half.artifact("openvino", "int8").options
    assert (quantized["rest"], quantized["bf16_nodes"], quantized["quantized_nodes"]) == ("bf16", [], 30)
    assert "float32_nodes" not in quantized
    # Of the same 8 bits: what differs is the rest.
    assert 1e-3 < difference(half, "int8", single, "openvino", "int8") < 5e-2
    assert vitdeploy.compare(half).status == "passed"


@needs_bf16
def test_a_bound_is_searched_where_the_artifact_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = []
    opened = quantization_error.opened_variant

    def spy(*arguments: Any) -> Any:
        measured.append(arguments[-1])
        return opened(*arguments)

    monkeypatch.setattr(mixed_precision, "opened_variant", spy)
    bound = Quantization(IMAGES, rest="bf16", smooth_quant="off", accuracy=MinAgreement(0.9))
    bundle = vitdeploy.export(
        default_checkpoint(), to="openvino", precision="int8", quantization=bound, output=tmp_path / "out"
    )
    (artifact,) = bundle.manifest.artifacts
    assert set(measured) == {"bf16"}
    assert artifact.validation["accuracy"]["correct"] >= artifact.validation["accuracy"]["at_least"]
    assert len(artifact.options["bf16_nodes"]) == 30 - artifact.options["quantized_nodes"]


def test_a_wrong_conversion_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def plant(model: ov.Model) -> None:
        """Attention of 0.1 % too much in one layer."""
        softmax = next(node for node in model.get_ordered_ops() if node.get_type_name() == "Softmax")
        users = softmax.output(0).get_target_inputs()
        larger = ov.opset8.multiply(softmax, np.float32(1.001))
        for user in users:
            user.replace_source_output(larger.output(0))

    monkeypatch.setattr(openvino_ir, "_check_antialiasing", plant)
    with raises(CheckFailedError, where="openvino-fp32", expected=1e-4):
        vitdeploy.export(default_checkpoint(), to="openvino", output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_inspect_shows(single: Bundle, half: Bundle) -> None:
    graphs = {
        (bundle is half, artifact.precision): inspect_artifact(bundle, artifact).graph
        for bundle in (single, half)
        for artifact in bundle.manifest.artifacts
        if artifact.format == "openvino"
    }
    plain, quantized, stored = graphs[False, "fp32"], graphs[False, "int8"], graphs[True, "bf16"]
    assert plain is not None
    assert quantized is not None
    assert stored is not None
    assert plain.versions["IR version"] == 11
    assert list(plain.layers) == ["embeddings", *(f"layers.{index}" for index in range(5)), "head"]
    assert plain.node_types["MatMul"] == quantized.node_types["MatMul"] == 41
    assert all(list(types) == ["float32"] for types in plain.layers.values())
    assert quantized.layers["layers.0"]["uint8"] >= 6
    assert {"int8", "float32"} < set(quantized.weight_bytes)
    assert next(iter(stored.weight_bytes)) == "bfloat16"
    assert 2 * stored.weight_bytes["bfloat16"] + stored.weight_bytes["float32"] == plain.weight_bytes["float32"]
    shown = run("inspect", single.path, "--artifact", "openvino-int8", "--json").json
    assert shown["artifacts"][0]["graph"]["weight_bytes"]["int8"] == quantized.weight_bytes["int8"]


def test_each_layer_is_compared(single: Bundle) -> None:
    comparison = compare_layers(single, backends=["openvino:fp32", "openvino:int8"])
    for layers, most in zip(comparison.results, (1e-5, 0.2), strict=True):
        assert layers.skipped is None
        parts = {part.part: part.worst.max_relative for part in layers.parts}
        assert list(parts) == ["embeddings", *(f"layers.{index}" for index in range(5)), "head"]
        assert max(parts.values()) < most
    assert parts["layers.2"] > 1e-3


def test_triton_cannot_pin_it(single: Bundle, tmp_path: Path) -> None:
    with raises(UsageError, what="artifact", found="openvino"):
        vitdeploy.write_triton_model(single.path, tmp_path / "models", artifact="openvino-fp32")
