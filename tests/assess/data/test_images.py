"""The images that are assessed with."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from vitdeploy.assess.data.images import feeds, fingerprint, synthetic_images
from vitdeploy.models.config import ViTConfig
from vitdeploy.models.signature import input_specs
from vitdeploy.specs import Task


def test_synthetic_images_are_the_same_every_time() -> None:
    first, again = synthetic_images(3, 24, 40), synthetic_images(3, 24, 40)
    assert [(image.mode, image.size) for image in first] == [("RGB", (40, 24))] * 3
    assert [image.tobytes() for image in first] == [image.tobytes() for image in again]
    assert len({image.tobytes() for image in (*first, *synthetic_images(3, 24, 40, seed=1))}) == 6
    assert synthetic_images(1, 24, 40)[0].tobytes() == first[0].tobytes(), "more images do not change the first"


def test_synthetic_images_have_the_spectrum_of_photographs() -> None:
    """Twice the frequency, half the amplitude; clipping and eight bits leave that to within a fifth."""
    pixels = np.stack([np.asarray(image, np.float64) for image in synthetic_images(8, 128, 128)])
    assert 100 < pixels.mean() < 156
    assert 50 < pixels.std() < 70
    amplitude = np.abs(np.fft.fft2(pixels, axes=(1, 2)))
    radius = np.hypot(np.fft.fftfreq(128)[:, None], np.fft.fftfreq(128)[None, :])
    rings = [amplitude[:, (low <= radius) & (radius < 1.25 * low)].mean() for low in (0.05, 0.1, 0.2)]
    for wide, narrow in itertools.pairwise(rings):
        assert 1.6 < wide / narrow < 2.4


@pytest.mark.parametrize("size", [(1, 1), (1, 8), (8, 1), (3, 5)])
def test_synthetic_images_of_any_size(size: tuple[int, int]) -> None:
    (image,) = synthetic_images(1, *size)
    assert (image.height, image.width) == size


def test_a_fingerprint_is_of_the_values_in_order() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert fingerprint(array) == fingerprint(np.asfortranarray(array)) == fingerprint(array.copy())
    assert fingerprint(array) != fingerprint(array.T)
    assert len(fingerprint(array)) == 64


def test_feeds_cover_half_of_the_patches_where_a_mask_is_due() -> None:
    config = ViTConfig(image_size=(64, 64), patch_size=(4, 4))
    pixels = np.zeros((4, 3, 64, 64), np.float32)
    assert feeds(input_specs(config, Task.CLASSIFICATION), pixels).keys() == {"pixel_values"}
    specs = input_specs(config, Task.MASKED_IMAGE_MODELING)
    arrays = feeds(specs, pixels)
    mask = arrays["bool_masked_pos"]
    assert arrays["pixel_values"] is pixels
    assert mask.shape == (4, 256)
    assert mask.dtype == np.bool_
    assert 0.4 < mask.mean() < 0.6  # four deviations of 1024 coins are 0.06
    np.testing.assert_array_equal(mask, feeds(specs, pixels)["bool_masked_pos"])
    assert not np.array_equal(mask, feeds(specs, pixels, seed=1)["bool_masked_pos"])
