"""Images are prepared ahead, in order, once, and not without end."""

from __future__ import annotations

import hashlib
import io
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image
from raising import raises

from vitdeploy.assess.data.dataset import LabelledData
from vitdeploy.assess.data.images import synthetic_images
from vitdeploy.assess.data.loader import prepare
from vitdeploy.errors import ImageError
from vitdeploy.images.preprocessor_config import Size
from vitdeploy.images.processor import ImageProcessor
from vitdeploy.specs import PixelFormat, PixelStage

FORMATS = (
    PixelFormat(),
    PixelFormat(PixelStage.RESIZED, "nhwc", "uint8"),
    PixelFormat(PixelStage.DECODED, "nhwc", "uint8"),
)
PROCESSOR = ImageProcessor(size=Size(8, 8))


def encoded(count: int) -> list[bytes]:
    files = []
    for image in synthetic_images(count, 12, 16):
        file = io.BytesIO()
        image.save(file, "PNG")
        files.append(file.getvalue())
    return files


def data_of(files: list[bytes], load: Callable[[int], bytes] | None = None) -> LabelledData:
    names = tuple(f"{index}.png" for index in range(len(files)))
    return LabelledData("it", "folder", "by name", names, np.zeros(len(files), np.int32), load or files.__getitem__)


@pytest.mark.parametrize(("threads", "ahead"), [(1, 0), (3, 5), (4, 100)])
def test_every_image_in_order_as_the_processor_gives_it(threads: int, ahead: int) -> None:
    files = encoded(7)
    found = list(prepare(data_of(files), PROCESSOR, FORMATS, threads=threads, ahead=ahead))
    assert [image.sha256 for image in found] == [hashlib.sha256(file).hexdigest() for file in files]
    for pixels in FORMATS:
        for image, file in zip(found, files, strict=True):
            np.testing.assert_array_equal(image.pixels[pixels], PROCESSOR(file, pixels=pixels))


def test_an_image_is_decoded_once_for_all_formats(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    real = Image.open

    def counted(*args: Any, **options: Any) -> Any:
        opened.append(args)
        return real(*args, **options)

    monkeypatch.setattr(Image, "open", counted)
    list(prepare(data_of(encoded(2)), PROCESSOR, FORMATS, threads=1, ahead=1))
    assert len(opened) == 2


def test_images_that_need_no_pixels_are_only_read() -> None:
    files = [b"no image", *encoded(1)]
    first, second = prepare(data_of(files), PROCESSOR, FORMATS, first=1, threads=2, ahead=2)
    assert first.pixels == {}
    assert second.pixels.keys() == set(FORMATS)
    assert [image.pixels for image in prepare(data_of(files), PROCESSOR, (), threads=2, ahead=2)] == [{}, {}]


def test_no_more_are_prepared_than_asked_for_ahead() -> None:
    files = encoded(1) * 50
    lock, loaded = threading.Lock(), 0

    def load(position: int) -> bytes:
        nonlocal loaded
        with lock:
            loaded += 1
        return files[position]

    stream = prepare(data_of(files, load), PROCESSOR, FORMATS[:1], threads=4, ahead=6)
    for taken in range(1, 20):
        next(stream)
        assert loaded <= taken + 6
    stream.close()
    assert loaded <= 20 + 6


def test_a_damaged_image_is_named_and_no_thread_stays() -> None:
    files = [*encoded(3), b"no image", *encoded(40)]
    before = threading.active_count()
    stream = prepare(data_of(files), PROCESSOR, FORMATS, threads=2, ahead=4)
    with raises(ImageError, what="3.png", where="it"):
        list(stream)
    assert threading.active_count() == before
