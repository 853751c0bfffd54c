"""Data loader: read, decode and preprocess images ahead of the runtimes, on every core and in bounded memory."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from vitdeploy.errors import ImageError
from vitdeploy.images.formats import readable_formats
from vitdeploy.images.open import open_image

if TYPE_CHECKING:
    from collections.abc import Collection, Generator
    from concurrent.futures import Future

    import numpy as np

    from vitdeploy.assess.data.dataset import LabelledData
    from vitdeploy.assess.data.image_set import ImageSet
    from vitdeploy.images.processor import ImageProcessor
    from vitdeploy.specs import PixelFormat


@dataclasses.dataclass(frozen=True, eq=False)
class Prepared:
    """One image: the SHA-256 of its file, and (1, ...) input arrays; or why it cannot be read.

    `counts` is its `ImageProcessor.pixel_counts`; zero if it was not decoded.
    """

    sha256: str
    pixels: dict[PixelFormat, np.ndarray]
    error: ImageError | None = None
    counts: tuple[int, int] = (0, 0)


def prepare(
    data: LabelledData | ImageSet,
    processor: ImageProcessor,
    formats: Collection[PixelFormat],
    *,
    first: int = 0,
    threads: int,
    ahead: int,
    keep_errors: bool = False,
) -> Generator[Prepared, None, None]:
    """Yield every image in order, decoded once and preprocessed once per format.

    Args:
        data: The images.
        processor: The model's image processor.
        formats: Input formats of the runtimes; without any, images are read but not decoded.
        first: Images before this position are read but not decoded.
        threads: Images processed concurrently.
        ahead: Prefetch limit: images that may be ready or in progress.
        keep_errors: Yield an image that cannot be read with its error, and an empty SHA-256 if its file cannot.

    Raises:
        ImageError: If an image cannot be read, unless errors are kept.
    """
    readable_formats()  # Pillow registers its formats on first use, without a lock

    def one(position: int) -> Prepared:
        sha256 = ""
        try:
            encoded = data.load(position)
            sha256 = hashlib.sha256(encoded).hexdigest()
            return prepared(sha256, encoded, position) if formats and position >= first else Prepared(sha256, {})
        except ImageError as exc:
            if not keep_errors:
                raise
            return Prepared(sha256, {}, exc)

    def prepared(sha256: str, encoded: bytes, position: int) -> Prepared:
        try:
            image = open_image(encoded, mode=processor.mode, name=repr(data.names[position]))
        except ImageError as exc:
            if data.source:
                raise exc.at(data.source) from exc
            exc.where = data.names[position]
            raise
        arrays = {pixels: processor(image, pixels=pixels, threads=1) for pixels in formats}
        return Prepared(sha256, arrays, counts=processor.pixel_counts(image.height, image.width))

    pool = ThreadPoolExecutor(threads, thread_name_prefix="vitdeploy-prepare")
    pending: collections.deque[Future[Prepared]] = collections.deque()
    try:
        for position in range(len(data)):
            pending.append(pool.submit(one, position))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
