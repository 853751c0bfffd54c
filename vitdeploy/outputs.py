"""Places that a person names for outputs: whether they can be written, and that none of them is an input."""

from __future__ import annotations

import errno
import io
import os
import re
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vitdeploy import locks
from vitdeploy.atomic import check_takes_files, write_file
from vitdeploy.errors import OutputError, UsageError, first_line
from vitdeploy.manifest import MANIFEST
from vitdeploy.regular_file import read_regular

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

_TABLES = (".csv", ".tsv", ".parquet")
_MOST_LINKS = 40  # as Linux follows
_POLL_SECONDS = 0.05


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
        OutputError: an output that is to be a file is a folder on the way to another.
    """
    opened = [_output(name, path) for name, path in outputs.items() if _is_path(path)]
    found = [output for output in opened if output is not None]
    for index, output in enumerate(found):
        for name, value in {"the bundle": bundle, **inputs}.items():
            for path in value if isinstance(value, (list, tuple)) else [value]:
                if _is_path(path) and _is_of(output, Path(path), is_bundle=value is bundle):
                    raise UsageError(
                        f"{output.name} {output.path} would overwrite an input: it is part of {name} {path}; "
                        f"choose another file"
                    )
        for other in found[:index]:
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
        if _descriptor(target) is not None:
            return
        kind = _kind(target)
        if kind == "folder":
            raise OutputError(f"{target} must be a file that can be written, is a folder; name a file")
        if kind is not None:
            if kind not in ("pipe", "device"):
                raise OutputError(f"{target} is a {kind}, which takes no file; choose another file")
            return
        folder = next(parent for parent in target.resolve().parents if parent.exists())  # at least the root
        check_takes_files(folder)
    except (OSError, RuntimeError, ValueError) as exc:
        raise OutputError(f"{target!s:.400} must be a file that can be written: {_reason(exc)}; name another") from exc


def write_output(target: Path, content: bytes) -> None:
    """Write a file as `vitdeploy.atomic.write_file` does, or into a pipe, a character device or an open descriptor.

    The latter are /dev/stdout, /dev/fd/N and /proc/self/fd/N, with whatever they lead to. Any other path is replaced
    whole or not at all, below /dev as elsewhere. A pipe that nobody reads is waited for as long as a lock.

    Raises:
        OutputError: it cannot be written; a file that was there before is untouched.
    """
    try:
        descriptor = _descriptor(target)
        if descriptor is not None:
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
    last = time.monotonic() + locks.LOCK_SECONDS
    while True:
        try:
            descriptor = os.open(target, os.O_WRONLY | os.O_NONBLOCK)
        except OSError as exc:
            if exc.errno != errno.ENXIO:
                raise
            if time.monotonic() >= last:
                raise OSError(f"no process reads the pipe after {locks.LOCK_SECONDS:g} seconds") from exc
            time.sleep(_POLL_SECONDS)
        else:
            os.set_blocking(descriptor, True)
            return descriptor


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


def _reason(exc: Exception) -> str:
    return (exc.strerror if isinstance(exc, OSError) else None) or first_line(exc)


def _kind(path: Path) -> str | None:
    """What is there, where that is no regular file; None where nothing is."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    kinds = {stat.S_IFDIR: "folder", stat.S_IFIFO: "pipe", stat.S_IFCHR: "device", stat.S_IFBLK: "disk"}
    return None if stat.S_ISREG(mode) else kinds.get(stat.S_IFMT(mode), "socket")


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


def _is_of(output: _Output, source: Path, *, is_bundle: bool) -> bool:
    """Whether an output is an input, or a part of it."""
    try:
        place = source.resolve()
        is_folder = source.is_dir()
        is_bundle = is_bundle or (is_folder and (source / MANIFEST).exists())
    except (OSError, RuntimeError, ValueError):
        return False  # whoever reads it says so
    if not output.is_stream:
        is_below = place in output.place.parents
        if output.place == place or (is_below and (is_bundle or output.place.suffix.lower() in _data_endings())):
            return True
    status = output.status
    if status is None or not stat.S_ISREG(status.st_mode):
        return False
    more = _files_below(source) if is_folder else (source, *_named_in(source))
    return any(found is not None and os.path.samestat(found, status) for found in map(_status, more))


def _data_endings() -> set[str]:
    from vitdeploy.image_formats import image_endings  # not before it is needed: Pillow takes its time

    return {*image_endings(), *_TABLES}


def _files_below(folder: Path) -> Iterator[Path]:
    """Every file below a folder, once; links to folders are followed."""
    seen: set[tuple[int, int]] = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        status = _status(Path(parent))
        if status is None or (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        yield from (Path(parent, name) for name in names)


def _named_in(table: Path) -> Iterable[Path]:
    """The files that the cells of a .csv or .tsv file name; none of a file that cannot be read, as its reader says."""
    import csv

    separator = {".csv": ",", ".tsv": "\t"}.get(table.suffix.lower())
    if separator is None:
        return ()
    try:
        text = read_regular(table).decode("utf-8-sig", "replace")
        cells = {cell.strip() for row in csv.reader(io.StringIO(text, newline=""), delimiter=separator) for cell in row}
    except (OSError, csv.Error):
        return ()
    return (table.parent / cell for cell in cells if cell)
