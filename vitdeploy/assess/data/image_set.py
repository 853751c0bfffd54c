"""Images without labels, from a folder or from a labelled data set."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import TYPE_CHECKING

from vitdeploy.assess.data.dataset import chosen_names, read_csv, read_image, read_parquet
from vitdeploy.assess.data.folder_listing import check_folder, list_folder, with_images
from vitdeploy.files.label_tables import SEPARATORS

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence

    from vitdeploy.assess.data.dataset import LabelledData
    from vitdeploy.assess.data.folder_listing import FolderListing, LeftOut


@dataclasses.dataclass(frozen=True, eq=False)
class ImageSet:
    """N images, read on access.

    Attributes:
        source: Folder or file.
        names: Unique image names, with forward slashes.
        load: Returns the encoded image at a position from 0 to N - 1; thread-safe.
        left_out: Files of the folder that are not among the images; None if no folder was listed.
    """

    source: str
    names: tuple[str, ...]
    load: Callable[[int], bytes]
    left_out: LeftOut | None = None

    @classmethod
    def of(cls, data: LabelledData) -> ImageSet:
        """The images of a labelled data set, without their labels."""
        return cls(data.source, data.names, data.load, data.left_out)

    def __len__(self) -> int:
        return len(self.names)

    def subset(self, limit: int | None, seed: int = 0) -> ImageSet:
        """A subset of the images; see `LabelledData.subset`."""
        return self.at(chosen_names(self.names, limit, seed))

    def at(self, positions: Sequence[int]) -> ImageSet:
        names = tuple(self.names[index] for index in positions)
        return ImageSet(self.source, names, lambda position: self.load(positions[position]), self.left_out)


def open_images(path: str | os.PathLike[str]) -> ImageSet:
    """Open every image below a folder, or in a data set of `open_data`'s formats; labels are ignored.

    Args:
        path: Folder of images; or a .csv, .tsv or .parquet file, or a folder of .parquet files.

    Raises:
        InputError: If there are no images, or a file is damaged.
        MissingDependencyError: If pyarrow is not installed, for parquet files.
    """
    source = Path(path)
    kind = source.suffix.lower()
    if kind == ".parquet" and not source.is_dir():
        return _of_parquet(source, None)
    if kind in SEPARATORS and not source.is_dir():
        names, _ = read_csv(source, labelled=False)
        return ImageSet(str(source), names, functools.partial(read_image, [source.parent / name for name in names]))
    check_folder(source)
    images, tables = list_folder(source)
    if tables.files:
        return _of_parquet(source, tables)
    listing = with_images(source, images)
    names = tuple(file.relative_to(source).as_posix() for file in listing.files)
    return ImageSet(str(source), names, functools.partial(read_image, listing.files), listing.left_out)


def _of_parquet(source: Path, listing: FolderListing | None) -> ImageSet:
    content = read_parquet(source, listing, labelled=False)
    return ImageSet(str(source), content.names, content.load, None if listing is None else listing.left_out)
