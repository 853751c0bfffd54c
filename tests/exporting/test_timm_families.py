"""Families that only timm has, as artifacts: precisions, engines, graphs of every size, bundles, and planted faults.

`sources/test_layouts.py` compares their float32 artifacts with timm's results.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from bundles import export_all, sign_again
from command_line import run
from compiler import build_engine
from faults import copy_of
from onnx import numpy_helper
from raising import raises

import vitdeploy
from vitdeploy import Calibration, GraphOptions, Quantization, ValidationOptions
from vitdeploy.assess.debug.layers import compare_layers
from vitdeploy.assets import held_out_images
from vitdeploy.bundle.bundle import Bundle
from vitdeploy.errors import CheckFailedError
from vitdeploy.exporters.graph import passes, tracing
from vitdeploy.runtimes import open_runtime

if TYPE_CHECKING:
    from collections.abc import Callable

GOLDEN = Path(__file__).parents[1] / "golden" / "timm"
# A gated MLP and attention, each with an inner norm; an attention pool.
CASES = ("eva02_clip_1", "pe_core_0")
IMAGES = Calibration(held_out_images(), count=4)
# Seen: 0.9999 in fp16, 0.998 in bf16, 0.994 in int8, 0.990 in fp8. Weights of such a spread make attention nearly hard.
COSINES = {"fp16": 0.999, "bf16": 0.99, "int8": 0.98, "fp8": 0.97}
# What a graph of one size has no need of: positions are constants.
OF_SIZES = {"Sin", "Cos", "Range", "Shape", "Resize"}
# What TensorRT cannot build from shapes (EVA #117), or is slow in.
REFUSED = {"If", "Loop", "Scan", "ScatterND", "ScatterElements", "Tile", "NonZero"}


@pytest.mark.parametrize("case", CASES)
def test_every_precision_is_near_the_reference_and_builds(case: str, tmp_path: Path) -> None:
    for precision, bound in COSINES.items():
        quantized = precision in ("int8", "fp8")
        bundle = vitdeploy.export(
            GOLDEN / case,
            precision=precision,
            output=tmp_path / precision,
            quantization=Quantization(IMAGES, target="tensorrt") if quantized else None,
            validation=ValidationOptions(tolerance=1),
        )
        (artifact,) = bundle.manifest.artifacts
        assert min(output["min_cosine"] for output in artifact.validation["outputs"]) > bound, precision
        if precision in ("fp16", "int8"):
            build_engine(bundle)


@pytest.mark.parametrize("case", ["eva02_0", "pe_core_1"])
def test_a_graph_of_every_size_is_timms_and_builds(case: str, tmp_path: Path) -> None:
    graph = GraphOptions(dynamic_image_size=True)
    bundle = export_all(GOLDEN / case, formats=("onnx", "openvino"), output=tmp_path / "out", graph=graph)
    assert not operators(bundle) & REFUSED
    build_engine(bundle, of="onnx")
    with np.load(GOLDEN / case / "expected.npz") as expected:
        sizes = [key.partition("/")[0] for key in expected if key[0].isdigit() and key.endswith("logits")]
        assert len(sizes) > 2
        for backend in ("onnxruntime", "openvino"):
            with open_runtime(bundle, backend) as runtime:
                for size in sizes:
                    shape = 2, 3, *map(int, size.split("x"))
                    pixels = np.random.default_rng(int(expected["seed"])).standard_normal(shape, np.float32)
                    got, want = runtime.run({"pixel_values": pixels})["logits"], expected[f"{size}/logits"]
                    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max(), err_msg=size)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A Perception Encoder with attention pool and projection, in ONNX and TorchScript."""
    folder = tmp_path_factory.mktemp("encoder") / "bundle"
    return export_all(GOLDEN / "pe_core_0", formats=("onnx", "torchscript"), output=folder)


def test_a_bundle_is_read_again_compared_and_verified(encoder: Bundle, tmp_path: Path) -> None:
    config = json.loads((encoder.path / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == (
        "timm_perception_encoder",
        ["TimmPerceptionEncoderModel"],
    )
    assert not operators(encoder) & (OF_SIZES | REFUSED)
    assert vitdeploy.compare(encoder).status == "passed"
    assert run("verify", encoder.path).code == 0
    again = vitdeploy.export(encoder.path, output=tmp_path / "again")
    (file,) = again.artifact("onnx", "fp32").files
    assert file.sha256 == encoder.artifact("onnx", "fp32").files[0].sha256
    pictures = [np.full((40, 50, 3), value, np.uint8) for value in (10, 200)]
    found = {}
    for backend in ("torch", "onnxruntime", "torchscript"):
        with vitdeploy.load(encoder.path, backend=backend) as predictor:
            found[backend] = predictor.embed(pictures)
    for vectors in found.values():
        assert vectors.shape == (2, 512)
        np.testing.assert_allclose(vectors, found["torch"], rtol=0, atol=1e-5 * np.abs(found["torch"]).max())


def test_class_embeddings_make_a_classifier_of_the_projection(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).standard_normal((4, 512)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    classes = tmp_path / "classes.npz"
    np.savez(classes, names=np.array(list("abcd")), vectors=vectors, logit_scale=np.float32(np.log(100)))
    source = vitdeploy.SourceOptions(class_embeddings=classes)
    bundle = vitdeploy.export(GOLDEN / "pe_core_0", to="torchscript", output=tmp_path / "out", source=source)
    with np.load(GOLDEN / "pe_core_0" / "expected.npz") as expected:
        seed, embeds = int(expected["seed"]), expected["32x32/image_embeds"]
    want = 100 * embeds / np.linalg.norm(embeds, axis=1, keepdims=True) @ vectors.T
    pixels = np.random.default_rng(seed).standard_normal((2, 3, 32, 32), np.float32)
    again = vitdeploy.export(bundle.path, to="torchscript", output=tmp_path / "again")
    for path in (bundle.path, again.path):
        with open_runtime(Bundle.open(path), "torchscript") as runtime:
            got = runtime.run({"pixel_values": pixels})["logits"]
            np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())


def operators(bundle: Bundle) -> set[str]:
    graph = onnx.load(bundle.path / bundle.manifest.artifacts[0].files[0].path).graph
    return {node.op_type for node in graph.node}


def is_query(name: str, value: np.ndarray) -> bool:
    """Whether an initializer is the projected probe of the attention pool: (1, heads, 1, head_dim)."""
    return value.shape == (1, 8, 1, 3)


def is_sine(name: str, value: np.ndarray) -> bool:
    return name == "rotary.sin"


# A fault, the weights that it changes, how, and the first part that shows it.
FAULTS: dict[str, tuple[Callable[[str, np.ndarray], bool], Callable[[np.ndarray], np.ndarray], str]] = {
    "query zeroed": (is_query, np.zeros_like, "head"),
    "query of other heads": (is_query, lambda query: np.roll(query, 1, axis=1), "head"),
    "rotation reversed": (is_sine, np.negative, "layers.0"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_miscompilation_is_caught_by_export(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen, change, _ = FAULTS[fault]

    def simplify(model: Any) -> None:
        passes.simplify(model)
        weights = [
            weight
            for name, weight in model.graph.initializers.items()
            if chosen(name.removeprefix("model."), weight.const_value.numpy())
        ]
        assert len(weights) == 1
        weights[0].const_value = onnx_tensor(change(weights[0].const_value.numpy()))

    monkeypatch.setattr(tracing, "simplify", simplify)
    with raises(CheckFailedError, where="onnx-fp32"):
        vitdeploy.export(GOLDEN / "pe_core_0", output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def onnx_tensor(value: np.ndarray) -> Any:
    import onnx_ir

    return onnx_ir.Tensor(np.ascontiguousarray(value))


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_miscompilation_is_named_by_the_layer_comparison(encoder: Bundle, tmp_path: Path, fault: str) -> None:
    chosen, change, part = FAULTS[fault]
    spoilt = copy_of(encoder, tmp_path / "copy")
    path = spoilt.path / spoilt.artifact("onnx", "fp32").files[0].path
    model = onnx.load(path)
    weights = [tensor for tensor in model.graph.initializer if chosen(tensor.name, numpy_helper.to_array(tensor))]
    assert len(weights) == 1
    changed = change(numpy_helper.to_array(weights[0]))
    weights[0].CopyFrom(numpy_helper.from_array(np.ascontiguousarray(changed), weights[0].name))
    onnx.save(model, path)
    (found,) = compare_layers(sign_again(spoilt), backends=["onnxruntime"]).results
    assert (found.status, found.first) == ("failed", part)
