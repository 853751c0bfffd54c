"""Open only finite files: pipes and devices are refused at once, and too large files before they are read."""

from __future__ import annotations

import errno
import os
import stat
from typing import BinaryIO

from vitdeploy.system.exhaustion import check_exhaustion

# For a JSON, TOML or CSV file, which takes up to 40 times its size in memory once parsed. The index of a checkpoint
# with 10,000 tensors has 1 MB.
MOST_TEXT_BYTES = 16 * 1024**2
MOST_IMAGE_BYTES = 1 << 30  # for an encoded image; pixels have their own limit
_KINDS = {
    stat.S_IFREG: None,
    stat.S_IFDIR: "folder",
    stat.S_IFIFO: "pipe",
    stat.S_IFCHR: "device",
    stat.S_IFBLK: "disk",
}


class NotRegularError(OSError):
    """The path leads to a pipe, a device or a socket, which might never end."""


class TooLargeError(OSError):
    """The file is larger than its reader's limit."""


def open_regular(path: str | os.PathLike[str], most_bytes: int | None = None) -> BinaryIO:
    """Open a file for reading without waiting: opening a pipe without a writer would block forever.

    Raises:
        NotRegularError: If it is a pipe, a device or a socket.
        TooLargeError: If it currently has more than `most_bytes`.
        OSError: If it cannot be opened; IsADirectoryError for a folder.
        ExhaustedError: If too many files are open, for any reason.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except OSError as exc:
        if exc.errno != errno.EAGAIN:  # not a lack of threads here, but a lease held by another process
            check_exhaustion(exc, f"opening {path}")
        raise
    try:
        status = os.fstat(descriptor)
        mode = status.st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
        kind = kind_of(mode)
        if kind is not None:
            raise NotRegularError(errno.EINVAL, f"it is a {kind}, not a regular file", os.fspath(path))
        if most_bytes is not None and status.st_size > most_bytes:
            raise _too_large(path, most_bytes)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_regular(path: str | os.PathLike[str], most_bytes: int = MOST_TEXT_BYTES) -> bytes:
    """Content of a file; TooLargeError if it has more than `most_bytes`; other errors as `open_regular`."""
    with open_regular(path, most_bytes) as file:
        content = file.read(most_bytes + 1)  # it may have grown meanwhile
    if len(content) > most_bytes:
        raise _too_large(path, most_bytes)
    return content


def kind_of(mode: int) -> str | None:
    """Kind of a path, from its `stat` mode; None for a regular file."""
    return _KINDS.get(stat.S_IFMT(mode), "socket")


def _too_large(path: str | os.PathLike[str], most_bytes: int) -> TooLargeError:
    return TooLargeError(errno.EFBIG, f"it has more than the {most_bytes:,} bytes that are read", os.fspath(path))
