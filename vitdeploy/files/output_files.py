"""Write a result to the path that a person names: a file, a pipe, a device or an open descriptor."""

from __future__ import annotations

import errno
import os
import re
import stat
import sys
from pathlib import Path
from typing import BinaryIO

from vitdeploy.errors import OutputError, first_line
from vitdeploy.files.atomic import check_takes_files, write_file
from vitdeploy.files.regular_file import kind_of
from vitdeploy.system.polling import poll

_STREAMS = ("pipe", "device")
_MOST_LINKS = 40  # as Linux follows
_READER_SECONDS = 5.0  # for the process at the other end of a pipe to open it


def check_writable(target: Path) -> None:
    """Raise OutputError unless a file can be written there: one is made in its folder, and removed."""
    try:
        descriptor = _descriptor(target)
        if descriptor is not None:
            _check_open(descriptor)
            return
        kind = _kind(target)
        if kind in _STREAMS:
            return
        if kind is not None:
            raise OutputError(f"{target} cannot be written: it is a {kind}", where=target, hint="name another file")
        folder = next(parent for parent in target.resolve().parents if parent.exists())  # at least the root
        check_takes_files(folder)
    except (OSError, RuntimeError, ValueError) as exc:
        message = f"{target!s:.400} cannot be written: {_reason(exc)}"
        raise OutputError(message, where=target, hint="name another file") from exc


def write_output(target: Path, content: bytes) -> None:
    """Write a file atomically (`vitdeploy.files.atomic`), or into a pipe, a character device or an open descriptor.

    The latter are /dev/stdout, /dev/fd/N and /proc/self/fd/N, with whatever they lead to. Any other path is replaced
    whole or not at all, below /dev as elsewhere. A pipe that nobody reads is waited for `_READER_SECONDS`.

    Raises:
        OutputError: If it cannot be written; a file that was there before is untouched.
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
        elif _kind(target) in _STREAMS:
            descriptor = _open_stream(target)
        if descriptor is not None:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
            return
    except (OSError, RuntimeError, ValueError) as exc:
        message = f"{target} could not be written: {_reason(exc)}"
        raise OutputError(message, where=target, hint="choose another file") from exc
    write_file(target, content)


def is_stream(path: Path) -> bool:
    """Whether `write_output` would write into a pipe, a device or an open descriptor."""
    return _descriptor(path) is not None or _kind(path) in _STREAMS


def standard_output_file() -> str | None:
    """The path of standard output where that goes into a file, which another output must not replace."""
    try:
        is_file = sys.stdout is not None and stat.S_ISREG(os.fstat(sys.stdout.fileno()).st_mode)
    except (OSError, ValueError):  # there is none, or another program's object stands for it
        return None
    return "/dev/stdout" if is_file and Path("/dev/stdout").exists() else None


def _open_stream(target: Path) -> int:
    """Open a pipe or a device to write, when a process reads it."""

    def attempt() -> int | None:
        try:
            return os.open(target, os.O_WRONLY | os.O_NONBLOCK)
        except OSError as exc:
            if exc.errno != errno.ENXIO:
                raise
            return None

    descriptor = poll(attempt, _READER_SECONDS)
    if descriptor is None:
        raise OSError(f"no process reads the pipe after {_READER_SECONDS:g} seconds")
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
    """The kind of a path that is no regular file; None for a regular file, or where nothing is."""
    try:
        return kind_of(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return None
