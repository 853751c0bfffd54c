"""Images without labels: those of a folder, or of a labelled data set."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from vitdeploy.assess.dataset import chosen_names, file_reader, open_data
from vitdeploy.assess.samples import files_below, image_files

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence


@dataclasses.dataclass(frozen=True, eq=False)
class ImageSet:
    """N images, which are read when they are asked for.

    Attributes:
        source: the folder or file.
        names: of the images, each its own, with forward slashes.
        load: gives the file's bytes of the image at a position from 0 to N - 1; may be called from several threads.
    """

    source: str
    names: tuple[str, ...]
    load: Callable[[int], bytes]

    def __len__(self) -> int:
        return len(self.names)

    def subset(self, limit: int | None, seed: int = 0) -> ImageSet:
        """Some of the images; see `LabelledData.subset`."""
        return self.at(chosen_names(self.names, limit, seed))

    def at(self, positions: Sequence[int]) -> ImageSet:
        """The images at these positions, in this order."""
        names = tuple(self.names[index] for index in positions)
        return ImageSet(self.source, names, lambda position: self.load(positions[position]))


def open_images(path: str | os.PathLike[str], labels: Sequence[str]) -> ImageSet:
    """Every image below a folder, or of a data set that `open_data` reads.

    Args:
        path: a folder of images; or a .csv or .parquet file, or a folder of .parquet files.
        labels: the model's class names, which the labels of a data set must be.

    Raises:
        InputError: there are no images, or a file is damaged.
        MissingDependencyError: pyarrow is not installed, for parquet files.
    """
    source = Path(path)
    if source.suffix.lower() in (".csv", ".parquet") or (source.is_dir() and files_below(source, {".parquet"})):
        data = open_data(source, labels)
        return ImageSet(data.source, data.names, data.load)
    files = image_files(source)
    names = tuple(file.relative_to(source).as_posix() for file in files)
    return ImageSet(str(source), names, file_reader(files))
