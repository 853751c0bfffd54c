"""Places that a person names for outputs: whether they can be written, and that none of them is an input."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import re
import stat
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vitdeploy.bundle.manifest import MANIFEST
from vitdeploy.errors import InputError, OutputError, UsageError, first_line
from vitdeploy.files.atomic import check_takes_files, write_file
from vitdeploy.files.regular_file import TooLargeError, kind_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from typing import BinaryIO

_TABLES = (".csv", ".tsv", ".parquet")
_MOST_LINKS = 40  # as Linux follows
_READER_SECONDS = 5.0  # for the process at the other end of a pipe to open it
_POLL_SECONDS = 0.05
_Identity = tuple[int, int]  # of a file: its device and inode


class _Output(NamedTuple):
    """A named place: its path with every link followed, and its status where something is there."""

    name: str
    path: Path
    place: Path
    status: os.stat_result | None
    is_stream: bool


def check_outputs(outputs: Mapping[str, Any], inputs: Mapping[str, Any], *, bundle: Any = None) -> None:
    """Refuse outputs of a command that are an input of it, or each other. To be called before any work.

    Paths are compared with all links followed, and files that exist by device and inode, so that no other spelling and
    no hard link hides one. An input stands for more than itself: a bundle for all that is in its folder; a folder for
    its files, and for every place in it that would be read as an image or a table of labels the next time; a table for
    the images that it names.

    Args:
        outputs: paths by the names that the user knows them by; others than paths, such as None, are left out.
        inputs: paths, or lists of them, by name; others than paths are left out.
        bundle: an input, the folder of a bundle, whether it is there or not.

    Raises:
        UsageError: an output is an input, lies in a bundle or among the data, or is another output.
        InputError: a table is too large to look whether it names an output.
        OutputError: an output that is to be a file is a folder on the way to another.
    """
    opened = [_output(name, path) for name, path in outputs.items() if _is_path(path)]
    found = [output for output in opened if output is not None]
    for name, value in {"the bundle": bundle, **inputs}.items():
        for path in filter(_is_path, value if isinstance(value, (list, tuple)) else [value]):
            output = _part_of(Path(path), found, is_bundle=value is bundle)
            if output is not None:
                raise UsageError(
                    f"{output.name} {output.path} would overwrite an input: it is part of {name} {path}; "
                    f"choose another file"
                )
    for output, other in itertools.combinations(reversed(found), 2):
        if _is_same(output, other):
            raise UsageError(
                f"{output.name} and {other.name} are the same file, {output.path}; choose another for one of them"
            )
        for file, below in ((output, other), (other, output)):
            if file.status is None and file.place in below.place.parents:
                raise OutputError(
                    f"{below.name} {below.path} cannot be written: {file.name} makes a file of {file.path}, which "
                    f"it takes for a folder; choose another place for one of them"
                )


def check_writable(target: Path) -> None:
    """Raise OutputError unless a file can be written there: one is made in its folder, and removed."""
    try:
        descriptor = _descriptor(target)
        if descriptor is not None:
            _check_open(descriptor)
            return
        kind = _kind(target)
        if kind == "folder":
            raise OutputError(f"{target} cannot be written: it is a folder; name a file")
        if kind is not None:
            if kind not in ("pipe", "device"):
                raise OutputError(f"{target} is a {kind}, which takes no file; choose another file")
            return
        folder = next(parent for parent in target.resolve().parents if parent.exists())  # at least the root
        check_takes_files(folder)
    except (OSError, RuntimeError, ValueError) as exc:
        raise OutputError(f"{target!s:.400} cannot be written: {_reason(exc)}; name another file") from exc


def write_output(target: Path, content: bytes) -> None:
    """Write a file atomically (`vitdeploy.files.atomic`), or into a pipe, a character device or an open descriptor.

    The latter are /dev/stdout, /dev/fd/N and /proc/self/fd/N, with whatever they lead to. Any other path is replaced
    whole or not at all, below /dev as elsewhere. A pipe that nobody reads is waited for `_READER_SECONDS`.

    Raises:
        OutputError: it cannot be written; a file that was there before is untouched.
    """
    try:
        descriptor = _descriptor(target)
        if descriptor is not None:
            stream = _standard_output(descriptor)
            if stream is not None:
                stream.write(content)
                stream.flush()
                return
            descriptor = os.dup(descriptor)
        elif _kind(target) in ("pipe", "device"):
            descriptor = _open_stream(target)
        if descriptor is not None:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
            return
    except (OSError, RuntimeError, ValueError) as exc:
        raise OutputError(f"{target} could not be written: {_reason(exc)}; choose another file") from exc
    write_file(target, content)


def _open_stream(target: Path) -> int:
    last = time.monotonic() + _READER_SECONDS
    while True:
        try:
            descriptor = os.open(target, os.O_WRONLY | os.O_NONBLOCK)
        except OSError as exc:
            if exc.errno != errno.ENXIO:
                raise
            if time.monotonic() >= last:
                raise OSError(f"no process reads the pipe after {_READER_SECONDS:g} seconds") from exc
            time.sleep(_POLL_SECONDS)
        else:
            os.set_blocking(descriptor, True)
            return descriptor


def _check_open(descriptor: int) -> None:
    """Raise OSError unless it is an open file that can be written to."""
    import fcntl  # the systems that have such paths have it

    if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
        raise OSError(errno.EBADF, "it is open for reading only")


def _descriptor(target: Path) -> int | None:
    """The number of the open file that a path such as /dev/stdout stands for."""
    path = target
    for _ in range(_MOST_LINKS):
        path = path.parent.resolve() / path.name
        number = re.fullmatch(rf"(?:/dev|/proc/{os.getpid()}(?:/task/[0-9]+)?)/fd/([0-9]+)", str(path))
        if number is not None:
            return int(number[1])
        if not path.is_symlink():
            return None
        path = path.parent / path.readlink()
    return None


def _standard_output(descriptor: int) -> BinaryIO | None:
    """The program's own standard output, where that is the descriptor: it is for it to say what becomes of failures."""
    try:
        if sys.stdout.fileno() != descriptor:
            return None
        sys.stdout.flush()
        return sys.stdout.buffer
    except (AttributeError, OSError, ValueError):  # there is none, or another object stands for it
        return None


def _reason(exc: Exception) -> str:
    return (exc.strerror if isinstance(exc, OSError) else None) or first_line(exc)


def _kind(path: Path) -> str | None:
    """What is there, where that is no regular file; None where nothing is."""
    try:
        return kind_of(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _is_path(value: Any) -> bool:
    return isinstance(value, (str, os.PathLike)) and bool(os.fspath(value))


def _output(name: str, value: str | os.PathLike[str]) -> _Output | None:
    path = Path(value)
    try:
        is_stream = _descriptor(path) is not None or _kind(path) in ("pipe", "device")
        return _Output(name, path, path.resolve(), _status(path), is_stream)
    except (OSError, RuntimeError, ValueError):  # a name too long, links in a circle, a null byte
        return None


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except (OSError, ValueError):
        return None


def _is_same(a: _Output, b: _Output) -> bool:
    """Whether the second to be written destroys the first: what goes into one pipe or descriptor follows each other."""
    if a.is_stream and b.is_stream:
        return False
    if a.status is not None and b.status is not None:
        return os.path.samestat(a.status, b.status)
    return a.place == b.place


def _part_of(source: Path, outputs: Iterable[_Output], *, is_bundle: bool) -> _Output | None:
    """The first of the outputs that is an input, or a part of it."""
    try:
        place = source.resolve()
        is_folder = source.is_dir()
        is_bundle = is_bundle or (is_folder and (source / MANIFEST).exists())
    except (OSError, RuntimeError, ValueError):
        return None  # whoever reads it says so
    there = {
        _identity(output.status): output
        for output in outputs
        if output.status is not None and stat.S_ISREG(output.status.st_mode)
    }
    if is_folder:
        found = set(_files_below(source, there))
    else:
        found = {
            _identity(status) for status in map(_status, (source, *_named_in(source, there))) if status is not None
        }
    for output in outputs:
        if output.status is not None and _identity(output.status) in there.keys() & found:
            return output
        if not output.is_stream:
            is_below = place in output.place.parents
            if output.place == place or (is_below and (is_bundle or output.place.suffix.lower() in _data_endings())):
                return output
    return None


def _data_endings() -> set[str]:
    from vitdeploy.images.formats import image_endings  # not before it is needed: Pillow takes its time

    return {*image_endings(), *_TABLES}


def _identity(status: os.stat_result) -> _Identity:
    return status.st_dev, status.st_ino


def _files_below(folder: Path, outputs: Mapping[_Identity, _Output]) -> Iterator[_Identity]:
    """Those of the outputs that are below a folder; links are followed.

    An output of one name is looked for by its own folder, and among links: all files have not to be looked at.
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
        with contextlib.suppress(OSError), os.scandir(parent) as entries:  # of one that may not be listed
            for entry in entries:
                if _is_folder(entry):
                    waiting.append(Path(entry.path))
                elif has_more_names or entry.is_symlink():
                    found = _status(Path(entry.path))
                    if found is not None:
                        yield _identity(found)
    for identity, output in outputs.items():
        above = _status(output.place.parent)
        if above is not None and _identity(above) in seen:
            yield identity


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # links in a circle
        return False


def _named_in(table: Path, outputs: Mapping[_Identity, _Output]) -> Iterator[Path]:
    """The files that the cells of a .csv or .tsv file name; none after a row that its reader will refuse.

    Raises:
        InputError: it is too large to be read.
    """
    if not outputs or table.suffix.lower() not in (".csv", ".tsv"):
        return
    from vitdeploy.files.label_tables import TableError, table_rows  # not before it is needed

    seen: set[str] = set()
    try:
        for _, row in table_rows(table, strict=False):
            for cell in row:
                name = cell.strip()
                if name and name not in seen:
                    seen.add(name)
                    yield table.parent / name
    except TooLargeError as exc:
        raise InputError(f"cannot read the table {table}: {exc.strerror}; split it into several") from exc
    except (OSError, TableError):
        return
