"""Read a Hub dataset's parquet files, one row group at a time."""

from __future__ import annotations

import bisect
import collections
import contextlib
import dataclasses
import json
import os
import re
import threading
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vitdeploy.errors import ImageError, InputError, first_line
from vitdeploy.files.regular_file import open_regular
from vitdeploy.system.exhaustion import check_exhaustion

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "labels")
_SHARD = re.compile(r"(?P<split>.+)-[0-9]{5}-of-[0-9]{5}.*")
_SPLITS = frozenset({"train", "training", "validation", "valid", "val", "dev", "test", "testing", "eval"})
_GROUPS_KEPT = 2  # images are requested in order by a few threads: from the end of one and the start of the next
# With repeating labels, a row without an image takes no room in the file, and some 200 bytes in memory.
_MOST_ROWS, _LEAST_IMAGE_BYTES = 100_000, 32
# Uncompressed pixels may shrink to a sixtieth in a row group; encoded images hardly shrink.
_MOST_TIMES, _FLOOR_BYTES = 64, 256 * 1024**2
_MOST_DICTIONARY_BYTES = 1024**3  # of a dictionary, whose offsets have 31 bits; with a margin


@dataclasses.dataclass(frozen=True, eq=False)
class ParquetData:
    """The content of parquet files.

    Attributes:
        names: "file#row" of each of N images; rows start at 0.
        labels: Indices, (N,) int64, or N names; empty if not requested.
        class_names: The dataset's class names; None without.
        load: Returns the encoded image at a position from 0 to N - 1.
    """

    names: tuple[str, ...]
    labels: NDArray[np.int64] | list[str]
    class_names: tuple[str, ...] | None
    load: Callable[[int], bytes]


def read_parquet(source: Path, files: Sequence[Path], *, labelled: bool = True) -> ParquetData:
    """Read the names and labels of all files, but no images yet.

    Args:
        source: The folder, or the only file.
        files: Files below the folder, in order.
        labelled: Read labels, which each file must have.

    Raises:
        InputError: If a file is damaged, lacks a column, or belongs to another split or has other classes than the
            first.
    """
    root = source if source.is_dir() else source.parent
    _check_one_split(source, [path.relative_to(root) for path in files])
    names: list[str] = []
    labels: list[NDArray[np.int64] | list[str]] = []
    groups: list[_Group] = []
    class_names: list[tuple[str, ...] | None] = []
    for path in files:
        try:
            with open_regular(path) as opened, pq.ParquetFile(opened) as file:  # requires UTF-8 paths
                schema, metadata, state = file.schema_arrow, file.metadata, _state(opened)
                _check_row_count(path, metadata.num_rows)
                image = _image_column(path, schema)
                if labelled:
                    label = _column(path, schema, LABEL_COLUMNS, "ClassLabel")
                    class_names.append(_class_names(path, schema, label))
                    labels.append(_labels(path, file.read(columns=[label]).column(0)))
        except (OSError, pa.ArrowException) as exc:
            check_exhaustion(exc, f"reading {path}")
            reason = first_line(exc)
            raise InputError(f"{path} is not a readable parquet file: {reason}", where=path, found=reason) from exc
        if labelled and (class_names[-1] != class_names[0] or type(labels[-1]) is not type(labels[0])):
            problem = f"the labels or classes of {path} are not those of {files[0].name}"
            raise InputError(problem, where=path, what="labels", expected=files[0].name)
        column = f"{image}.bytes" if pa.types.is_struct(schema.field(image).type) else image
        first = len(names)
        for index in range(metadata.num_row_groups):
            groups.append(_Group(path, index, column, first, state))
            first += metadata.row_group(index).num_rows
        names += [f"{path.relative_to(root).as_posix()}#{row}" for row in range(metadata.num_rows)]
    if not names:
        raise InputError(f"{source} has no rows", where=source, what="images")
    indices = [part for part in labels if isinstance(part, np.ndarray)]
    joined = np.concatenate(indices) if indices else [str(name) for part in labels for name in part]
    return ParquetData(tuple(names), joined, class_names[0] if labelled else None, _RowGroups(groups, names).load)


@dataclasses.dataclass(frozen=True)
class _Group:
    """A row group, its image column, the position of its first image, and the state of the file when it was listed."""

    path: Path
    index: int
    column: str
    first: int
    state: tuple[int, int]


class _RowGroups:
    """Reads images, and keeps the last row groups in memory; all of them might be too many."""

    def __init__(self, groups: Sequence[_Group], names: Sequence[str]) -> None:
        self._groups, self._names = groups, names
        self._firsts = [group.first for group in groups]
        self._kept: collections.OrderedDict[int, Any] = collections.OrderedDict()
        self._lock = threading.Lock()

    def load(self, position: int) -> bytes:
        number = bisect.bisect_right(self._firsts, position) - 1
        with self._lock:
            if number not in self._kept:
                while len(self._kept) >= _GROUPS_KEPT:
                    self._kept.popitem(last=False)
                self._kept[number] = self._read(self._groups[number])
            images = self._kept[number]
        value = images[position - self._firsts[number]].as_py()
        value = value["bytes"] if isinstance(value, dict) else value
        if value is None:
            name = self._names[position]
            raise ImageError(f"cannot read {name!r}: the row has no image bytes", what="bytes", where=name)
        return bytes(value)

    def _read(self, group: _Group) -> Any:
        try:
            with _opened(group) as file:
                size_bytes = _check_expansion(group, file.metadata.row_group(group.index))
            # A repeated image is stored once, as a dictionary entry, and remains one in memory.
            words = [group.column] if size_bytes <= _MOST_DICTIONARY_BYTES else None
            with _opened(group, read_dictionary=words) as file:
                return file.read_row_group(group.index, columns=[group.column]).column(0)
        except (OSError, pa.ArrowException) as exc:
            check_exhaustion(exc, f"reading {group.path}")
            reason = first_line(exc)
            problem = f"cannot read the images of {str(group.path)!r}: {reason}"
            raise ImageError(problem, where=group.path, found=reason) from exc


def _state(file: BinaryIO) -> tuple[int, int]:
    """Size and time of the last write of an open file."""
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns


@contextlib.contextmanager
def _opened(group: _Group, **options: Any) -> Iterator[pq.ParquetFile]:
    """The file of a row group; InputError if it is not the one that was listed, whose rows it may not have."""
    try:
        opened = open_regular(group.path)
    except OSError as exc:
        message = f"{group.path} cannot be opened any more: {exc.strerror}"
        raise InputError(message, what="images", where=group.path, found=exc.strerror, hint="run it again") from exc
    with opened:
        if _state(opened) != group.state:
            message = f"{group.path} has changed since its images were listed"
            raise InputError(message, what="images", where=group.path, hint="run it again")
        with pq.ParquetFile(opened, **options) as file:
            yield file


def _check_row_count(path: Path, count: int) -> None:
    """Refuse more rows than the file has room for images; repeated labels take no room."""
    size_bytes = path.stat().st_size
    if count > max(_MOST_ROWS, size_bytes // _LEAST_IMAGE_BYTES):
        problem = f"{path} states {count:,} rows in {size_bytes:,} bytes, too few for images"
        raise InputError(problem, where=path, what="rows", found=count, hint="write the file again")


def _check_expansion(group: _Group, metadata: pq.RowGroupMetaData) -> int:
    """Size of a row group's images in bytes; refused if out of proportion to the file's size."""
    chunks = [metadata.column(index) for index in range(metadata.num_columns)]
    chunks = [chunk for chunk in chunks if chunk.path_in_schema == group.column]
    size_bytes = sum(chunk.total_uncompressed_size for chunk in chunks)
    in_file = min(group.path.stat().st_size, sum(chunk.total_compressed_size for chunk in chunks))
    if size_bytes > max(_FLOOR_BYTES, _MOST_TIMES * in_file):
        raise ImageError(
            f"cannot read the images of {str(group.path)!r}: row group {group.index} expands from {in_file:,} to "
            f"{size_bytes:,} bytes",
            where=group.path, what=f"row group {group.index}", found=size_bytes, hint="write the file again",
        )  # fmt: skip
    return int(size_bytes)


def _check_one_split(source: Path, files: Sequence[Path]) -> None:
    """Refuse files of several splits: many Hub repositories keep training and test files side by side."""
    splits = set()
    for file in files:
        shard = _SHARD.fullmatch(file.name)
        split = shard["split"] if shard else file.stem if file.stem in _SPLITS else ""
        splits.add((file.parent / split).as_posix())
    if len(splits) > 1:
        raise InputError(
            f"{source} has the parquet files of several splits: {', '.join(sorted(splits)[:5])}",
            where=source, what="splits", found=sorted(splits), hint="name one file, or a folder with one split",
        )  # fmt: skip


def _image_column(path: Path, schema: pa.Schema) -> str:
    name = _column(path, schema, IMAGE_COLUMNS, "Image")
    kind = schema.field(name).type
    if not (_is_binary(kind) or _is_struct_with_bytes(kind)):
        problem = f"the column {name} of {path} must have the bytes of files, alone or in a struct, it has {kind}"
        raise InputError(problem, where=path, what=name, expected="bytes", found=str(kind))
    return name


def _column(path: Path, schema: pa.Schema, names: Sequence[str], feature: str) -> str:
    """The column with one of these names; else the only one that the dataset declares as this feature."""
    columns = [name for name in schema.names if name.lower() in names]
    columns = columns or [name for name in schema.names if _feature(path, schema, name).get("_type") == feature]
    if len(columns) != 1:
        raise InputError(
            f"{path} needs one column named {' or '.join(names)}, or one {feature} in its metadata 'huggingface'; "
            f"it has the columns {', '.join(schema.names)[:200]}",
            where=path, what="columns", expected=names, found=tuple(schema.names),
        )  # fmt: skip
    return str(columns[0])


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_struct_with_bytes(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0 and _is_binary(kind.field("bytes").type)
    )


def _labels(path: Path, column: pa.ChunkedArray) -> NDArray[np.int64] | list[str]:
    if column.null_count:
        rows = column.null_count
        raise InputError(f"{rows} rows of {path} have no label", where=path, what="labels", expected=0, found=rows)
    if pa.types.is_integer(column.type):
        try:
            return np.asarray(column.cast(pa.int64()).to_numpy(), np.int64)
        except pa.ArrowInvalid as exc:  # unsigned, 64 bits
            reason = first_line(exc)
            problem = f"{path}: a label is not a class index: {reason}"
            raise InputError(problem, where=path, what="label", found=reason) from exc
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        return [str(value) for value in column.to_pylist()]
    problem = f"the labels of {path} are {column.type}, neither whole numbers nor names"
    raise InputError(problem, where=path, what="labels", found=str(column.type))


def _class_names(path: Path, schema: pa.Schema, label: str) -> tuple[str, ...] | None:
    """Class names in the dataset's ClassLabel."""
    if _features(path, schema) and not _feature(path, schema, label):
        problem = f"{path}: its metadata 'huggingface' lacks the column {label}"
        raise InputError(problem, where=path, what="huggingface", expected=label, hint="write the file again")
    feature = _feature(path, schema, label)
    if feature.get("_type") != "ClassLabel" or not pa.types.is_integer(schema.field(label).type):
        return None
    names = feature.get("names")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        problem = f"{path}: the class names of {label} in its metadata 'huggingface' are no list: {names!r:.80}"
        raise InputError(problem, where=path, what="huggingface", found=names)
    if not names:
        problem = f"{path}: its metadata 'huggingface' has no class names of {label}"
        raise InputError(problem, where=path, what="huggingface", found=names, hint="name the classes, or remove it")
    return tuple(names)


def _feature(path: Path, schema: pa.Schema, column: str) -> dict[str, Any]:
    """Metadata of one column; empty without any."""
    feature = _features(path, schema).get(column)
    return feature if isinstance(feature, dict) else {}


def _features(path: Path, schema: pa.Schema) -> dict[str, Any]:
    """Metadata of the columns, which the Hub's libraries write as JSON; empty without any."""
    text = (schema.metadata or {}).get(b"huggingface")
    if text is None:
        return {}
    try:
        features = json.loads(text)["info"]["features"]
        if not isinstance(features, dict):
            raise TypeError(f"expected an object, got {features!r:.80}")
    except (ValueError, KeyError, TypeError, RecursionError) as exc:
        problem = f"{path}: its metadata 'huggingface' does not describe its columns: {type(exc).__name__} {exc}"
        raise InputError(problem, where=path, what="huggingface") from exc
    return dict(features)
