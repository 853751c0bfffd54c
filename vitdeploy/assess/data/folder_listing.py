"""List a folder's images, and count the files left out."""

from __future__ import annotations

import collections
import dataclasses
import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from vitdeploy.errors import InputError, readable
from vitdeploy.files.regular_file import open_regular
from vitdeploy.images.formats import HEIF_ENDINGS, WEAK_MAGIC, image_endings, readable_formats
from vitdeploy.system.quiet import quiet_libtiff

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

HIDDEN = "hidden"
BROKEN = "broken link"
PIPE = "pipe or device"
NO_ENDING = "without an ending and not an image"
_OTHERS = "other endings"
# In lower case: files that macOS and Windows add to folders and archives, and do not show. Names that begin with a dot,
# such as .DS_Store, ._cat.jpg and .ipynb_checkpoints, are always hidden.
_HIDDEN_NAMES = frozenset({"__macosx", "thumbs.db", "desktop.ini"})
_BROKEN_LINK = (errno.ELOOP, errno.ENOTDIR, errno.ENAMETOOLONG)  # and ENOENT, which the methods of paths know
_MOST_REASONS = 20
_IMAGE, PARQUET = "image", ".parquet"


@dataclasses.dataclass(frozen=True)
class Reason:
    """Why files were left out, such as "hidden" or "ending .txt", and how many."""

    reason: str
    files: int


@dataclasses.dataclass(frozen=True)
class LeftOut:
    """Files below a folder that are not among its images.

    Attributes:
        files: Number of files; an unreadable hidden folder counts as one.
        reasons: Reasons, the most frequent first.
        empty_folders: Direct subfolders without images, except hidden ones.
    """

    files: int = 0
    reasons: tuple[Reason, ...] = ()
    empty_folders: tuple[str, ...] = ()

    @classmethod
    def of(cls, counts: collections.Counter[str], empty_folders: Iterable[str] = ()) -> LeftOut:
        """Count files by reason; the rarest of many reasons are merged into one."""
        ordered = collections.Counter(dict(sorted(counts.items()))).most_common()
        first, others = ordered[:_MOST_REASONS], ordered[_MOST_REASONS:]
        first += [(_OTHERS, sum(count for _, count in others))] if others else []
        return cls(sum(counts.values()), tuple(Reason(*item) for item in first), tuple(sorted(empty_folders)))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> LeftOut:
        """The inverse of `to_dict`."""
        return cls(data["files"], tuple(Reason(**reason) for reason in data["reasons"]), tuple(data["empty_folders"]))

    def to_dict(self) -> dict[str, Any]:
        return {
            "files": self.files,
            "reasons": [dataclasses.asdict(reason) for reason in self.reasons],
            "empty_folders": list(self.empty_folders),
        }

    def __bool__(self) -> bool:
        return bool(self.files or self.empty_folders)

    def __str__(self) -> str:
        text = "files left out: none"
        if self.files:
            reasons = ", ".join(f"{reason.files} {reason.reason}" for reason in self.reasons)
            text = f"files left out: {self.files} ({reasons})"
        if self.empty_folders:
            names = ", ".join(self.empty_folders[:5]) + (", ..." if len(self.empty_folders) > 5 else "")
            text += f"; folders without an image: {len(self.empty_folders)} ({names})"
        return text


def left_out_dict(left_out: LeftOut | None) -> dict[str, Any] | None:
    """For JSON; None if no folder was read."""
    return None if left_out is None else left_out.to_dict()


@dataclasses.dataclass(frozen=True)
class FolderListing:
    """Files of one kind below a folder, sorted, and the others."""

    files: tuple[Path, ...]
    left_out: LeftOut


def list_images(folder: str | os.PathLike[str]) -> FolderListing:
    """List every image below `folder`: by file extension, see `image_endings`; without one, by content.

    Raises:
        InputError: If there is no such folder, or no image in it; or as `list_folder`.
    """
    root = Path(folder)
    check_folder(root)
    listing, _ = list_folder(root)
    return with_images(root, listing)


def check_folder(root: Path) -> None:
    """Raise InputError unless it is a folder."""
    with readable(root, "a folder of images"):
        if not root.is_dir():
            raise InputError(f"{root} is not a folder", where=root, expected="a folder of images")


def with_images(root: Path, listing: FolderListing) -> FolderListing:
    """The listing of a folder; InputError if it has no image."""
    if not listing.files:
        raise InputError(
            f"{root} has no images ({listing.left_out})",
            where=root, what="images", expected=sorted(image_endings()), found=listing.left_out,
            hint="images are found by the ending of their format, such as .jpg, .png, .tif or .webp",
        )  # fmt: skip
    return listing


def list_folder(root: Path, *, keep_unreadable: bool = False) -> tuple[FolderListing, FolderListing]:
    """List the images and the parquet files below a folder; each listing counts the other's files as left out.

    Links are followed, except a link to a folder that contains it.

    Args:
        root: The folder.
        keep_unreadable: Keep paths that cannot be read among the images: those with an image's ending, whatever they
            are, and links and files without any ending.

    Raises:
        InputError: If a folder cannot be read; or, unless those are kept, a link cannot be followed, a path with an
            image's ending is a pipe or a device, or a file without an ending cannot be read.
    """
    counts: collections.Counter[str] = collections.Counter()
    paths: dict[str, list[Path]] = {_IMAGE: [], PARQUET: []}
    endings = image_endings()

    def is_left_out(entry: os.DirEntry[str]) -> bool:
        is_hidden = _is_hidden(entry.name)
        if is_hidden:
            counts[HIDDEN] += _count(entry)
        return is_hidden

    for entry in files_below(root, is_left_out):
        path = Path(entry.path)
        kind = _kind(entry, path, endings, keep_unreadable)
        if kind in paths:
            paths[kind].append(path)
        else:
            counts[kind] += 1
    images, tables = (tuple(sorted(paths[kind])) for kind in (_IMAGE, PARQUET))
    return (
        FolderListing(images, LeftOut.of(counts + _by_ending(tables), _without(root, images))),
        FolderListing(tables, LeftOut.of(counts + _by_ending(images))),
    )


def _without(root: Path, files: Iterable[Path]) -> list[str]:
    """Direct subfolders of `root` that contain none of the files."""
    filled = {path.relative_to(root).parts[0] for path in files}
    with readable(root, "a folder"), os.scandir(root) as entries:
        folders = [entry.name for entry in entries if _leads_to(entry, entry.is_dir) and not _is_hidden(entry.name)]
    return [name for name in folders if name not in filled]


def files_below(root: Path, is_left_out: Callable[[os.DirEntry[str]], bool]) -> Iterator[os.DirEntry[str]]:
    """Everything below a folder except folders and what is left out; InputError if a folder cannot be read.

    Links are followed, except a link to a folder that contains it.
    """
    pending: list[tuple[Path, frozenset[tuple[int, int]]]] = [(root, frozenset())]
    while pending:
        folder, around = pending.pop()
        with readable(folder, "a folder"), os.scandir(folder) as entries:
            status = folder.stat()
            place = (status.st_dev, status.st_ino)
            if place in around:
                continue
            for entry in entries:
                if is_left_out(entry):
                    continue
                if _leads_to(entry, entry.is_dir):
                    pending.append((Path(entry.path), around | {place}))
                else:
                    yield entry


def _kind(entry: os.DirEntry[str], path: Path, endings: Collection[str], keep_unreadable: bool) -> str:
    """Image or parquet file, or the reason why a file is neither."""
    ending = path.suffix.lower()
    kind = _IMAGE if ending in endings else PARQUET if ending == PARQUET else None
    if not _leads_to(entry, entry.is_file):
        exists = os.path.exists(path)  # noqa: PTH110  (pathlib raises where a folder on the way is forbidden)
        if keep_unreadable and kind != PARQUET:
            return _IMAGE if kind or not (ending or exists) else PIPE if exists else BROKEN
        if kind is not None or entry.is_symlink():
            message = f"{path} is a pipe, a device or a link that cannot be followed"
            raise InputError(message, where=path, hint="remove it")
        return PIPE
    if kind is not None:
        return kind
    if ending:
        hint = " (needs pillow-heif)" if ending in HEIF_ENDINGS else ""
        return f"ending {ending}{hint}"
    try:
        return _IMAGE if _is_image(path) else NO_ENDING
    except OSError as exc:
        if keep_unreadable:
            return _IMAGE
        message = f"{path} has no ending and cannot be read: {exc.strerror}"
        raise InputError(message, where=path, found=exc.strerror, hint="remove it if it is not an image") from exc


def _leads_to(entry: os.DirEntry[str], kind: Callable[[], bool]) -> bool:
    """The answer of a method of an entry; False for any link that cannot be followed."""
    try:
        return kind()
    except OSError as exc:
        if exc.errno in _BROKEN_LINK or (exc.errno == errno.EACCES and entry.is_symlink()):
            return False
        raise


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in _HIDDEN_NAMES


def _count(entry: os.DirEntry[str]) -> int:
    """Number of files in a hidden entry; links are not followed."""
    if not entry.is_dir(follow_symlinks=False):
        return 1
    unreadable: list[OSError] = []
    return sum(len(names) for _, _, names in os.walk(entry.path, onerror=unreadable.append)) + len(unreadable)


def _is_image(path: Path) -> bool:
    """True if the file begins like an image; OSError if it cannot be opened."""
    quiet_libtiff()
    formats = [name for name in readable_formats() if name not in WEAK_MAGIC]
    with open_regular(path) as file:
        try:
            with Image.open(file, formats=formats):
                return True
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            return True
        except Exception:  # noqa: BLE001  (Pillow's plugins raise whatever they meet in a file that is none of theirs)
            return False


def _by_ending(files: Iterable[Path]) -> collections.Counter[str]:
    return collections.Counter(
        f"ending {path.suffix.lower()}" if path.suffix else "without an ending" for path in files
    )
