"""Sources of a Ray Data job: a column of unique ids, and a column of images that are not decoded yet."""

from __future__ import annotations

import dataclasses
from typing import Any

import pyarrow.dataset as pd
import ray.data

from vitdeploy.images.formats import image_endings

_PATH, _BYTES, _KEY, _IMAGE = "path", "bytes", "key", "image"


@dataclasses.dataclass(frozen=True)
class ParquetRows:
    """Rows of parquet files.

    Attributes:
        paths: Files or folders.
        id_column: Column of unique ids, strings or integers.
        image_column: Column of encoded images: binary, or a Hub data set's struct of bytes and path.
    """

    paths: tuple[str, ...]
    id_column: str = "id"
    image_column: str = _IMAGE

    def read(self) -> ray.data.Dataset:
        return ray.data.read_parquet(list(self.paths), columns=[self.id_column, self.image_column])

    def count(self) -> int | None:
        """Number of rows, from the files' footers."""
        return sum(int(pd.dataset(path, format="parquet").count_rows()) for path in self.paths)


@dataclasses.dataclass(frozen=True)
class ImageFiles:
    """Image files, with their paths as ids.

    Attributes:
        paths: Files or folders.
    """

    paths: tuple[str, ...]
    id_column: str = dataclasses.field(default=_PATH, init=False)
    image_column: str = dataclasses.field(default=_BYTES, init=False)

    def read(self) -> ray.data.Dataset:
        return ray.data.read_binary_files(list(self.paths), include_paths=True, file_extensions=sorted(image_endings()))

    def count(self) -> int | None:
        return None  # a path is an id, so that none can be missing unnoticed


@dataclasses.dataclass(frozen=True)
class WebDataset:
    """Samples of tar files, with "tar#key" as ids.

    Attributes:
        paths: Tar files, or folders of them.
        extensions: Extensions of a sample's image, the preferred one first.
    """

    paths: tuple[str, ...]
    extensions: tuple[str, ...] = ("jpg", "jpeg", "png", "webp")
    id_column: str = dataclasses.field(default=_KEY, init=False)
    image_column: str = dataclasses.field(default=_IMAGE, init=False)

    def read(self) -> ray.data.Dataset:
        return ray.data.read_webdataset(list(self.paths), decoder=self._sample)

    def count(self) -> int | None:
        return None

    def _sample(self, sample: dict[str, Any]) -> dict[str, Any]:
        """The id and the image of a sample; none for one without an image, whose row says so."""
        image = next((sample[name] for name in self.extensions if name in sample), None)
        return {_KEY: f"{sample['__url__']}#{sample['__key__']}", _IMAGE: image}
