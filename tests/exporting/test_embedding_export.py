"""Embeddings of artifacts in every precision: of length one, whatever the type of the rest; and in the manifest."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from bundles import tiny_model, write_checkpoint_of
from command_line import run
from raising import raises

import vitdeploy
from vitdeploy import GraphOptions, Quantization, SourceOptions
from vitdeploy.assess.data.images import synthetic_images
from vitdeploy.errors import UsageError
from vitdeploy.specs import EMBEDS, AxisRange, Task

if TYPE_CHECKING:
    from pathlib import Path

    from vitdeploy.models.vit import VisionTransformer

IMAGES = synthetic_images(3, 32, 32)
UNIT = GraphOptions(pool="cls", normalize=True)


def scaled_model(factor: float) -> VisionTransformer:
    """A model whose tokens are larger by a factor after the last norm."""
    model = tiny_model(Task.FEATURES)
    with torch.no_grad():
        for parameter in model.layernorm.parameters():
            parameter.mul_(factor)
    return model


@pytest.mark.parametrize(
    ("to", "precision"),
    [("onnx", "fp16"), ("onnx", "int8"), ("openvino", "fp16"), ("openvino", "bf16"), ("torchscript", "bf16")],
)
def test_the_norm_is_computed_in_float32(tmp_path: Path, to: str, precision: str) -> None:
    checkpoint = write_checkpoint_of(scaled_model(500), tmp_path / "checkpoint")  # squares of 1e6 exceed float16
    bundle = vitdeploy.export(checkpoint, to=to, precision=precision, output=tmp_path / "out", graph=UNIT)
    with vitdeploy.load(bundle.path) as predictor, vitdeploy.load(bundle.path, backend="torch") as reference:
        vectors, expected = predictor.embed(IMAGES), reference.embed(IMAGES)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert (vectors * expected).sum(axis=1).min() > 0.98  # 8 bits in a tiny model


@pytest.mark.parametrize("to", ["onnx", "openvino", "torchscript"])
def test_a_zero_vector_is_zero_in_the_graph(tmp_path: Path, to: str) -> None:
    checkpoint = write_checkpoint_of(scaled_model(0), tmp_path / "checkpoint")
    tolerance = vitdeploy.ValidationOptions(tolerance=1e-3)
    bundle = vitdeploy.export(
        checkpoint, to=to, precision="fp16", output=tmp_path / "out", graph=UNIT, validation=tolerance
    )
    with vitdeploy.load(bundle.path) as predictor:
        assert not predictor.embed(IMAGES).any()


def test_dynamic_sizes_and_an_engine(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx has no wheel for this platform")
    checkpoint = write_checkpoint_of(tiny_model(Task.FEATURES), tmp_path / "checkpoint")
    graph = GraphOptions(pool="cls+mean", normalize=True, image_size=((16, 16), (32, 32), (64, 64)))
    bundle = vitdeploy.export(checkpoint, to="tensorrt-rtx", precision="fp16", output=tmp_path / "out", graph=graph)
    onnx, engine = bundle.manifest.artifacts
    assert engine.outputs == onnx.outputs
    assert [(spec.name, spec.shape) for spec in engine.outputs] == [(EMBEDS, ("batch", 48))]
    assert engine.axes["height"] == AxisRange(16, 32, 64)
    for artifact in (onnx, engine):
        assert (artifact.options["embedding_pool"], artifact.options["normalize_embedding"]) == ("cls+mean", True)


def test_the_command_and_what_a_bundle_keeps(tmp_path: Path) -> None:
    checkpoint, out = write_checkpoint_of(tiny_model(Task.FEATURES), tmp_path / "checkpoint"), tmp_path / "out"
    assert run("export", checkpoint, "-o", out, "--normalize").code == 0
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    assert (config["embedding_pool"], config["normalize_embedding"]) == ("pooler", True)
    # Exported again from the bundle, the vectors are the same without the options, and beside other outputs.
    outputs = ("image_embeds", "last_hidden_state")
    bundle = vitdeploy.export(out, to="torchscript", output=out, graph=GraphOptions(outputs=outputs))
    assert [artifact.name for artifact in bundle.manifest.artifacts] == ["onnx-fp32", "torchscript-fp32"]
    with vitdeploy.load(out, backend="torchscript") as scripted, vitdeploy.load(out, backend="onnxruntime") as onnx:
        assert tuple(spec.name for spec in scripted.runtime.outputs) == outputs
        np.testing.assert_allclose(scripted.embed(IMAGES), onnx.embed(IMAGES), atol=1e-5)
        assert scripted.embed(IMAGES, pool="mean").shape == (3, 24)
        with raises(UsageError, what="pool", found="mean", expected=("pooler",)):
            onnx.embed(IMAGES, pool="mean")
    assert vitdeploy.compare(out, images=IMAGES).status == "passed"
    with raises(UsageError, what="model"):  # other vectors are another model's
        vitdeploy.export(checkpoint, output=out, graph=UNIT)
    code, _, err = run("export", checkpoint, "--task", "image-classification", "--pool", "cls", "-o", tmp_path / "x")
    assert code != 0, err
    with raises(UsageError, what="pool", found=Task.CLASSIFICATION):
        source = SourceOptions(random_weights="vit-tiny-patch16-32")
        vitdeploy.export(output=tmp_path / "y", graph=UNIT, source=source)


def test_quantization_is_judged_by_the_embeddings(tmp_path: Path) -> None:
    """The vectors that users compare are those that an accuracy bound is measured on."""
    folder = tmp_path / "images"
    folder.mkdir()
    for index, image in enumerate(synthetic_images(8, 32, 32)):
        image.save(folder / f"{index}.png")
    checkpoint = write_checkpoint_of(tiny_model(Task.FEATURES), tmp_path / "checkpoint")
    quantization = Quantization(vitdeploy.Calibration(folder), accuracy=vitdeploy.MinCosine(0.9))
    bundle = vitdeploy.export(
        checkpoint, precision="int8", output=tmp_path / "out", graph=UNIT, quantization=quantization
    )
    assert bundle.manifest.artifacts[0].validation["accuracy"]["output"] == EMBEDS
