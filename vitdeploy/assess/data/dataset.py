"""Labelled images on disk: class folders, a CSV file, or a Hub dataset's parquet files."""

from __future__ import annotations

import csv
import dataclasses
import functools
import hashlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vitdeploy.assess.data.class_labels import BY_INDEX, OWN, Classes
from vitdeploy.assess.data.folder_listing import list_folder, with_images
from vitdeploy.errors import ImageError, InputError, check_count, first_line, readable
from vitdeploy.files.label_tables import SEPARATORS, TABLE_ENDINGS, table_rows
from vitdeploy.files.regular_file import MOST_IMAGE_BYTES, read_regular
from vitdeploy.system.imports import load_target

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from vitdeploy.assess.data.folder_listing import FolderListing, LeftOut
    from vitdeploy.assess.data.parquet import ParquetData

CSV_IMAGE_COLUMNS = ("image", "path", "file", "file_name")
CSV_LABEL_COLUMNS = ("label", "class")


@dataclasses.dataclass(frozen=True, eq=False)
class LabelledData:
    """N labelled images, read on access.

    Attributes:
        source: Folder or file.
        kind: "folder", "csv", "tsv" or "parquet".
        matched: Rule that matched labels with the model's classes, such as "by name"; see
            `vitdeploy.assess.data.class_labels`. For classes of the data set's own, "its own".
        names: Unique image names, with forward slashes.
        targets: Class index of each image, (N,) int32.
        load: Returns the encoded image at a position from 0 to N - 1; thread-safe.
        left_out: Files of the folder that are not among the images; None if no folder was listed.
        classes: Class names, which the targets index: the model's, or the data set's own.
    """

    source: str
    kind: str
    matched: str
    names: tuple[str, ...]
    targets: NDArray[np.int32]
    load: Callable[[int], bytes]
    left_out: LeftOut | None = None
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.names)

    def subset(self, limit: int | None, seed: int = 0) -> LabelledData:
        """The `limit` images with the smallest SHA-256 of seed and name, in the data set's order.

        The selection depends on seed and names only; a smaller limit selects a subset of a larger one's.
        """
        if limit is None or limit >= len(self):
            return self
        chosen = chosen_names(self.names, limit, seed)
        return dataclasses.replace(
            self,
            names=tuple(self.names[index] for index in chosen),
            targets=self.targets[chosen],
            load=lambda position: self.load(chosen[position]),
        )


def chosen_names(names: Sequence[str], limit: int | None, seed: int) -> list[int]:
    """Sorted positions of the `limit` names with the smallest SHA-256 of seed and name; all without a limit."""
    if limit is not None:
        check_count("limit", limit)

    def rank(index: int) -> bytes:
        return hashlib.sha256(f"{seed}\0{names[index]}".encode("utf-8", "surrogatepass")).digest()

    return list(range(len(names))) if limit is None else sorted(sorted(range(len(names)), key=rank)[:limit])


def open_data(path: str | os.PathLike[str], labels: Sequence[str] | None) -> LabelledData:
    """Read the names and labels of a data set, and match them with the model's classes by the rules of `Classes`.

    Without model classes, the classes are the data set's own labels: of a folder, the names of its subfolders; sorted,
    except for those that a parquet file lists.

    1. A folder with one subfolder per class, named by class name or WordNet id; or by index, if no subfolder is named
       like a class, all are numbers, and the classes are not numbered otherwise. A file is one image: a link that gives
       it a second place in the folder is refused.
    2. A UTF-8 .csv file with commas, or a .tsv file with tabs. It has a column `image`, `path`, `file` or `file_name`
       with an image path relative to the file's folder, and a column `label` or `class` with a label as for a folder.
       Column names are case-insensitive.
    3. A Hub dataset's .parquet file, or a folder with the files of one split. It has a column `image` or `img` with
       encoded images, as bytes or as a struct {bytes, path}, and a column `label` or `labels`. Another column is used
       if the dataset declares it as the only Image or ClassLabel. If the dataset names its classes, each must match one
       of the model's, in any order; otherwise labels are as in a CSV file, except that integers are indices.

    Args:
        path: Folder or file.
        labels: The model's class names, in the order of the logits; None for a model without classes.

    Raises:
        InputError: If there are no images, a label does not match exactly one class, or a file is damaged.
        MissingDependencyError: If pyarrow is not installed, for parquet files.
    """
    source, classes = Path(path), None if labels is None else Classes(labels)
    kind = source.suffix.lower()
    with readable(source, "a folder, or a .csv, .tsv or .parquet file"):
        is_folder = source.is_dir()
        if not is_folder and (kind not in TABLE_ENDINGS or not source.is_file()):
            raise InputError(f"{source} is not a folder, a .csv, a .tsv or a .parquet file", where=source, what="data")
    if is_folder:
        images, tables = list_folder(source)
        return _from_parquet(source, tables, classes) if tables.files else _from_folder(source, images, classes)
    if kind in SEPARATORS:
        return _from_csv(source, classes, kind)
    return _from_parquet(source, None, classes)


def _from_folder(root: Path, listing: FolderListing, classes: Classes | None) -> LabelledData:
    paths = with_images(root, listing).files
    relative = [path.relative_to(root) for path in paths]
    _check_each_once(root, paths)
    label_of = functools.cache(functools.partial(_label, root, classes))
    labels = [label_of(path.parent.parts) for path in relative]
    names = tuple(path.as_posix() for path in relative)
    own, targets, matched = _matched(classes, labels, str(root))
    return LabelledData(
        str(root), "folder", matched, names, targets, functools.partial(read_image, paths), listing.left_out, own
    )


def _matched(
    classes: Classes | None, labels: Sequence[str], source: str
) -> tuple[tuple[str, ...], NDArray[np.int32], str]:
    """Class names, the class of each image (N,), and the rule that matched them."""
    distinct = list(dict.fromkeys(labels))
    if classes is None:
        names, matched = tuple(sorted(distinct)), OWN
        index_of = {name: index for index, name in enumerate(names)}
    else:
        names, (index_of, matched) = classes.names, classes.match_any(distinct, source)
    return names, np.array([index_of[label] for label in labels], np.int32), matched


def _check_each_once(root: Path, paths: Sequence[Path]) -> None:
    """Raise InputError if a link makes one file two images, possibly of two classes.

    Links to files outside the folder are allowed: stores such as the Hub's cache keep equal images once.
    """
    folder_of = functools.cache(os.path.realpath)
    inside = Path(folder_of(root))
    seen: dict[Path, Path] = {}
    for path in paths:
        place = Path(folder_of(path.parent), path.name)
        if path.is_symlink() and inside in (target := Path(os.path.realpath(path))).parents:
            place = target
        if place in seen:
            both = tuple(file.relative_to(root).as_posix() for file in (seen[place], path))
            raise InputError(
                f"{root}: {both[0]!r:.200} and {both[1]!r:.200} are one file, by a link",
                where=root, what="link", found=both, hint="remove the link",
            )  # fmt: skip
        seen[place] = path


def _label(root: Path, classes: Classes | None, folders: tuple[str, ...]) -> str:
    """The label of the images in folders below `root`: the first folder, or the first ones for a class such as "a/b".

    InputError if there is none, or the folders name several classes.
    """
    if not folders:
        raise InputError(
            f"{root} has images outside class folders",
            where=root, what="folder", hint="move each into a folder with the name of its class, or list them in a CSV",
        )  # fmt: skip
    if classes is None:
        return folders[0]
    joined = ["/".join(folders[:count]) for count in range(1, len(folders) + 1)]
    indices_of = {label: classes.find(label) for label in (*joined, *folders[1:])}
    named = [label for label, indices in indices_of.items() if indices]
    if not named:
        return folders[0]
    for label in named[1:]:
        if indices_of[label] != indices_of[named[0]]:
            raise InputError(
                f"{root}: the folder {joined[-1]!r:.200} names two classes of the model, {named[0]!r} and {label!r}",
                where=root / joined[-1], what="folder", found=(named[0], label), hint="move its images to one of them",
            )  # fmt: skip
    if named[0] not in joined:
        raise InputError(
            f"{root}: {folders[0]!r:.80} is no class of the model ({classes}), but has a folder that is one",
            where=root, what="label", found=folders[0], hint=f"name {root / folders[0]} instead",
        )  # fmt: skip
    return named[0]


def _from_csv(path: Path, classes: Classes | None, ending: str) -> LabelledData:
    names, labels = read_csv(path)
    own, targets, matched = _matched(classes, labels, str(path))
    load = functools.partial(read_image, [path.parent / name for name in names])
    return LabelledData(str(path), ending[1:], matched, names, targets, load, classes=own)


def read_csv(path: Path, *, labelled: bool = True, keep_missing: bool = False) -> tuple[tuple[str, ...], list[str]]:
    """Image paths in a .csv or .tsv file, relative to its folder, and their labels.

    With `labelled` false, no label column is needed, and the list is empty. With `keep_missing`, a name that leads to
    no file is among the paths.

    Raises:
        InputError: If the file cannot be read, lacks a column, or names an image twice or, unless those are kept, a
            missing one.
    """
    names: list[str] = []
    labels: list[str] = []
    line_of: dict[tuple[str, str], int] = {}
    folder_of = functools.cache(os.path.realpath)
    for image, label, line in _csv_rows(path, labelled):
        name = Path(image).as_posix()
        file = path.parent / name
        if not keep_missing or "\0" in name:  # which no path has, but a damaged list
            _check_is_file(path, line, name)
        place = (folder_of(file.parent), file.name)
        if place in line_of:
            lines = (line_of[place], line)
            problem = f"{path} names the image {name!r} twice, in lines {lines[0]} and {line}"
            raise InputError(problem, where=path, what="lines", found=lines)
        line_of[place] = line
        names.append(name)
        labels.append(sys.intern(label))
    if not names:
        raise InputError(f"{path} lists no images", where=path, what="images")
    return tuple(names), labels if labelled else []


def _check_is_file(path: Path, line: int, name: str) -> None:
    """Raise InputError unless a line of a list names a file."""
    with readable(f"{path}, line {line}: {name!r:.80}", "the path of a file"):
        if not (path.parent / name).is_file():
            raise InputError(
                f"{path}, line {line}: there is no file {name!r} in {path.parent}",
                where=path, what=f"line {line}", found=name,
            )  # fmt: skip


def _csv_rows(path: Path, labelled: bool) -> Iterator[tuple[str, str, int]]:
    """Image, label (empty if not requested) and line number of each row."""
    try:
        rows = table_rows(path)
        _, first = next(rows, (0, []))
        header = [name.strip().strip("\ufeff") for name in first]
        image = _column(path, header, CSV_IMAGE_COLUMNS)
        needed = (image, _column(path, header, CSV_LABEL_COLUMNS)) if labelled else (image,)
        for line, row in rows:
            if not row:
                continue  # an empty line
            if len(row) != len(header) or not all(row[column].strip() for column in needed):
                values, text = "an image and a label" if labelled else "an image", ",".join(row)[:80]
                raise InputError(
                    f"{path}, line {line}: expected {len(header)} values, with {values}, got {text!r}",
                    where=path, what=f"line {line}", found=text,
                )  # fmt: skip
            yield row[image].strip(), row[needed[-1]].strip() if labelled else "", line
    except (OSError, UnicodeDecodeError, csv.Error) as exc:
        reason = getattr(exc, "strerror", None) or first_line(exc)
        problem = f"{path} is not a readable {path.suffix[1:].upper()} file in UTF-8: {reason}"
        raise InputError(problem, where=path, expected="UTF-8", found=reason) from exc


def _column(path: Path, header: list[str], names: Sequence[str]) -> int:
    columns = [index for index, column in enumerate(header) if column.lower() in names]
    if len(columns) != 1:
        raise InputError(
            f"{path} needs one column named {' or '.join(names)}, it has {', '.join(header)[:200] or 'none'}",
            where=path, what="columns", expected=names, found=tuple(header),
            hint="separate columns by commas in a .csv file and by tabs in a .tsv file",
        )  # fmt: skip
    return columns[0]


def _from_parquet(source: Path, listing: FolderListing | None, classes: Classes | None) -> LabelledData:
    content = read_parquet(source, listing)
    if content.class_names is not None:
        of_data = Classes(content.class_names)
        own = of_data if classes is None else classes
        indices, matched = own.match_list(content.class_names, str(source))
        labels = np.asarray(content.labels, np.int64)
        of_data.check_indices(np.unique(labels).tolist(), str(source))
        names, targets = own.names, np.array(indices, np.int32)[labels]
        matched = OWN if classes is None else matched
    elif isinstance(content.labels, np.ndarray) and classes is not None:
        classes.match_indices(np.unique(content.labels).tolist(), str(source))
        names, matched, targets = classes.names, BY_INDEX, content.labels.astype(np.int32)
    else:
        names, targets, matched = _matched(classes, [str(label) for label in content.labels], str(source))
    left_out = None if listing is None else listing.left_out
    return LabelledData(str(source), "parquet", matched, content.names, targets, content.load, left_out, names)


def read_parquet(source: Path, listing: FolderListing | None, *, labelled: bool = True) -> ParquetData:
    """Image names in a parquet file or a folder of such files, and their labels if requested.

    Raises as `vitdeploy.assess.data.parquet.read_parquet`; MissingDependencyError if pyarrow is not installed.
    """
    target = "vitdeploy.assess.data.parquet:read_parquet"
    read = load_target(target, "reading parquet files", "parquet", "pyarrow")
    content: ParquetData = read(source, [source] if listing is None else listing.files, labelled=labelled)
    return content


def read_image(paths: Sequence[Path], position: int) -> bytes:
    """Content of the file at a position; thread-safe."""
    path = paths[position]
    try:
        return read_regular(path, MOST_IMAGE_BYTES)
    except OSError as exc:
        raise ImageError(f"cannot read {str(path)!r}: {exc.strerror}", where=path, found=exc.strerror) from exc
