"""The images that are assessed with."""

from __future__ import annotations

import itertools
import os
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from vitdeploy.assess.samples import IMAGE_SUFFIXES, feeds, fingerprint, image_files, labelled_files, synthetic_images
from vitdeploy.errors import InputError
from vitdeploy.models.config import ViTConfig
from vitdeploy.models.signature import input_specs
from vitdeploy.specs import Task

if TYPE_CHECKING:
    from pathlib import Path


def fill(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")


def test_image_files_are_found_below_and_sorted(tmp_path: Path) -> None:
    fill(tmp_path, "b.PNG", "a/c.jpg", "a/b/d.jpeg", "notes.txt", "e.webp.json", "z.tiff")
    (tmp_path / "folder.png").mkdir()
    found = [path.relative_to(tmp_path).as_posix() for path in image_files(tmp_path)]
    assert found == ["a/b/d.jpeg", "a/c.jpg", "b.PNG", "z.tiff"]
    assert image_files(str(tmp_path)) == image_files(tmp_path)


def test_links_are_followed_and_a_loop_ends(tmp_path: Path) -> None:
    fill(tmp_path / "far", "a.png", "more/b.png")
    fill(tmp_path / "data", "cat/c.png")
    (tmp_path / "data" / "dog").symlink_to(tmp_path / "far")
    (tmp_path / "data" / "newt").symlink_to(tmp_path / "far" / "more")
    (tmp_path / "far" / "loop").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "cat" / "d.png").symlink_to(tmp_path / "far" / "a.png")
    found = [path.relative_to(tmp_path / "data").as_posix() for path in image_files(tmp_path / "data")]
    assert found == ["cat/c.png", "cat/d.png", "dog/a.png", "dog/more/b.png", "newt/b.png"]


@pytest.mark.parametrize("name", ["cat/b.png", "dog"])
def test_a_link_to_nothing_and_a_pipe_are_not_left_out(tmp_path: Path, name: str) -> None:
    fill(tmp_path, "cat/a.png")
    (tmp_path / name).symlink_to(tmp_path / "absent")
    with pytest.raises(
        InputError, match=f"{name} must be a file or a folder, is a pipe, a device or a link to nothing"
    ):
        image_files(tmp_path)
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to(tmp_path / name)
    with pytest.raises(InputError, match=f"that can be read: Too many levels of symbolic links: .*{name}"):
        image_files(tmp_path)
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / "cat" / "b.png")
    with pytest.raises(InputError, match=r"cat/b\.png must be a file or a folder"):
        image_files(tmp_path)


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, "cat/a.png", "dog/b.png")
    scandir = os.scandir

    def refused(path: Any) -> Any:
        if os.fspath(path).endswith("dog"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(InputError, match="dog must be a folder that can be read: Permission denied"):
        image_files(tmp_path)
    with pytest.raises(InputError, match="must be a folder of images that can be read: File name too long"):
        image_files(tmp_path / ("x" * 300))


def test_every_suffix_is_one_that_pillow_reads() -> None:
    assert set(Image.registered_extensions()) >= IMAGE_SUFFIXES


def test_a_folder_without_images(tmp_path: Path) -> None:
    fill(tmp_path, "notes.txt")
    with pytest.raises(InputError, match=r"must hold images \(\.bmp, .*\), holds none"):
        image_files(tmp_path)
    for name in ("notes.txt", "absent"):
        with pytest.raises(InputError, match=f"{name} must be a folder of images, but is none"):
            image_files(tmp_path / name)


def test_labelled_files(tmp_path: Path) -> None:
    fill(tmp_path, "dog/b.png", "dog/more/a.png", "cat/c.png", "cat/notes.txt")
    pairs = [(path.relative_to(tmp_path).as_posix(), index) for path, index in labelled_files(tmp_path, ["cat", "dog"])]
    assert pairs == [("cat/c.png", 0), ("dog/b.png", 1), ("dog/more/a.png", 1)]


@pytest.mark.parametrize(
    ("name", "labels", "message"),
    [
        ("bird/a.png", ["cat", "dog"], r"a\.png must be in a folder named like a class \(cat, dog\), is in 'bird'"),
        ("Cat/a.png", ["cat", "dog"], r"is in 'Cat'"),
        ("x/cat/a.png", ["cat"], r"is in 'x'"),
        ("a.png", ["a.png", "dog"], r"named like a class \(a\.png, dog\), is in .*"),
        ("bird/a.png", list("abcdefg"), r"\(a, b, c, d, e, \.\.\.\), is in 'bird'"),
        # ImageNet has two cranes: a bird and a machine.
        ("crane/a.png", ["crane", "dog", "crane"], r"names one class, 'crane' names those of indices \[0, 2\]"),
    ],
)
def test_an_image_whose_class_is_not_clear(tmp_path: Path, name: str, labels: list[str], message: str) -> None:
    fill(tmp_path, name)
    with pytest.raises(InputError, match=message):
        labelled_files(tmp_path, labels)


def test_a_name_that_two_classes_have_is_no_matter_where_no_image_is_of_them(tmp_path: Path) -> None:
    fill(tmp_path, "dog/a.png")
    assert [index for _, index in labelled_files(tmp_path, ["crane", "crane", "dog"])] == [2]


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
    assert mask.dtype == np.bool_
    assert mask.shape == (4, 256)
    assert 0.4 < mask.mean() < 0.6  # four deviations of 1024 coins are 0.06
    np.testing.assert_array_equal(mask, feeds(specs, pixels)["bool_masked_pos"])
    assert not np.array_equal(mask, feeds(specs, pixels, seed=1)["bool_masked_pos"])
