"""Images without labels, from a folder or from a labelled data set."""

from __future__ import annotations

import bisect
import dataclasses
import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING

from vitdeploy.assess.data.dataset import chosen_names, read_csv, read_image, read_parquet
from vitdeploy.assess.data.folder_listing import check_folder, list_folder, with_images
from vitdeploy.errors import UsageError, readable
from vitdeploy.files.label_tables import SEPARATORS, TABLE_ENDINGS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vitdeploy.assess.data.dataset import LabelledData
    from vitdeploy.assess.data.folder_listing import FolderListing, LeftOut


@dataclasses.dataclass(frozen=True, eq=False)
class ImageSet:
    """N images, read on access.

    Attributes:
        source: Folder or file; empty if the names are paths from the working directory.
        names: Image names, unique in a source, with forward slashes.
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


def open_images(path: str | os.PathLike[str], *, keep_unreadable: bool = False) -> ImageSet:
    """Open every image below a folder, or in a data set of `open_data`'s formats; labels are ignored.

    Args:
        path: Folder of images; or a .csv, .tsv or .parquet file, or a folder of .parquet files.
        keep_unreadable: Keep the images that a list names and that are not there, and in a folder broken links, pipes
            and the like; see `list_folder`. To load one is an ImageError. Without it, they are refused.

    Raises:
        InputError: If there are no images, or a file is damaged.
        MissingDependencyError: If pyarrow is not installed, for parquet files.
    """
    source = Path(path)
    kind = source.suffix.lower()
    if kind == ".parquet" and not source.is_dir():
        return _of_parquet(source, None)
    if kind in SEPARATORS and not source.is_dir():
        names, _ = read_csv(source, labelled=False, keep_missing=keep_unreadable)
        return ImageSet(str(source), names, functools.partial(read_image, [source.parent / name for name in names]))
    check_folder(source)
    images, tables = list_folder(source, keep_unreadable=keep_unreadable)
    if tables.files:
        return _of_parquet(source, tables)
    listing = with_images(source, images)
    names = tuple(file.relative_to(source).as_posix() for file in listing.files)
    return ImageSet(str(source), names, functools.partial(read_image, listing.files), listing.left_out)


def open_all(
    paths: Sequence[str | os.PathLike[str]], *, keep_unreadable: bool = False
) -> tuple[ImageSet, dict[str, LeftOut]]:
    """Open image files, and every image of folders and data sets, in this order; a path given twice counts twice.

    Args:
        paths: Image files, and sources of `open_images`.
        keep_unreadable: See `open_images`.

    Returns:
        The images, named by their paths from the working directory (a parquet file's with "#row"), and the files left
        out, by folder.

    Raises:
        UsageError: If there are no paths.
        InputError: If a path does not exist; or as `open_images`.
        MissingDependencyError: As `open_images`.
    """
    if not paths:
        raise UsageError("there are no images", what="images", found=paths, hint="give a folder or a file")
    names: list[str] = []
    parts: list[Callable[[int], bytes]] = []
    firsts: list[int] = []
    left_out: dict[str, LeftOut] = {}
    wrong = [name for name in (os.fspath(path) for path in paths) if not _is_path(name)]
    if wrong:
        raise UsageError(f"images takes paths, got {wrong[0]!r:.80}", what="images", found=wrong[0])
    for path in map(Path, paths):
        firsts.append(len(names))
        with readable(path, "an image, a folder or a data set"):
            is_folder = path.is_dir()
        if is_folder or path.suffix.lower() in TABLE_ENDINGS:
            opened, root = open_images(path, keep_unreadable=keep_unreadable), path if is_folder else path.parent
            names += [(root / name).as_posix() for name in opened.names]
            parts.append(opened.load)
            if opened.left_out is not None:
                left_out[str(path)] = opened.left_out
        else:
            with readable(path, "an image"):
                path.stat()
            names.append(str(path))
            parts.append(functools.partial(read_image, [path]))

    def load(position: int) -> bytes:
        number = bisect.bisect_right(firsts, position) - 1
        return parts[number](position - firsts[number])

    return ImageSet("", tuple(names), load), left_out


def _of_parquet(source: Path, listing: FolderListing | None) -> ImageSet:
    content = read_parquet(source, listing, labelled=False)
    return ImageSet(str(source), content.names, content.load, None if listing is None else listing.left_out)


def _is_path(name: str) -> bool:
    try:
        return bool(name) and b"\0" not in os.fsencode(name)
    except UnicodeEncodeError:  # half a surrogate pair
        return False
