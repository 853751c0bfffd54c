"""The formats that are read, and their endings: Pillow's registry is the oracle."""

from __future__ import annotations

import io
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from image_files import BY_HAND, NOT_MADE, PIXELS, file_of
from PIL import Image
from raising import raises

from vitdeploy.errors import ImageError
from vitdeploy.images import formats as image_formats
from vitdeploy.images.formats import FORMATS, image_endings, readable_formats
from vitdeploy.images.open import open_image

NOT_READ = {
    "EPS", "WMF",  # start a process, or are drawn by the system
    "FITS", "MCIDAS", "SPIDER",  # no fixed range
    "BUFR", "GRIB", "HDF5", "IPTC", "MPEG",  # no decoder, or no images of their own
}  # fmt: skip


def test_endings_are_those_that_pillow_registers() -> None:
    registered = Image.registered_extensions()
    assert image_endings() == {ending for ending, name in registered.items() if name in FORMATS}
    assert set(Image.OPEN) - set(FORMATS) <= NOT_READ, "a format of this version of Pillow is neither read nor refused"
    assert not NOT_READ & set(FORMATS)
    assert {".avif", ".ppm", ".pgm", ".jfif", ".jpe", ".jp2", ".tga", ".mpo", ".png", ".jpg"} <= image_endings()


@pytest.mark.filterwarnings("ignore:IM image format is deprecated:DeprecationWarning")
@pytest.mark.parametrize("kind", [name for name in FORMATS if name not in NOT_MADE])
def test_each_format_is_read_whatever_the_ending(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(file_of(kind))
    with Image.open(path) as wanted:
        assert str(wanted.format).upper() == ("JPEG" if kind == "MPO" else kind)
        np.testing.assert_array_equal(np.asarray(open_image(path)), np.asarray(wanted.convert("RGB")))


@pytest.mark.parametrize("kind", ["SUN", "PSD"])
def test_the_colours_of_files_made_by_hand(kind: str) -> None:
    np.testing.assert_array_equal(np.asarray(open_image(BY_HAND[kind])), PIXELS)


def test_other_formats_are_refused_and_start_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, "EPS")

    def started(*_args: object, **_options: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(subprocess, "Popen", started)
    with raises(ImageError, what="the image", expected=readable_formats()):
        open_image(file.getvalue())


@pytest.fixture
def _known_again() -> Iterator[None]:
    """Pillow's formats are looked up in the test, and after it."""
    image_formats._decodable.cache_clear()
    yield
    image_formats._decodable.cache_clear()


@pytest.mark.parametrize(
    ("feature", "kind", "ending"),
    [("avif", "AVIF", ".avif"), ("webp", "WEBP", ".webp"), ("jpg_2000", "JPEG2000", ".jp2"), ("jpg", "JPEG", ".mpo")],
)
@pytest.mark.usefixtures("_known_again")
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


HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"


@pytest.mark.usefixtures("_known_again")
def test_pillow_heif_is_registered_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "OPEN", {**Image.OPEN})
    package = types.ModuleType("pillow_heif")
    package.__dict__["register_heif_opener"] = lambda: Image.OPEN.update(HEIF=Image.OPEN["PNG"])
    monkeypatch.setitem(sys.modules, "pillow_heif", package)
    assert "HEIF" in readable_formats()


def test_a_heic_photograph_without_it(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(HEIC)
    for source in (path, HEIC, io.BytesIO(HEIC)):
        with raises(ImageError, found="HEIF"):
            open_image(source)


@pytest.mark.parametrize(
    "use",
    [
        "readable_formats(), image_endings()",
        "vitdeploy.ImageProcessor()([np.zeros((8, 8, 3), np.uint8)] * 2, threads=2)",
    ],
)
def test_no_other_plugin_is_imported(use: str) -> None:
    code = (
        "import sys; import numpy as np; import vitdeploy; from vitdeploy.images.formats import *;" + use + ";"
        "print('PIL.EpsImagePlugin' in sys.modules, 'PIL.AvifImagePlugin' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.split() == ["False", "True"]
