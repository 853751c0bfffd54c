"""The most pixels that an image may have: Pillow's limit, without its warning, and how it is raised."""

from __future__ import annotations

import functools
import io
import os
import re
import struct
import subprocess
import sys
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner
from image_files import png_chunk
from limited import ERRORS_OF, MIB, run_limited
from PIL import Image
from raising import raises

from vitdeploy.bundle.bundle import Bundle
from vitdeploy.cli import COMMANDS, cli
from vitdeploy.errors import ImageError, UsageError
from vitdeploy.images.open import decode_image, open_image
from vitdeploy.images.pixel_limit import HOW_TO_RAISE, MAX_PIXELS_VARIABLE, check_pixel_count, limit_lifted, max_pixels
from vitdeploy.images.preprocessor_config import ShortestEdge, Size
from vitdeploy.images.processor import ImageProcessor
from vitdeploy.specs import PixelFormat, PixelStage

HEIGHT, WIDTH = 30, 40
# Parameters that name images or data sets.
OF_IMAGES = {"images", "data", "calibration_data", "accuracy_data"}
DECODED = PixelFormat(PixelStage.DECODED, "nhwc", "uint8")


def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)


def encoded(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels()).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture
def pillows_limit(monkeypatch: pytest.MonkeyPatch) -> int:
    """A limit of Pillow's of which the test image has one and a half."""
    limit = HEIGHT * WIDTH * 2 // 3
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    return limit


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP", "PPM"])
def test_what_pillow_warns_of_is_read_where_warnings_are_errors(pillows_limit: int, kind: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(Image.DecompressionBombWarning):
            Image.open(io.BytesIO(encoded(kind)))
        np.testing.assert_array_equal(np.asarray(open_image(encoded(kind))), pixels())
    assert pillows_limit == Image.MAX_IMAGE_PIXELS


def test_an_image_that_the_caller_opened(pillows_limit: int) -> None:
    """Pillow checks the size of a TIFF file's image again when it decodes it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        opened = Image.open(io.BytesIO(encoded("TIFF")))
        warnings.simplefilter("error")
        np.testing.assert_array_equal(np.asarray(open_image(opened)), pixels())
    assert pillows_limit == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize("action", ["error", "ignore"])
@pytest.mark.parametrize("factor", [2.1, 4.5])
def test_what_pillow_refuses_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factor: float, action: Any
) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(encoded("PNG"))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", int(HEIGHT * WIDTH / factor))
    with warnings.catch_warnings():
        warnings.simplefilter(action)
        with raises(ImageError, what=str(path), expected=max_pixels(), hint=HOW_TO_RAISE):
            open_image(path)


def header_of(width: int, height: int) -> bytes:
    """A PNG file whose header states a size that its data has not."""
    data = encoded("PNG")
    return data[:8] + png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)) + data[33:]


def test_the_bomb_is_refused_before_it_is_decoded() -> None:
    with raises(ImageError, expected=max_pixels(), hint=HOW_TO_RAISE):
        open_image(header_of(50_000, 50_000))


@pytest.mark.parametrize("width", [15_000, 17_894])
def test_photographs_of_up_to_178_megapixels_are_decoded(width: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with raises(ImageError, found=re.compile("truncated|broken|incomplete")):  # beyond the limit's check
            open_image(header_of(width, 10_000))
        with raises(ImageError, hint=HOW_TO_RAISE):
            open_image(header_of(17_896, 10_000))


def test_a_photograph_of_100_megapixels() -> None:
    buffer = io.BytesIO()
    Image.new("L", (10_000, 10_000), 77).save(buffer, "PNG", compress_level=1)
    values = ImageProcessor(image_mean=(0,), image_std=(1,))(buffer.getvalue())
    np.testing.assert_array_equal(values, np.full((1, 1, 224, 224), 77 / 255, np.float32))


def test_without_a_limit_of_pillows_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert max_pixels() is None
    assert open_image(encoded("PNG")).size == (WIDTH, HEIGHT)


@pytest.mark.parametrize(("limit", "allowed"), [(HEIGHT * WIDTH, True), (HEIGHT * WIDTH - 1, False)])
@pytest.mark.parametrize("pillows", [10, None])
def test_the_environment_sets_the_limit(
    monkeypatch: pytest.MonkeyPatch, limit: int, allowed: bool, pillows: int | None
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pillows)
    monkeypatch.setenv(MAX_PIXELS_VARIABLE, str(limit))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if allowed:
            np.testing.assert_array_equal(np.asarray(open_image(encoded("TIFF"))), pixels())
        else:
            with raises(ImageError, hint=HOW_TO_RAISE):
                open_image(encoded("TIFF"))
    assert pillows == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize("value", ["0", "-1", "1e6", "many", "²", "9" * 5000])
def test_a_limit_that_is_no_number_is_refused(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv(MAX_PIXELS_VARIABLE, value)
    with raises(UsageError, what=MAX_PIXELS_VARIABLE, found=value):
        open_image(encoded("PNG"))


def test_pillows_limit_is_set_back_after_many_threads(pillows_limit: int) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: np.asarray(open_image(encoded("PNG"))), range(64)))
    assert all(np.array_equal(each, pixels()) for each in found)
    assert pillows_limit == Image.MAX_IMAGE_PIXELS


def test_what_the_caller_sets_meanwhile_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with limit_lifted():
        assert max_pixels() == 200
        Image.MAX_IMAGE_PIXELS = 7
        assert max_pixels() == 14
        with limit_lifted():
            assert max_pixels() == 14
    assert Image.MAX_IMAGE_PIXELS == 7


def test_a_size_that_an_image_would_be_resized_to() -> None:
    processor = ImageProcessor(size=ShortestEdge(224), do_center_crop=False)
    with raises(ImageError, found=(896000, 224), hint=HOW_TO_RAISE):
        processor(Image.new("RGB", (4000, 1)))


@pytest.mark.parametrize("size", [(3000, 1), (1, 3000), (2000, 1)])
def test_a_strip_does_not_grow_without_measure_before_it_is_cropped(size: tuple[int, int]) -> None:
    """3,000 x 1 would take 600 MB for what is left of it, and 2,000 x 1 takes 400."""
    processor = ImageProcessor(size=ShortestEdge(224), do_center_crop=True, crop_size=Size(224, 224))
    with raises(ImageError, hint=HOW_TO_RAISE):
        processor(Image.new("RGB", size))
    assert processor(Image.new("RGB", (1000, 1))).shape == (1, 3, 224, 224)


def test_an_image_may_stay_as_large_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitdeploy.images.pixel_limit.MOST_GROWN_PIXELS", 100)
    processor = ImageProcessor(size=ShortestEdge(20), do_center_crop=False)
    assert processor(Image.new("RGB", (30, 20))).shape == (1, 3, 20, 30)
    with raises(ImageError, hint=HOW_TO_RAISE):
        processor(Image.new("RGB", (15, 10)))
    monkeypatch.setenv(MAX_PIXELS_VARIABLE, "600")
    assert processor(Image.new("RGB", (15, 10))).shape == (1, 3, 20, 30)


def test_a_graph_that_resizes_takes_no_more_memory_than_is_said() -> None:
    """9,000 x 9,000 pixels of RGB would take 2.5 GB there, and less than a quarter of it here."""
    processor = ImageProcessor(size=Size(32, 32))
    with raises(ImageError, found=(9000, 9000)):
        processor(Image.new("RGB", (9000, 9000)), pixels=DECODED)
    gray = ImageProcessor(size=Size(32, 32), image_mean=(0.5,), image_std=(0.5,))
    assert gray(Image.new("L", (9000, 9000)), pixels=DECODED).shape == (1, 9000, 9000, 1)
    large = ImageProcessor(size=Size(1024, 1024))
    with raises(ImageError, found=(20_000, 20_000 // 8)):
        large(Image.new("RGB", (20_000, 20_000 // 8)), pixels=DECODED)


@pytest.mark.parametrize("size", [ShortestEdge(224), None])
def test_a_side_that_a_graph_cannot_resize(size: ShortestEdge | None) -> None:
    processor = ImageProcessor(resample=3)
    if size is not None:
        processor = ImageProcessor(size=size, do_center_crop=True, crop_size=Size(224, 224))
    longest = 26_000 if size is None else 580  # 224 pixels high, and 130,000 wide
    assert processor(Image.new("RGB", (1, longest)), pixels=DECODED).shape == (1, longest, 1, 3)
    for length in (27_000, 2_000_000):
        with raises(ImageError, found=(length, 1)):
            processor(Image.new("RGB", (length, 1)), pixels=DECODED)


def test_an_image_of_the_callers_is_not_copied_to_be_read() -> None:
    image = Image.fromarray(pixels())
    assert decode_image(image, "RGB", "it") is image
    opened = open_image(image)
    assert opened is not image
    opened.putpixel((0, 0), (1, 2, 3))
    np.testing.assert_array_equal(np.asarray(image), pixels())


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_a_result_is_independent_of_an_array(mode: Any) -> None:
    array = np.array(Image.fromarray(pixels()).convert(mode))
    want = array.copy()
    opened = open_image(array, mode=mode)
    array[:] = 0
    np.testing.assert_array_equal(np.asarray(opened), want)


def test_every_command_that_reads_images_has_the_option() -> None:
    read = set()
    for name in COMMANDS:
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        options = {option for parameter in command.params for option in parameter.opts}
        if OF_IMAGES & {parameter.name for parameter in command.params}:
            read.add(name)
        assert ("--max-image-pixels" in options) == (name in read | {"serve", "triton"}), name  # these: of requests
    assert {"predict", "compare", "export", "verify"} <= read


def test_the_option_holds_for_one_command(digits: Bundle, tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(encoded("PNG"))
    arguments = ["predict", str(digits.path), str(path)]
    small = CliRunner().invoke(cli, [*arguments, "--max-image-pixels", "100"])
    assert small.exit_code == ImageError.exit_code
    assert MAX_PIXELS_VARIABLE not in os.environ
    assert CliRunner().invoke(cli, arguments).exit_code == 0


@pytest.mark.parametrize("source", ["path", "opened"])
def test_a_large_photograph_is_in_memory_once(tmp_path: Path, source: str) -> None:
    """Pillow takes 4 bytes for a pixel of RGB; measured in a process of its own, as the growth of its peak."""
    pytest.importorskip("resource", reason="no process tells its peak here")
    side = 5000
    path = tmp_path / "large.jpg"
    Image.fromarray(np.tile(pixels(), (side // HEIGHT, side // WIDTH, 1))).save(path)
    done = subprocess.run([sys.executable, "-c", _PEAK, str(path), source], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 4.8


_PEAK = """
import resource, sys
from PIL import Image
from vitdeploy.images.processor import ImageProcessor

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

processor = ImageProcessor()
processor(Image.new("RGB", (300, 300)), threads=1)
before = peak()
image = Image.open(sys.argv[1]) if sys.argv[2] == "opened" else sys.argv[1]
processor(image, threads=1)
print((peak() - before) / (5000 * 5000))
"""


@functools.cache
def zeros() -> bytes:
    return zlib.compress(bytes(512 * MIB), 9)


@pytest.mark.parametrize("kind", [b"zTXt", b"iCCP", b"iTXt"])
@pytest.mark.parametrize("place", ["before", "after"])
def test_metadata_that_explodes_is_not_decompressed(tmp_path: Path, kind: bytes, place: str) -> None:
    """512 MiB of zeros in a chunk of 0.5 MB, before the pixels and after them; Pillow's own limits hold here."""
    packed = (b"a\0\1\0\0\0" if kind == b"iTXt" else b"a\0\0") + zeros()
    data, at = encoded("PNG"), 33 if place == "before" else -12
    path = tmp_path / "metadata.png"
    path.write_bytes(data[:at] + png_chunk(kind, packed) + data[at:])
    done = run_limited(f"from vitdeploy.images.open import open_image{ERRORS_OF}open_image(sys.argv[1])", path)
    assert done.code in (0, 4), done.errors
    assert done.peak_bytes < 256 * MIB


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # as the filters of a user let it be
@pytest.mark.parametrize("raised", [False, True])
@pytest.mark.parametrize(("width", "height"), [(32_768, 6_000), (6_000, 32_768), (30_000, 11_000)])
def test_advice_about_a_side_that_is_too_long_helps(
    monkeypatch: pytest.MonkeyPatch, width: int, height: int, raised: bool
) -> None:
    """Such an image has too many pixels as well; more of them would be refused again."""
    if raised:
        monkeypatch.setenv(MAX_PIXELS_VARIABLE, str(2**40))
    header = png_chunk(b"IHDR", struct.pack(">II5B", width, height, 8, 2, 0, 0, 0))
    content = b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", b"")
    with raises(ImageError, found=(width, height)) as refused:
        ImageProcessor()(content, pixels=DECODED)
    assert "--max-image-pixels" not in str(refused.value)


@pytest.mark.parametrize("size", [(2**25 + 1, 1), (1, 2**25 + 1)])
def test_a_side_that_pillow_cannot_resize_is_refused(size: tuple[int, int]) -> None:
    with raises(ImageError, found=size, hint="resize the image first"):
        check_pixel_count(*size, "strip.png")
    check_pixel_count(2**25, 1, "strip.png")
