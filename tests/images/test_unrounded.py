"""DINOv3ViTImageProcessor, which torchvision alone has: its resized pixels are not rounded to bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from families import HEADS, random_config
from PIL import Image
from processors import UNROUNDED_TOLERANCE, unrounded_pixels
from raising import raises
from sklearn.datasets import load_sample_images

import vitdeploy
from vitdeploy import GraphOptions
from vitdeploy.errors import UsageError
from vitdeploy.images.processor import ImageProcessor
from vitdeploy.specs import PixelFormat, PixelStage

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import WriteCheckpoint

CHINA, FLOWER = (Image.fromarray(image) for image in load_sample_images().images)
KIND = {"image_processor_type": "DINOv3ViTImageProcessorFast"}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"size": {"height": 256, "width": 96}},
        {"size": {"height": 512, "width": 700}, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.1, 0.2, 0.3]},
        {"resample": 3},
    ],
    ids=str,
)
def test_pixels_are_torchvisions_within_1_percent_of_a_gray_level(settings: dict[str, Any]) -> None:
    processor = ImageProcessor.from_dict(KIND | settings)
    got, want = processor([CHINA, FLOWER]), unrounded_pixels([CHINA, FLOWER], processor)
    std = np.array(processor.image_std)[:, None, None]
    assert got.dtype == np.float32
    assert got.flags.c_contiguous
    assert np.abs((got - want) * std).max() <= UNROUNDED_TOLERANCE


def test_other_classes_round_to_a_gray_level() -> None:
    processor = ImageProcessor.from_dict(KIND)
    rounding = ImageProcessor.from_dict(processor.to_dict() | {"image_processor_type": "ViTImageProcessor"})
    difference = np.abs(processor(CHINA) - rounding(CHINA)) * np.array(processor.image_std)[:, None, None]
    assert 0.4 / 255 < difference.max() < 2 / 255


def test_without_a_resize_there_is_nothing_to_round() -> None:
    processor = ImageProcessor.from_dict(KIND | {"do_resize": False})
    plain = ImageProcessor.from_dict(processor.to_dict() | {"image_processor_type": "ViTImageProcessor"})
    np.testing.assert_array_equal(processor(CHINA), plain(CHINA))
    assert processor(CHINA, pixels=PixelFormat(PixelStage.RESIZED, "nhwc", "uint8")).dtype == np.uint8


@pytest.mark.parametrize("change", [{"do_normalize": False}, {"do_rescale": False}, {"crop_size": 200}], ids=str)
def test_other_steps_are_those_of_every_class(change: dict[str, Any]) -> None:
    crop = {"do_center_crop": "crop_size" in change}
    processor = ImageProcessor.from_dict(KIND | {"size": 100, **crop} | change)
    plain = ImageProcessor.from_dict(processor.to_dict() | {"image_processor_type": "ViTImageProcessor"})
    got, rounded = processor(FLOWER), plain(FLOWER)
    assert got.shape == rounded.shape
    np.testing.assert_allclose(got, rounded, atol=1.5 * float(plain.scale.max()))


@pytest.mark.parametrize("stage", [PixelStage.RESIZED, PixelStage.DECODED])
def test_a_model_that_takes_bytes_is_refused(stage: PixelStage) -> None:
    processor = ImageProcessor.from_dict(KIND)
    with raises(UsageError, what="image_processor_type", found="DINOv3ViTImageProcessor"):
        processor(CHINA, pixels=PixelFormat(stage, "nhwc", "uint8"))


@pytest.mark.parametrize("to", ["onnx", "torchscript"])
def test_an_export_of_a_model_that_takes_bytes_is_refused(
    write_checkpoint: WriteCheckpoint, tmp_path: Path, to: str
) -> None:
    head = next(head for head in HEADS if head.family == "dinov3_vit")
    checkpoint = write_checkpoint(head, random_config(head, 0))
    with raises(UsageError, what="image_processor_type", found="DINOv3ViTImageProcessor"):
        vitdeploy.export(checkpoint.folder, to=to, output=tmp_path / "out", graph=GraphOptions(input="uint8"))
    assert not (tmp_path / "out").exists()
