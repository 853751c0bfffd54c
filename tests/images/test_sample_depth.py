"""Images of more than 8 bits, by the depth that their files state: tifffile and numpy are the oracles."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from image_files import png_chunk, png_of
from PIL import Image, features
from raising import raises
from tiff_files import DEFLATE, RGB, UNCOMPRESSED, WHITE_IS_ZERO, write_tiff

from vitdeploy.errors import ImageError
from vitdeploy.images.open import open_image

COMPRESSIONS = pytest.mark.parametrize("compression", [UNCOMPRESSED, DEFLATE], ids=["plain", "deflate"])


def ramp(bits: int, height: int = 31, width: int = 41, channels: int | None = None) -> np.ndarray:
    """Every part of the range, shuffled; rows of 12 bits do not end with a byte."""
    shape = (height, width) if channels is None else (height, width, channels)
    values = np.linspace(0, (1 << bits) - 1, int(np.prod(shape))).round().astype(np.uint16)
    return np.random.default_rng(bits).permutation(values).reshape(shape)


def tiff_of(values: np.ndarray, **options: Any) -> bytes:
    """As tifffile writes it."""
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, values, **options)
    return buffer.getvalue()


def check_gray(data: bytes, want: np.ndarray) -> None:
    """As gray and, three times, as RGB; of a file, and of an image that Pillow opened."""
    with Image.open(io.BytesIO(data)) as opened:
        for source in (data, opened):
            np.testing.assert_array_equal(np.asarray(open_image(source, mode="L")), want)
            np.testing.assert_array_equal(np.asarray(open_image(source)), np.repeat(want[:, :, None], 3, axis=2))


@COMPRESSIONS
@pytest.mark.parametrize(("bits", "order"), [(12, "<"), (16, "<"), (16, ">")])
def test_gray_tiff_keeps_its_8_highest_bits(bits: int, order: str, compression: int) -> None:
    values = ramp(bits)
    data = write_tiff(values, bits, order=order, compression=compression)
    if bits == 16:
        np.testing.assert_array_equal(tifffile.imread(io.BytesIO(data)), values)
    check_gray(data, (values >> (bits - 8)).astype(np.uint8))


@COMPRESSIONS
@pytest.mark.parametrize("bits", [8, 16])
def test_where_0_is_white_the_image_is_inverted(bits: int, compression: int) -> None:
    values = ramp(bits)
    data = write_tiff(values, bits, photometric=WHITE_IS_ZERO, compression=compression)
    assert tifffile.TiffFile(io.BytesIO(data)).pages[0].photometric == tifffile.PHOTOMETRIC.MINISWHITE  # type: ignore[union-attr]
    check_gray(data, 255 - (values >> (bits - 8)).astype(np.uint8))


@pytest.mark.parametrize("bits", [10, 12, 14])
def test_depths_that_pillow_does_not_read_are_refused(bits: int) -> None:
    """Big-endian 12 bits and white zeros too."""
    cases: list[dict[str, Any]] = [{"order": ">"}, {"photometric": WHITE_IS_ZERO}, *([{}] if bits != 12 else [])]
    for options in cases:
        with pytest.raises(ImageError):
            open_image(write_tiff(ramp(bits), bits, **options))
    with pytest.raises(ImageError):
        open_image(write_tiff(ramp(bits, channels=3), bits, photometric=RGB))


def test_the_largest_value_of_a_tiff_is_for_statistics() -> None:
    """As TIFF 6.0 says of MaxSampleValue (281); scikit-image and tifffile do not scale by it, either."""
    values = ramp(12)
    data = write_tiff(values, 16, more={281: 4095})
    check_gray(data, (values >> 8).astype(np.uint8))


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("order", ["<", ">"])
def test_signed_samples_are_refused(bits: int, order: str) -> None:
    """Pillow reads those of 8 bits as if they were unsigned."""
    data = write_tiff(ramp(bits), bits, order=order, sample_format=2)
    with raises(ImageError, found="signed samples"):
        open_image(data)
    with Image.open(io.BytesIO(data)) as opened, raises(ImageError, found="signed samples"):
        open_image(opened)


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32, np.float32, np.float64, np.uint32])
def test_what_tifffile_writes_without_a_fixed_range_is_refused(dtype: type) -> None:
    data = tiff_of(ramp(7).astype(dtype), photometric="minisblack")
    with pytest.raises(ImageError):
        open_image(data)


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("bits", [8, 16])
def test_rgb_tiff_keeps_its_8_highest_bits_or_is_refused(
    planar: Any, compression: str | None, order: Any, bits: int
) -> None:
    values = ramp(bits, channels=3).astype(f"u{bits // 8}")
    stored = np.moveaxis(values, -1, 0) if planar == "separate" else values
    data = tiff_of(stored, photometric="rgb", planarconfig=planar, compression=compression, byteorder=order)
    if planar == "separate" and compression is None and bits == 16:  # which Pillow reads as planes of 8 bits
        with raises(ImageError, found="16-bit planes"):
            open_image(data)
        return
    np.testing.assert_array_equal(np.asarray(open_image(data)), values >> (bits - 8))


def test_the_transparent_level_of_a_gray_png() -> None:
    """PNG's specification of tRNS compares all 16 bits; Pillow's conversion to RGBA has an alpha of 255 throughout."""
    values = ramp(16)
    values[3:5, 2:7] = 0x1234
    values[0, :2] = 0x1235, 0x1200  # of the same 8 highest bits
    data = png_of(values, 0, png_chunk(b"tRNS", b"\x12\x34"))
    levels = (values >> 8).astype(np.uint8)
    alpha = np.where(values == 0x1234, 0, 255)
    assert np.count_nonzero(alpha == 0) >= 10
    np.testing.assert_array_equal(np.asarray(open_image(data, mode="RGBA")), np.dstack([levels] * 3 + [alpha]))
    check_gray(data, levels)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_gray_with_associated_alpha(mode: Any) -> None:
    """Pillow's own conversions, from La to LA and from there."""
    values = np.random.default_rng(0).integers(0, 256, (31, 41, 2), np.uint8)
    values[..., 0] = np.minimum(values[..., 0], values[..., 1])  # it was multiplied by its alpha
    data = tiff_of(values, photometric="minisblack", extrasamples=["assocalpha"], planarconfig="contig")
    with Image.open(io.BytesIO(data)) as opened:
        assert opened.mode == "La"
        want = np.asarray(opened.convert("LA").convert(mode))
        for source in (data, opened):
            np.testing.assert_array_equal(np.asarray(open_image(source, mode=mode)), want)
    multiplied, alpha = values.astype(float).transpose(2, 0, 1)
    gray = np.where(alpha > 0, multiplied * 255 / np.maximum(alpha, 1), multiplied)
    assert np.abs(gray - np.asarray(open_image(data, mode="L"))).max() <= 1  # Pillow rounds down


@pytest.mark.parametrize("kind", ["RGBA", "RGBa", "PA", "RGBX", "HSV", "LAB", "La", "LA", "P", "1", "CMYK", "YCbCr"])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_every_mode_of_pillow_is_converted(kind: str, mode: Any) -> None:
    assert open_image(Image.new(kind, (3, 2)), mode=mode).mode == mode


@pytest.mark.parametrize(("order", "big"), [("<", False), (">", False), ("<", True)])
def test_a_tiff_that_cannot_be_decoded_is_not_called_another_format(tmp_path: Path, order: Any, big: bool) -> None:
    data = tiff_of(ramp(7).astype(np.float64), photometric="minisblack", byteorder=order, bigtiff=big)
    (tmp_path / "a.tif").write_bytes(data)
    for source in (tmp_path / "a.tif", data, io.BytesIO(data)):
        with raises(ImageError, found="TIFF"):
            open_image(source)


@pytest.mark.parametrize("bits", [8, 16])
def test_rgba_tiff(bits: int) -> None:
    values = ramp(bits, channels=4).astype(f"u{bits // 8}")
    data = tiff_of(values, photometric="rgb", extrasamples=["unassalpha"])
    levels = values >> (bits - 8)
    np.testing.assert_array_equal(np.asarray(open_image(data, mode="RGBA")), levels)
    np.testing.assert_array_equal(np.asarray(open_image(data)), levels[:, :, :3])


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM", "JPEG2000"])
def test_16_bit_gray_keeps_its_high_byte(kind: str) -> None:
    if kind == "JPEG2000" and not features.check("jpg_2000"):
        pytest.skip("Pillow lacks JPEG 2000")
    values = ramp(16)
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, kind, **({"irreversible": False} if kind == "JPEG2000" else {}))
    check_gray(buffer.getvalue(), (values >> 8).astype(np.uint8))


@pytest.mark.parametrize("order", ["<", ">"])
def test_16_bit_gray_that_was_made_in_memory(order: str) -> None:
    values = ramp(16)
    mode = "I;16" if order == "<" else "I;16B"
    image = Image.frombytes(mode, values.shape[::-1], values.astype(f"{order}u2").tobytes())
    np.testing.assert_array_equal(np.asarray(open_image(image, mode="L")), values >> 8)


@pytest.mark.parametrize("maximum", [255, 300, 1023, 4095, 65535])
@pytest.mark.parametrize("text", [False, True])
def test_pgm_and_ppm_are_scaled_by_the_maximum_that_they_state(maximum: int, text: bool) -> None:
    values = np.linspace(0, maximum, 31 * 41).round().astype(np.uint16).reshape(31, 41)
    for channels in (1, 3):
        samples = np.repeat(values[:, :, None], channels, axis=2)
        magic = {(False, 1): b"P5", (False, 3): b"P6", (True, 1): b"P2", (True, 3): b"P3"}[text, channels]
        body = (
            b" ".join(b"%d" % value for value in samples.ravel())
            if text
            else samples.astype(">u2" if maximum > 255 else "u1").tobytes()
        )
        image = np.asarray(open_image(b"%b\n41 31\n%d\n%b" % (magic, maximum, body)))[:, :, 0].astype(int)
        exact = values * (255 / maximum)
        assert np.abs(image - exact).max() <= 1  # rounded down or to the nearest
        assert (image.min(), image.max()) == (0, 255)


@pytest.mark.parametrize(("colour_type", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_16_bit_png(colour_type: int, channels: int) -> None:
    values = ramp(16, channels=channels)
    data = png_of(values, colour_type)
    levels = (values >> 8).astype(np.uint8)
    colours = levels[:, :, : 3 if channels > 2 else 1]
    alpha = levels[:, :, -1:] if channels in (2, 4) else np.full_like(levels[:, :, :1], 255)
    want = np.concatenate([np.broadcast_to(colours, (*levels.shape[:2], 3)), alpha], axis=2)
    np.testing.assert_array_equal(np.asarray(open_image(data, mode="RGBA")), want)
    np.testing.assert_array_equal(np.asarray(open_image(data)), want[:, :, :3])


@pytest.mark.skipif(not features.check("jpg_2000"), reason="Pillow lacks JPEG 2000")
@pytest.mark.parametrize("boxed", [True, False])
@pytest.mark.parametrize("bits", [10, 12])
def test_jpeg_2000_of_other_depths(bits: int, boxed: bool) -> None:
    """Written with 16 bits, whose header is then changed: a sample is stored less half of the range (ISO 15444-1)."""
    values = ramp(bits)
    buffer = io.BytesIO()
    shifted = (values.astype(np.int32) + (1 << 15) - (1 << bits - 1)).astype(np.uint16)
    Image.fromarray(shifted).save(buffer, "JPEG2000", irreversible=False, no_jp2=not boxed)
    data = bytearray(buffer.getvalue())
    data[data.index(b"\xff\x51") + 40] = bits - 1  # Ssiz
    if boxed:
        data[data.index(b"ihdr") + 14] = bits - 1
    check_gray(bytes(data), (values >> (bits - 8)).astype(np.uint8))


@pytest.mark.parametrize("mode", ["I", "F"])
def test_32_bit_pixels_are_refused(mode: str) -> None:
    image = Image.fromarray(ramp(8).astype(np.uint8)).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, "TIFF")
    for source in (buffer.getvalue(), image):
        with raises(ImageError, found=re.compile(f"^({mode}|signed samples)$")):
            open_image(source)


def test_16_bits_of_a_format_whose_range_is_not_known() -> None:
    """FITS has signed samples, which Pillow gives as unsigned ones."""
    cards = ["SIMPLE  =                    T", "BITPIX  =                   16", "NAXIS   =                    2"]
    cards += ["NAXIS1  =                    4", "NAXIS2  =                    3", "END"]
    header = "".join(card.ljust(80) for card in cards).ljust(2880).encode()
    with raises(ImageError, found="FITS"):
        open_image(Image.open(io.BytesIO(header + np.arange(12, dtype=">i2").tobytes().ljust(2880, b"\0"))))
