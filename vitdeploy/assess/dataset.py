"""Labelled images on disk: class folders, a CSV file, or the parquet files of a Hub dataset."""

from __future__ import annotations

import csv
import dataclasses
import functools
import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vitdeploy.assess.matching import BY_INDEX, Classes
from vitdeploy.assess.samples import files_below, labelled_files
from vitdeploy.errors import ImageError, InputError, UsageError, first_line, readable
from vitdeploy.tables import load_target

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from vitdeploy.assess.parquet_data import ParquetData

CSV_IMAGE_COLUMNS = ("image", "path", "file", "file_name")
CSV_LABEL_COLUMNS = ("label", "class")


@dataclasses.dataclass(frozen=True, eq=False)
class LabelledData:
    """N images with their labels; the images are read when they are asked for.

    Attributes:
        source: the folder or file.
        kind: "folder", "csv" or "parquet".
        matched: how labels were matched with the model's classes: "by name", "by synonym" or "by index".
        names: of the images, each its own, with forward slashes.
        targets: (N,) int32, the index of each image's class.
        load: gives the file's bytes of the image at a position from 0 to N - 1; may be called from several threads.
    """

    source: str
    kind: str
    matched: str
    names: tuple[str, ...]
    targets: NDArray[np.int32]
    load: Callable[[int], bytes]

    def __len__(self) -> int:
        return len(self.names)

    def subset(self, limit: int | None, seed: int = 0) -> LabelledData:
        """The `limit` images whose SHA-256 of seed and name comes first, in the order of the whole.

        The same seed and names give the same images everywhere, and a smaller limit some of a larger one's.
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
    """The positions of the `limit` names whose SHA-256 of seed and name comes first, in order; all without a limit."""
    if limit is not None and limit < 1:
        raise UsageError(f"limit must be at least 1, got {limit}")

    def rank(index: int) -> bytes:
        return hashlib.sha256(f"{seed}\0{names[index]}".encode("utf-8", "surrogatepass")).digest()

    return list(range(len(names))) if limit is None else sorted(sorted(range(len(names)), key=rank)[:limit])


def open_data(path: str | os.PathLike[str], labels: Sequence[str]) -> LabelledData:
    """Read the names and labels of a data set, and match them with the model's classes; see `Classes` for the rules.

    1. A folder with one folder a class, named like it.
    2. A .csv file in UTF-8 with commas: a column `image`, `path`, `file` or `file_name`, the path of an image from the
       CSV's folder; and a column `label` or `class`, a name, or an index where no label is a name.
    3. A .parquet file of a Hub dataset, or a folder with those of one split: a column `image` or `img` with the bytes
       of a file, alone or in a struct {bytes, path}; and `label` or `labels`. Where the dataset names its classes,
       each must be one of the model's, in whatever order; where not, labels are as in a CSV.

    Args:
        path: the folder or file.
        labels: the model's class names, in the order of the logits.

    Raises:
        InputError: there are no images, a label is not clearly one of the model's classes, or a file is damaged.
        MissingDependencyError: pyarrow is not installed, for parquet files.
    """
    source, classes = Path(path), Classes(labels)
    kind = source.suffix.lower()
    with readable(source, "a folder, a .csv file or a .parquet file"):
        is_folder = source.is_dir()
        if not is_folder and (kind not in (".csv", ".parquet") or not source.is_file()):
            raise InputError(f"{source} must be a folder, a .csv file or a .parquet file, is none of these")
    if is_folder:
        files = files_below(source, {".parquet"})
        return _from_parquet(source, files, classes) if files else _from_folder(source, classes)
    return _from_csv(source, classes) if kind == ".csv" else _from_parquet(source, [source], classes)


def _from_folder(root: Path, classes: Classes) -> LabelledData:
    pairs = labelled_files(root, classes.names)
    paths = [path for path, _ in pairs]
    matched = classes.rule({path.relative_to(root).parts[0]: index for path, index in pairs}, str(root))
    names = tuple(path.relative_to(root).as_posix() for path in paths)
    targets = np.array([index for _, index in pairs], np.int32)
    return LabelledData(str(root), "folder", matched, names, targets, file_reader(paths))


def _from_csv(path: Path, classes: Classes) -> LabelledData:
    rows = _csv_rows(path)
    names = [Path(image).as_posix() for image, _, _ in rows]
    line_of: dict[tuple[str, str], int] = {}
    folder_of = functools.cache(os.path.realpath)
    for name, (_, _, line) in zip(names, rows, strict=True):
        file = path.parent / name
        with readable(f"{path}, line {line}: {name!r:.80}", "the path of a file"):
            if not file.is_file():
                raise InputError(
                    f"{path}, line {line}: {name!r} must be the path of a file from {path.parent}, is none"
                )
        place = (folder_of(file.parent), file.name)
        if place in line_of:
            raise InputError(f"{path} must name an image once, names {name!r} in lines {line_of[place]} and {line}")
        line_of[place] = line
    index_of, matched = classes.match_any(list(dict.fromkeys(label for _, label, _ in rows)), str(path))
    targets = np.array([index_of[label] for _, label, _ in rows], np.int32)
    return LabelledData(
        str(path), "csv", matched, tuple(names), targets, file_reader([path.parent / name for name in names])
    )


def _csv_rows(path: Path) -> list[tuple[str, str, int]]:
    """Image, label and line number of each row."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = [name.strip() for name in next(reader, [])]
            image, label = (_column(path, header, names) for names in (CSV_IMAGE_COLUMNS, CSV_LABEL_COLUMNS))
            rows = []
            for row in reader:
                if not row:
                    continue  # an empty line
                if len(row) != len(header) or not row[image].strip() or not row[label].strip():
                    raise InputError(
                        f"{path}, line {reader.line_num}: expected {len(header)} values, with an image and a label, "
                        f"got {','.join(row)[:80]!r}"
                    )
                rows.append((row[image].strip(), row[label].strip(), reader.line_num))
    except (OSError, UnicodeDecodeError, csv.Error) as exc:
        raise InputError(f"{path} must be a CSV file in UTF-8 that can be read: {first_line(exc)}") from exc
    if not rows:
        raise InputError(f"{path} must hold images, holds none")
    return rows


def _column(path: Path, header: list[str], names: Sequence[str]) -> int:
    found = [index for index, column in enumerate(header) if column in names]
    if len(found) != 1:
        raise InputError(
            f"{path} must have one column named {' or '.join(names)}, separated by commas, has columns "
            f"{', '.join(header)[:200]}"
        )
    return found[0]


def _from_parquet(source: Path, files: Sequence[Path], classes: Classes) -> LabelledData:
    target = "vitdeploy.assess.parquet_data:read_parquet"
    found: ParquetData = load_target(target, "reading parquet files", "parquet", "pyarrow")(source, files)
    if found.class_names is not None:
        index_of = classes.match(found.class_names, f"{source}, which names its classes,")
        matched = classes.rule(index_of, str(source))
        used = np.unique(np.asarray(found.labels, np.int64))
        Classes(found.class_names).check_indices(used.tolist(), str(source))
        targets = np.array([index_of[name] for name in found.class_names], np.int32)[np.asarray(found.labels, np.int64)]
    elif isinstance(found.labels, np.ndarray):
        classes.check_indices(np.unique(found.labels).tolist(), str(source))
        matched, targets = BY_INDEX, found.labels.astype(np.int32)
    else:
        index_of, matched = classes.match_any(list(dict.fromkeys(found.labels)), str(source))
        targets = np.array([index_of[label] for label in found.labels], np.int32)
    return LabelledData(str(source), "parquet", matched, found.names, targets, found.load)


def file_reader(paths: Sequence[Path]) -> Callable[[int], bytes]:
    """What reads the file at a position; may be called from several threads."""

    def load(position: int) -> bytes:
        try:
            return paths[position].read_bytes()
        except OSError as exc:
            raise ImageError(f"cannot read {str(paths[position])!r}: {exc.strerror}") from exc

    return load
