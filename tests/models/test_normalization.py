"""Bytes in, with rescaling and normalisation in the patch projection."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from bundles import FLOAT32_TOLERANCE, tiny_model, write_checkpoint_of
from compiler import build_engine

import vitdeploy
from vitdeploy.assess.benchmark.benchmark import benchmark
from vitdeploy.bundle.bundle import Bundle
from vitdeploy.images.processor import ImageProcessor
from vitdeploy.models.normalization import fold_normalization
from vitdeploy.models.presets import random_model
from vitdeploy.specs import PixelFormat, PixelStage, Task

PROCESSORS: list[dict[str, Any]] = [
    {},
    {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]},
    {"do_normalize": False},
    {"do_rescale": False, "image_mean": [120, 110, 100], "image_std": [60, 59, 58]},
    {"rescale_factor": 1 / 127.5, "image_mean": [1, 1, 1], "image_std": [1, 1, 1]},
]


@pytest.mark.parametrize("settings", PROCESSORS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_bytes_give_what_their_normalised_values_give(settings: dict[str, Any], dtype: torch.dtype) -> None:
    processor = ImageProcessor.from_dict({"image_processor_type": "ViTImageProcessor", **settings})
    model = tiny_model()
    before = copy.deepcopy(model.state_dict())
    folded = fold_normalization(model, processor.scale, processor.offset).to(dtype).eval()
    pixels = np.random.default_rng(0).integers(0, 256, (3, 3, 32, 32)).astype(np.float64)
    values = pixels * processor.scale[:, None, None] + processor.offset[:, None, None]
    with torch.inference_mode():
        want = copy.deepcopy(model).double().eval()(torch.from_numpy(values))["logits"]
        found = folded(torch.from_numpy(pixels))["logits"]
    assert (found - want).abs().max() <= FLOAT32_TOLERANCE * want.abs().max()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_other_weights_are_shared() -> None:
    model = tiny_model()
    folded = fold_normalization(model, np.full(3, 2.0), np.zeros(3))
    own = {
        name for name, value in folded.named_parameters() if value.data_ptr() != model.get_parameter(name).data_ptr()
    }
    assert own == {f"embeddings.patch_embeddings.projection.{name}" for name in ("weight", "bias")}


def test_a_projection_without_a_bias_gets_one() -> None:
    """CLIP's."""
    config = dataclasses.replace(tiny_model().config, projection_bias=False, embedding_norm=True)
    model = random_model(config)
    scale, offset = np.array([0.02, 0.03, 0.01]), np.array([-1.0, -2.0, 0.5])
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 32, 32)).astype(np.float32)
    values = (pixels * scale[:, None, None] + offset[:, None, None]).astype(np.float32)
    with torch.inference_mode():
        want = model(torch.from_numpy(values))["logits"]
        found = fold_normalization(model, scale, offset)(torch.from_numpy(pixels))["logits"]
    assert (found - want).abs().max() <= FLOAT32_TOLERANCE * want.abs().max()
    assert "embeddings.patch_embeddings.projection.bias" not in model.state_dict()


def images() -> list[np.ndarray]:
    generator = np.random.default_rng(1)
    return [generator.integers(0, 256, (height, width, 3), np.uint8) for height, width in ((40, 50), (32, 32), (9, 70))]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("plain")
    return vitdeploy.export(write_checkpoint_of(tiny_model(), folder / "checkpoint"), output=folder / "bundle")


@pytest.mark.parametrize(("layout", "dynamic"), [("nchw", False), ("nhwc", True)])
def test_a_bundle_of_bytes_predicts_alike(tmp_path: Path, plain: Bundle, layout: str, dynamic: bool) -> None:
    bundle = vitdeploy.export(
        plain.path,
        output=tmp_path / "out",
        graph=vitdeploy.GraphOptions(input="uint8", layout=layout, dynamic_image_size=dynamic),
    )
    (artifact,) = bundle.manifest.artifacts
    assert artifact.pixels == PixelFormat(PixelStage.RESIZED, layout, "uint8")  # type: ignore[arg-type]
    assert artifact.inputs[0].dtype == "uint8"
    added = {"Cast"} if layout == "nchw" else {"Cast", "Transpose"}
    operators = [
        [node.op_type for node in onnx.load(each.path / "onnx" / "model.onnx").graph.node] for each in (plain, bundle)
    ]
    if not dynamic:
        assert len(operators[1]) - len(operators[0]) == len(added)
        assert set(operators[1][: len(added)]) == added
    with vitdeploy.load(plain.path) as of_floats, vitdeploy.load(bundle.path) as of_bytes:
        pixels = of_bytes.processor(images(), pixels=of_bytes.runtime.pixels)
        floats = of_floats.processor(images())
        assert pixels.nbytes * 4 == floats.nbytes
        np.testing.assert_allclose(of_bytes.logits(pixels), of_floats.logits(floats), atol=1e-5)
        for found, want in zip(of_bytes.predict(images()), of_floats.predict(images()), strict=True):
            assert [prediction.label for prediction in found] == [prediction.label for prediction in want]
            assert [prediction.score for prediction in found] == pytest.approx([each.score for each in want], abs=1e-5)
    assert vitdeploy.compare(bundle).status == "passed"
    assert benchmark(bundle, backends=["onnxruntime"], rounds=1, runs=1).status == "passed"
    build_engine(bundle)


def test_a_mask_goes_with_bytes(tmp_path: Path) -> None:
    checkpoint = write_checkpoint_of(tiny_model(Task.MASKED_IMAGE_MODELING), tmp_path / "checkpoint")
    graph = vitdeploy.GraphOptions(input="uint8")
    bundle = vitdeploy.export(checkpoint, to="torchscript", output=tmp_path / "out", graph=graph)
    assert [spec.dtype for spec in bundle.manifest.artifacts[0].inputs] == ["uint8", "bool"]
