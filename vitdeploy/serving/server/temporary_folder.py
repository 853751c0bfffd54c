"""A server's temporary folder; the next server removes that of one that was killed."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from vitdeploy.files.locks import take

_PREFIX = "vitdeploy-serve-"
_NAMES = _PREFIX + "[a-z0-9_]" * 8  # of tempfile; a shorter one could begin those of running servers
_FOLDERS = frozenset({"models", "backends"})  # in it; another folder of such a name is somebody's work
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  (where Triton's Python backend has it)


class ServerFolder(NamedTuple):
    """A folder for this user alone.

    Attributes:
        path: The folder; its name is unique on this machine, and begins those of Triton's shared memory.
        lock: Open descriptor that holds its lock, also in a process that inherits it.
    """

    path: Path
    lock: int

    def remove_shared_memory(self) -> None:
        """Remove the shared memory of a Triton that has ended."""
        _remove_shared_memory(self.path.name)


@contextlib.contextmanager
def server_folder() -> Iterator[ServerFolder]:
    """A new folder, removed when the block ends. Folders of killed servers are removed first."""
    for path in Path(tempfile.gettempdir()).glob(_NAMES):
        with contextlib.suppress(OSError):  # another user's, or another server removes it
            _remove_if_left(path)
    path = Path(tempfile.mkdtemp(prefix=f".{_PREFIX}"))  # under a name that no server removes before it is locked
    lock = os.open(path, os.O_RDONLY)
    try:
        take(lock)
        path = path.rename(path.with_name(path.name.removeprefix(".")))
        yield ServerFolder(path, lock)
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(lock)


def _remove_if_left(path: Path) -> None:
    """Remove a folder of this user's that no process has locked, and its shared memory."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        ours = os.fstat(descriptor).st_uid == os.geteuid() and {entry.name for entry in path.iterdir()} <= _FOLDERS
        if ours and take(descriptor):
            _remove_shared_memory(path.name)
            shutil.rmtree(path)
    finally:
        os.close(descriptor)


def _remove_shared_memory(name: str) -> None:
    for path in _SHARED_MEMORY.glob(f"{name}-*"):
        path.unlink(missing_ok=True)
