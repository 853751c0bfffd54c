"""Resume log: finished batches on disk, from which a killed evaluation continues."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitdeploy.errors import InputError, OutputError
from vitdeploy.files.atomic import check_takes_files, fsync
from vitdeploy.files.locks import take
from vitdeploy.system.closing import ClosedOnExit

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_OPEN = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_NONBLOCK", 0)
_MOST_BYTES = 1 << 30  # some 10 million images
_SYNC_S = 5.0  # between two fsync calls, each of which can take longer than a batch


class WorkFile(ClosedOnExit):
    """A resume log of JSON lines: a header that identifies the evaluation, then one finished batch per line.

    Each batch ends in the SHA-256 of everything before it in the file, which detects a line that was altered, removed,
    inserted, moved or copied from another file. It is not a signature: anyone can recompute it.

    A line counts once it is complete. A killed process loses only the batch in progress; a power cut may lose the last
    seconds, too. A context manager; another process with the same file is refused at once.

    Args:
        path: The file, created if missing.
        header: Identity of the evaluation, as plain values. A file with another header is refused.

    Attributes:
        batches: Finished batches, in order.

    Raises:
        InputError: If the file belongs to another evaluation, or is damaged before its last line; it is left unchanged.
        OutputError: If the file cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str], header: Mapping[str, Any]) -> None:
        self._path = Path(path)
        self.batches: list[dict[str, Any]] = []
        self._synced = time.monotonic()
        self._before = hashlib.sha256()  # of the header and the batches so far
        line = json.dumps(header, allow_nan=False).encode() + b"\n"
        try:
            self._descriptor = os.open(self._path, _OPEN, 0o666)
        except OSError as exc:
            raise _no_access(self._path, exc) from exc
        try:
            if not stat.S_ISREG(os.fstat(self._descriptor).st_mode):
                raise _not_ours(self._path, "it is not a regular file")
            self._lock()
            content = self._content()
            self._before.update(line)
            if line.startswith(content):  # empty, or a truncated header
                os.ftruncate(self._descriptor, 0)
                self._write(line)
                os.fsync(self._descriptor)
                fsync(self._path.parent)
                return
            first, _, lines = content.partition(b"\n")
            self._check_header(first, json.loads(line))
            os.ftruncate(self._descriptor, len(first) + 1 + self._read(lines))
        except OSError as exc:
            self.close()
            raise _no_access(self._path, exc) from exc
        except BaseException:
            self.close()
            raise

    def append(self, batch: Mapping[str, Any]) -> None:
        """Append a finished batch; OutputError if it cannot be written, with earlier batches unchanged."""
        try:
            line = self._bound(json.dumps(batch, allow_nan=False).encode())
            self._write(line)
            self._before.update(line)
            if time.monotonic() - self._synced >= _SYNC_S:
                os.fsync(self._descriptor)
                self._synced = time.monotonic()
        except OSError as exc:
            raise OutputError(
                f"{self._path} cannot be written: {exc.strerror}",
                where=self._path,
                found=exc.strerror,
                hint="free space",
            ) from exc

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def _lock(self) -> None:
        if take(self._descriptor) is False:
            raise InputError(
                f"another process is writing {self._path}", what="resume", where=self._path,
                hint="wait for its end, or name another file",
            )  # fmt: skip

    def _content(self) -> bytes:
        with open(self._descriptor, "rb", closefd=False) as file:
            content = file.read(_MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            raise _not_ours(self._path, f"it has more than the {_MOST_BYTES:,} bytes that are read")
        return content

    def _bound(self, batch: bytes) -> bytes:
        """The line of a batch at this position in the file."""
        chained = self._before.copy()
        chained.update(batch)
        return batch + f" {chained.hexdigest()}\n".encode()

    def _write(self, line: bytes) -> None:
        while line:
            line = line[os.write(self._descriptor, line) :]

    def _check_header(self, line: bytes, wanted: dict[str, Any]) -> None:
        try:
            header = json.loads(line)
        except (ValueError, RecursionError):
            header = None
        if not isinstance(header, dict) or not header.keys() & wanted.keys():
            raise _not_ours(self._path, "it is something else")
        for keys, before, now in _differences(header, wanted):
            key = " / ".join(keys)
            raise _not_ours(self._path, f"it was begun with {key} {before!r:.80}, not {now!r:.80}", key, before, now)

    def _read(self, content: bytes) -> int:
        """Read the finished batches; return their size in bytes, without a truncated last line."""
        *lines, _ = content.split(b"\n")
        length = 0
        for number, line in enumerate(lines):
            try:
                body, _, _ = line.rpartition(b" ")
                if self._bound(body) != line + b"\n":
                    raise ValueError("this line, or one before it, was altered")
                batch = json.loads(body)
                if type(batch["batch"]) is not int or batch["batch"] != number:
                    raise ValueError(f"it is of batch {batch['batch']!r:.40}")
            except (ValueError, KeyError, TypeError, RecursionError) as exc:
                if number == len(lines) - 1:  # a power cut may leave a newline after missing content
                    break
                raise InputError(
                    f"{self._path}, line {number + 2}: not the finished batch {number}: {exc}",
                    what=f"line {number + 2}", where=self._path, hint="remove the file",
                ) from exc  # fmt: skip
            self.batches.append(batch)
            self._before.update(line + b"\n")
            length += len(line) + 1
        return length


def check_work_file(path: str | os.PathLike[str]) -> None:
    """Raise the errors of `WorkFile` for an unusable path, before the work begins. Nothing is created.

    InputError for a pipe, a device or the like; OutputError if the file cannot be read and written.
    """
    place = Path(path)
    try:
        try:
            descriptor = os.open(place, _OPEN & ~os.O_CREAT)
        except FileNotFoundError:
            check_takes_files(place.resolve().parent)
            return
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise _not_ours(place, "it is not a regular file")
        finally:
            os.close(descriptor)
    except OSError as exc:
        raise _no_access(place, exc) from exc


def _no_access(path: Path, error: OSError) -> OutputError:
    return OutputError(
        f"{path} cannot be read and written: {error.strerror}",
        where=path, found=error.strerror, hint="name another file",
    )  # fmt: skip


def _not_ours(
    path: Path, reason: str, what: str = "resume", found: object = None, expected: object = None
) -> InputError:
    return InputError(
        f"{path} is not of this work: {reason}",
        what=what, where=path, expected=expected, found=found, hint="name another file, or remove this one",
    )  # fmt: skip


def _differences(before: Any, wanted: Any, *keys: str) -> Iterator[tuple[tuple[str, ...], Any, Any]]:
    """Each value that differs, by its keys, with both values; None for a missing one."""
    if isinstance(before, dict) and isinstance(wanted, dict):
        for key in dict.fromkeys([*wanted, *before]):
            yield from _differences(before.get(key), wanted.get(key), *keys, key)
    elif before != wanted:
        yield keys, before, wanted
