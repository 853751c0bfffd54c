"""Files that are opened once, so that a library reads what was hashed, whatever their names lead to meanwhile.

A library that takes paths is given that of the descriptor (`/proc/self/fd/7`). Where the system has none, or several
files must be found by their names, it is given the file's own path, and the name is checked afterwards.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, cast

from vitdeploy.regular_file import open_regular

if TYPE_CHECKING:
    import io
    from typing import BinaryIO

# The clock of a file's times ticks every 1 to 10 ms (CONFIG_HZ of Linux), with room for others: a second write within
# the same tick does not show in them.
_TICK_NS = 20_000_000
_MOST_WAITS = 5


class FileDiffersError(Exception):
    """A file has another size or content than it must have; the message says which."""


class FileChangedError(Exception):
    """A file was written to, or its name was given to another, while it was read."""


@dataclasses.dataclass(frozen=True)
class OpenedFile:
    """A file under two names.

    Attributes:
        path: where it lies, which people are told.
        handle: what a library opens: the path of the descriptor that was hashed, or else `path`.
    """

    path: Path
    handle: str

    @classmethod
    def of(cls, file: str | os.PathLike[str] | OpenedFile) -> OpenedFile:
        """A file that was opened already, or one that nothing vouches for, under its own name."""
        return file if isinstance(file, OpenedFile) else cls(Path(file), os.fspath(file))

    def named(self, message: str) -> str:
        """A library's message, with the file's path in the place of the handle."""
        return message.replace(self.handle, str(self.path))


class VerifiedFile:
    """A regular file that is open and was read to its end once. Close it after `check`.

    Args:
        path: of the file.
        size_bytes: what it must have.
        sha256: of its content, in hexadecimal.
        by_name: whether a library will open it by its path.

    Attributes:
        file: to be given to libraries.
        stream: the file, open for reading.

    Raises:
        OSError: it cannot be read, or is no regular file.
        FileDiffersError: it has another size or content.
        FileChangedError: it is written to all the time.
    """

    def __init__(self, path: Path, size_bytes: int, sha256: str, *, by_name: bool = False) -> None:
        self._sha256 = sha256
        self.stream = open_regular(path)
        try:
            self._before = _settled(self.stream)
            size = self._before.st_size
            if size != size_bytes:
                raise FileDiffersError(f"{size} bytes instead of {size_bytes}")
            found = hash_file(self.stream)
            if found != (size_bytes, sha256):
                raise FileDiffersError(f"SHA-256 {found[1][:12]}… instead of {sha256[:12]}…")
            handle = None if by_name else _descriptor_path(self.stream)
        except BaseException:
            self.stream.close()
            raise
        self._by_name = handle is None
        self.file = OpenedFile(path, str(path) if handle is None else handle)

    def check(self) -> None:
        """Raise FileChangedError unless all that was read since the file was opened is what was hashed."""
        now, before = os.fstat(self.stream.fileno()), self._before
        if self._by_name:
            try:
                at_path = self.file.path.stat()
            except OSError as exc:
                raise FileChangedError from exc
            if not os.path.samestat(at_path, now) or now.st_ctime_ns != before.st_ctime_ns:  # a rename sets it
                raise FileChangedError
        if (now.st_size, now.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
            raise FileChangedError
        if now.st_ctime_ns != before.st_ctime_ns:  # as where an export gave it another hard link
            self.stream.seek(0)
            if hash_file(self.stream)[1] != self._sha256:
                raise FileChangedError

    def close(self) -> None:
        self.stream.close()


def hash_file(file: BinaryIO) -> tuple[int, str]:
    """Read a file to its end: the number of bytes and their SHA-256 in hexadecimal."""
    begin = file.tell()
    if hasattr(hashlib, "file_digest"):
        digest = hashlib.file_digest(cast("io.BufferedReader", file), "sha256")
    else:  # Python 3.10
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return file.tell() - begin, digest.hexdigest()


def _settled(file: BinaryIO) -> os.stat_result:
    """The file's times, when any later write will change them."""
    for _ in range(_MOST_WAITS):
        stat = os.fstat(file.fileno())
        age = time.time_ns() - max(stat.st_mtime_ns, stat.st_ctime_ns)
        if not 0 <= age < _TICK_NS:  # negative: of another machine's clock, or set by hand
            return stat
        time.sleep((_TICK_NS - age) / 1e9)
    raise FileChangedError


def _descriptor_path(file: BinaryIO) -> str | None:
    """The path that opens the same file anew, whatever its name leads to; None where the system has none."""
    path = Path(f"/proc/self/fd/{file.fileno()}")
    try:
        return str(path) if os.path.samestat(path.stat(), os.fstat(file.fileno())) else None
    except OSError:
        return None
