"""Open files once, so that a library reads the hashed content even if a file is replaced meanwhile.

A library that takes paths gets the descriptor's (`/proc/self/fd/7`), or, for files that it finds beside each other, one
through their folder's (`/proc/self/fd/7/model.onnx`). On a system without these, it gets the file's path. A path with
names in it is checked afterwards.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import os
import re
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

from vitdeploy.files.regular_file import open_regular

# File timestamps tick every 1 to 10 ms (CONFIG_HZ of Linux), with a margin for other systems: a second write within the
# same tick is invisible.
_TICK_NS = 20_000_000
_MOST_WAITS = 5
_SELF = "/proc/self"


class FileDiffersError(Exception):
    """A file has an unexpected size or content; the message says which."""


class FileChangedError(Exception):
    """A file was written to or replaced while it was read."""


@dataclasses.dataclass(frozen=True)
class OpenedFile:
    """A file's path for messages, and the path that a library opens: the hashed descriptor's, or the file's."""

    path: Path
    handle: str

    @classmethod
    def of(cls, file: str | os.PathLike[str] | OpenedFile) -> OpenedFile:
        """A file that was opened already, or an unverified one under its path."""
        return file if isinstance(file, OpenedFile) else cls(Path(file), os.fspath(file))

    def named(self, message: str) -> str:
        """A library's message with the handle replaced by the file's path, and the handle's folder by the file's.

        Libraries resolve /proc/self to /proc/123, and search the handle's folder for files that a model names.
        """
        if self.handle == str(self.path):
            return message
        for handle, path in ((Path(self.handle), self.path), (Path(self.handle).parent, self.path.parent)):
            name = re.escape(str(handle).removeprefix(_SELF))
            parts = re.split(rf"/proc/(?:self|{os.getpid()}){name}(?![0-9])", message)
            message = str(path).join(parts)
        return message


class VerifiedFile:
    """An open regular file that was hashed completely. Close it after `check`.

    Args:
        path: Path of the file.
        size_bytes: Expected size.
        sha256: Expected SHA-256, hexadecimal.
        name: Path that a library will open. Default: the descriptor's.
        base: Folder in `name` below which replaced links and folders are detected; see `_way`.

    Attributes:
        file: File for libraries.
        stream: The file, open for reading.

    Raises:
        OSError: If it cannot be read, or is not a regular file.
        FileDiffersError: If its size or content differs.
        FileChangedError: If it is written to continuously.
    """

    def __init__(
        self, path: Path, size_bytes: int, sha256: str, *, name: Path | None = None, base: Path | None = None
    ) -> None:
        self._sha256, self._base = sha256, path.parent if base is None else base
        self._way = _way(name or path, self._base)
        self.stream = open_regular(name or path)
        try:
            self._before = _settled(self.stream)
            size = self._before.st_size
            if size != size_bytes:
                raise FileDiffersError(f"{size} bytes instead of {size_bytes}")
            actual = hash_file(self.stream)
            if actual != (size_bytes, sha256):
                raise FileDiffersError(f"SHA-256 {actual[1][:12]}… instead of {sha256[:12]}…")
            handle = None if name is not None else descriptor_path(self.stream.fileno())
        except BaseException:
            self.stream.close()
            raise
        self._by_name = handle is None
        self.file = OpenedFile(path, str(name or path) if handle is None else handle)

    def check(self) -> None:
        """Raise FileChangedError if the file was written to, or replaced, since it was opened.

        Call it after a library has read the file: its result is then discarded, but TorchScript, which is code, may
        have run. Anyone who can write to the file can do the same to any program that maps it.
        """
        now, before = os.fstat(self.stream.fileno()), self._before
        if self._by_name:
            name = Path(self.file.handle)
            try:
                at_name, way = name.stat(), _way(name, self._base)
            except OSError as exc:
                raise FileChangedError from exc
            if not os.path.samestat(at_name, now) or way != self._way:
                raise FileChangedError
            if now.st_ctime_ns != before.st_ctime_ns:  # a rename sets it
                raise FileChangedError
        if (now.st_size, now.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
            raise FileChangedError
        if now.st_ctime_ns != before.st_ctime_ns:
            if now.st_nlink == before.st_nlink:  # the timestamp of a write was reset
                raise FileChangedError
            self.stream.seek(0)  # an export added or removed a hard link
            if hash_file(self.stream)[1] != self._sha256:
                raise FileChangedError

    def close(self) -> None:
        self.stream.close()


def hash_file(file: BinaryIO) -> tuple[int, str]:
    """Read a file to its end; return its size and hexadecimal SHA-256."""
    begin = file.tell()
    if hasattr(hashlib, "file_digest"):
        digest = hashlib.file_digest(cast("io.BufferedReader", file), "sha256")
    else:  # Python 3.10
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return file.tell() - begin, digest.hexdigest()


def _settled(file: BinaryIO) -> os.stat_result:
    """The file's timestamps, once any later write will change them."""
    for _ in range(_MOST_WAITS):
        status = os.fstat(file.fileno())
        age = time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns)
        if not 0 <= age < _TICK_NS:  # negative: from another machine's clock, or set manually
            return status
        time.sleep((_TICK_NS - age) / 1e9)
    raise FileChangedError


def descriptor_path(descriptor: int) -> str | None:
    """A path that reopens the same file or folder, wherever its name leads; None on a system without such paths."""
    path = Path(f"{_SELF}/fd/{descriptor}")
    try:
        return str(path) if os.path.samestat(path.stat(), os.fstat(descriptor)) else None
    except OSError:
        return None


@contextlib.contextmanager
def opened_folder(folder: Path) -> Iterator[Path]:
    """A path that leads to the same folder during the block, if the system has such paths."""
    if not hasattr(os, "O_DIRECTORY"):
        yield folder
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield Path(descriptor_path(descriptor) or folder)
    finally:
        os.close(descriptor)


def _way(name: Path, base: Path) -> list[tuple[int, ...]]:
    """Identities of the folders and links on the way to a file, with timestamps from `base` on.

    They differ if one was replaced, even if it was put back. Folders above `base`, such as /tmp, change constantly, and
    are compared without timestamps. The way to a descriptor's path is ignored.
    """
    name, base = name.absolute(), base.absolute()  # does not follow links
    descriptors = Path(_SELF, "fd")
    is_exact = descriptors in name.parents
    identities: list[tuple[int, ...]] = []
    for folder in name.parents:
        if folder.parent == descriptors:
            break
        status = folder.lstat()
        times = is_exact or stat.S_ISLNK(status.st_mode) or folder.is_relative_to(base)
        identities.append((status.st_dev, status.st_ino, *([status.st_ctime_ns] if times else [])))
    return identities
