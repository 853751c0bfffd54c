"""Refuse output paths that would overwrite an input of the same command, or another output."""

from __future__ import annotations

import contextlib
import csv
import itertools
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from vitdeploy.bundle.manifest import MANIFEST
from vitdeploy.errors import InputError, OutputError, UsageError
from vitdeploy.files.label_tables import SEPARATORS, TABLE_ENDINGS, table_rows
from vitdeploy.files.output_files import is_stream
from vitdeploy.files.regular_file import TooLargeError

_Identity = tuple[int, int]  # identity of a file: device and inode


class _Output(NamedTuple):
    """A named path with every link followed, and its status if it exists."""

    name: str
    path: Path
    place: Path
    status: os.stat_result | None
    is_stream: bool


def check_outputs(outputs: Mapping[str, Any], inputs: Mapping[str, Any], *, bundle: Any = None) -> None:
    """Refuse outputs of a command that equal an input or another output. Call it before any work.

    Paths are compared with all links followed, and existing files by device and inode, so that neither another spelling
    nor a hard link hides one. An input includes more than its path: a bundle includes everything in its folder; a
    folder includes its files, and every path in it that would later be read as an image or a label table; a table
    includes the images that it names.

    Args:
        outputs: Paths by user-facing name; other values, such as None, are ignored.
        inputs: Paths, or lists of them, by name; other values are ignored.
        bundle: Folder of a bundle that is an input, existing or not.

    Raises:
        UsageError: If an output equals an input or another output, or lies in a bundle or among the data.
        InputError: If a table is too large to be searched for an output.
        OutputError: If an output file is a parent folder of another output.
    """
    opened = [_output(name, path) for name, path in outputs.items() if _is_path(path)]
    places = [output for output in opened if output is not None]
    if not places:
        return  # no search in the inputs, which may be large
    for name, value in {"the bundle": bundle, **inputs}.items():
        for path in filter(_is_path, value if isinstance(value, (list, tuple)) else [value]):
            output = _part_of(Path(path), places, is_bundle=value is bundle)
            if output is not None:
                message = f"{output.name} {output.path} would overwrite an input: it is part of {name} {path}"
                raise UsageError(message, what=output.name, where=output.path, hint="choose another file")
    for output, other in itertools.combinations(reversed(places), 2):
        if _is_same(output, other):
            message = f"{output.name} and {other.name} are the same file, {output.path}"
            raise UsageError(message, what=output.name, where=output.path, hint="choose another for one of them")
        for file, below in ((output, other), (other, output)):
            if file.status is None and file.place in below.place.parents:
                raise OutputError(
                    f"{below.name} {below.path} cannot be written: its folder {file.path} is the file of {file.name}",
                    what=below.name, where=below.path, hint="choose another place for one of them",
                )  # fmt: skip


def _is_path(value: Any) -> bool:
    return isinstance(value, (str, os.PathLike)) and bool(os.fspath(value))


def _output(name: str, value: str | os.PathLike[str]) -> _Output | None:
    path = Path(value)
    try:
        return _Output(name, path, path.resolve(), _status(path), is_stream(path))
    except (OSError, RuntimeError, ValueError):  # a name too long, a loop of links, a null byte
        return None


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except (OSError, ValueError):
        return None


def _is_same(a: _Output, b: _Output) -> bool:
    """True if the second write destroys the first; writes into one pipe or descriptor follow each other."""
    if a.is_stream and b.is_stream:
        return False
    if a.status is not None and b.status is not None:
        return os.path.samestat(a.status, b.status)
    return a.place == b.place


def _part_of(source: Path, outputs: Iterable[_Output], *, is_bundle: bool) -> _Output | None:
    """The first output that is an input, or part of it."""
    try:
        place = source.resolve()
        is_folder = source.is_dir()
        is_bundle = is_bundle or (is_folder and (source / MANIFEST).exists())
    except (OSError, RuntimeError, ValueError):
        return None  # its reader reports it
    there = {
        _identity(output.status): output
        for output in outputs
        if output.status is not None and stat.S_ISREG(output.status.st_mode)
    }
    if is_folder:
        inputs = set(_files_below(source, there))
    else:
        statuses = map(_status, (source, *_named_in(source, there)))
        inputs = {_identity(status) for status in statuses if status is not None}
    for output in outputs:
        if output.status is not None and _identity(output.status) in there.keys() & inputs:
            return output
        if not output.is_stream:
            is_below = place in output.place.parents
            if output.place == place or (is_below and (is_bundle or output.place.suffix.lower() in _data_endings())):
                return output
    return None


def _data_endings() -> set[str]:
    from vitdeploy.images.formats import image_endings  # imported late: Pillow takes time to load

    return {*image_endings(), *TABLE_ENDINGS}


def _identity(status: os.stat_result) -> _Identity:
    return status.st_dev, status.st_ino


def _files_below(folder: Path, outputs: Mapping[_Identity, _Output]) -> Iterator[_Identity]:
    """Outputs below a folder, with links followed.

    An output with a single name is found by its parent folder and among links, without listing all files.
    """
    if not outputs:
        return
    has_more_names = any(output.status is None or output.status.st_nlink > 1 for output in outputs.values())
    seen: set[_Identity] = set()
    waiting = [folder]
    while waiting:
        parent = waiting.pop()
        status = _status(parent)
        if status is None or _identity(status) in seen:
            continue
        seen.add(_identity(status))
        with contextlib.suppress(OSError), os.scandir(parent) as entries:  # in a folder that may not be listed
            for entry in entries:
                if _is_folder(entry):
                    waiting.append(Path(entry.path))
                elif has_more_names or entry.is_symlink():
                    status = _status(Path(entry.path))
                    if status is not None:
                        yield _identity(status)
    for identity, output in outputs.items():
        above = _status(output.place.parent)
        if above is not None and _identity(above) in seen:
            yield identity


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a loop of links
        return False


def _named_in(table: Path, outputs: Mapping[_Identity, _Output]) -> Iterator[Path]:
    """Files named in a table's cells, up to a row that its reader will refuse; InputError if it is too large."""
    if not outputs or table.suffix.lower() not in SEPARATORS:
        return
    seen: set[str] = set()
    try:
        for _, row in table_rows(table, strict=False):
            for cell in row:
                name = cell.strip()
                if name and name not in seen:
                    seen.add(name)
                    yield table.parent / name
    except TooLargeError as exc:
        message = f"cannot read the table {table}: {exc.strerror}"
        raise InputError(message, where=table, hint="split it into several") from exc
    except (OSError, csv.Error):
        return
