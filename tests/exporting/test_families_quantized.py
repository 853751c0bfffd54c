"""Every family in 8 bits: graph features beyond a plain ViT stay correct; TensorRT builds them, OpenVINO runs them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from compiler import build_engine
from families import HEADS, ONE_A_FAMILY, Head, random_config

import vitdeploy
from vitdeploy import Calibration, Quantization, ValidationOptions
from vitdeploy.assets import held_out_images
from vitdeploy.specs import Task

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import WriteCheckpoint

MASKED = next(head for head in HEADS if head.task is Task.MASKED_IMAGE_MODELING)
# What a plain ViT has not: relative positions; a gated MLP, or layer scale; a mask, and a convolution for a head.
CHOSEN = [*(head for head in ONE_A_FAMILY if head.family in ("beit", "dinov2")), MASKED]
IMAGES = Calibration(held_out_images(), count=4)
FOR_TENSORRT = Quantization(IMAGES, target="tensorrt")


@pytest.mark.parametrize("head", CHOSEN, ids=str)
def test_what_a_family_adds_survives(write_checkpoint: WriteCheckpoint, tmp_path: Path, head: Head) -> None:
    checkpoint = write_checkpoint(head, random_config(head, 1))
    loose = ValidationOptions(tolerance=1)
    bundle = vitdeploy.export(
        checkpoint.folder, precision="int8", output=tmp_path / "out", quantization=FOR_TENSORRT, validation=loose
    )
    (artifact,) = bundle.manifest.artifacts
    # Seen: 0.993 and more. Weights of such a spread make attention nearly hard, which adds to every rounding before it.
    assert min(output["min_cosine"] for output in artifact.validation["outputs"]) > 0.98
    build_engine(bundle)
    bundle = vitdeploy.export(
        checkpoint.folder, to="openvino", precision="int8", output=tmp_path / "openvino",
        quantization=Quantization(IMAGES), validation=loose,
    )  # fmt: skip
    (artifact,) = bundle.manifest.artifacts
    assert min(output["min_cosine"] for output in artifact.validation["outputs"]) > 0.98


def test_attention_pooling_survives(write_checkpoint: WriteCheckpoint, tmp_path: Path) -> None:
    """Measured on images like those of the calibration: the pooled token of noise is beyond the ranges of digits."""
    head = next(head for head in HEADS if head.name == "SiglipVisionModel")
    checkpoint = write_checkpoint(head, random_config(head, 1))
    loose = ValidationOptions(tolerance=1)
    bundle = vitdeploy.export(
        checkpoint.folder, precision="int8", output=tmp_path / "tensorrt", quantization=FOR_TENSORRT, validation=loose
    )
    build_engine(bundle)
    images = sorted(held_out_images().rglob("*.png"))[5::14]
    for to in ("onnx", "openvino"):
        bundle = vitdeploy.export(
            checkpoint.folder, to=to, precision="int8", output=tmp_path / to, quantization=Quantization(IMAGES),
            validation=loose,
        )  # fmt: skip
        (result,) = vitdeploy.compare(bundle, images=images, tolerance=1).results
        assert min(vectors.min_cosine for vectors in result.nearness) > 0.99  # seen: 0.998
