"""The formats that are read, and their endings: Pillow's registry is the oracle."""

from __future__ import annotations

import io
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from vitdeploy import image_formats
from vitdeploy.errors import ImageError
from vitdeploy.image_formats import FORMATS, image_endings, readable_formats
from vitdeploy.images import open_image

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 10, 3), np.uint8)
REFUSED = {"EPS", "PDF", "WMF", "FITS", "HDF5", "GRIB", "BUFR", "MPEG", "ICO", "PSD"}


def test_endings_are_those_that_pillow_registers() -> None:
    registered = Image.registered_extensions()
    assert image_endings() == {ending for ending, name in registered.items() if name in FORMATS}
    assert not {name for name in registered.values() if name in REFUSED} & set(FORMATS)
    assert {".avif", ".ppm", ".pgm", ".jfif", ".jpe", ".jp2", ".tga", ".mpo", ".png", ".jpg"} <= image_endings()


@pytest.mark.parametrize("kind", [name for name in FORMATS if name != "HEIF"])
def test_each_format_is_read_whatever_the_ending(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(PIXELS).save(path, kind)
    with Image.open(path) as wanted:
        np.testing.assert_array_equal(np.asarray(open_image(path)), np.asarray(wanted.convert("RGB")))


def test_other_formats_are_refused_and_start_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, "EPS")

    def started(*_args: object, **_options: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(subprocess, "Popen", started)
    with pytest.raises(ImageError, match="not in an image format that is read: JPEG, PNG"):
        open_image(file.getvalue())


@pytest.fixture
def _checked_again() -> Iterator[None]:
    image_formats._is_decoded.cache_clear()
    yield
    image_formats._is_decoded.cache_clear()


@pytest.mark.parametrize(
    ("feature", "kind", "ending"),
    [("avif", "AVIF", ".avif"), ("webp", "WEBP", ".webp"), ("jpg_2000", "JPEG2000", ".jp2"), ("jpg", "JPEG", ".mpo")],
)
@pytest.mark.usefixtures("_checked_again")
def test_a_format_without_its_library_is_not_read(
    feature: str, kind: str, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("PIL.features.check", lambda name: name != feature)
    assert kind not in readable_formats()
    assert ending not in image_endings()


def test_a_format_that_a_plugin_registers_is_read_from_then_on(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ".heic" not in image_endings()
    monkeypatch.setattr(Image, "OPEN", {**Image.OPEN, "HEIF": Image.OPEN["PNG"]})
    monkeypatch.setattr(Image, "EXTENSION", {**Image.EXTENSION, ".heic": "HEIF"})
    assert ".heic" in image_endings()
    assert "HEIF" in readable_formats()


def test_no_other_plugin_is_imported_for_them() -> None:
    code = (
        "import sys; from vitdeploy.image_formats import *; readable_formats(), image_endings();"
        "print('PIL.EpsImagePlugin' in sys.modules, 'PIL.AvifImagePlugin' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.split() == ["False", "True"]
