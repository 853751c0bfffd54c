"""Write a result to a path given by a user: a file, a pipe, a device or an open descriptor."""

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
from vitdeploy.files.polling import poll
from vitdeploy.files.regular_file import kind_of

_STREAMS = ("pipe", "device")
_MOST_LINKS = 40  # maximum depth in Linux
_READER_SECONDS = 5.0  # for the process at the other end of a pipe to open it


def check_writable(target: Path) -> None:
    """Raise OutputError unless the path is writable, tested by a temporary file in its folder."""
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
        folder = next(parent for parent in target.resolve().parents if parent.exists())  # at least the root exists
        check_takes_files(folder)
    except (OSError, RuntimeError, ValueError) as exc:
        message = f"{target!s:.400} cannot be written: {_reason(exc)}"
        raise OutputError(message, where=target, hint="name another file") from exc


def write_output(target: Path, content: bytes) -> None:
    """Write a file atomically (`vitdeploy.files.atomic`), or into a pipe, a character device or an open descriptor.

    Descriptors are /dev/stdout, /dev/fd/N and /proc/self/fd/N, whatever they lead to. Any other path is replaced
    atomically, also below /dev. A pipe without a reader times out after `_READER_SECONDS`.

    Raises:
        OutputError: If it cannot be written; an existing file is unchanged.
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
    """True if `write_output` would write into a pipe, a device or an open descriptor."""
    return _descriptor(path) is not None or _kind(path) in _STREAMS


def standard_output_file() -> str | None:
    """The path of standard output if it is a file, which another output must not replace."""
    try:
        is_file = sys.stdout is not None and stat.S_ISREG(os.fstat(sys.stdout.fileno()).st_mode)
    except (OSError, ValueError):  # closed, or replaced by another program's object
        return None
    return "/dev/stdout" if is_file and Path("/dev/stdout").exists() else None


def _open_stream(target: Path) -> int:
    """Open a pipe or a device for writing, once a process reads it."""

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
    """Raise OSError unless it is an open, writable file."""
    import fcntl  # systems with such paths have it

    if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
        raise OSError(errno.EBADF, "it is open for reading only")


def _descriptor(target: Path) -> int | None:
    """Number of the open file behind a path such as /dev/stdout."""
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
    """Python's standard output, if the descriptor is its: it handles its own failures."""
    try:
        if sys.stdout.fileno() != descriptor:
            return None
        sys.stdout.flush()
        return sys.stdout.buffer
    except (AttributeError, OSError, ValueError):  # closed, or replaced by another object
        return None


def _reason(exc: Exception) -> str:
    return (exc.strerror if isinstance(exc, OSError) else None) or first_line(exc)


def _kind(path: Path) -> str | None:
    """Kind of a path that is not a regular file; None for a regular file or nothing."""
    try:
        return kind_of(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return None
