"""Separate writers with the system's advisory locks, which end with the process."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from vitdeploy.errors import OutputError
from vitdeploy.files.polling import poll
from vitdeploy.system.forks import first_in_child

try:
    import fcntl
except ImportError:  # not POSIX: writers are not separated, and leftovers of killed ones are not removed
    fcntl = None  # type: ignore[assignment]


# vitdeploy holds a folder's lock during a rename, and, without hard links, while it copies a bundle.
LOCK_SECONDS = 60.0
_held: set[int] = set()  # descriptors; copies in a forked child hold the locks as well
# File systems without locks; NFS reports EBADF for a path not open for writing, such as a folder: flock(2).
_NO_LOCKS = (errno.EBADF, errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@first_in_child
def _let_go() -> None:
    """Leave the locks of the parent's threads to the parent: they would last until the child ends."""
    for descriptor in _held:
        with contextlib.suppress(OSError):  # another thread of the parent was about to close it
            null = os.open(os.devnull, os.O_RDONLY)
            os.dup2(null, descriptor)  # instead of closing: the owner of the number closes it
            os.close(null)
    _held.clear()


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock a folder against other writers; wait at most `LOCK_SECONDS`, because `flock` would wait forever.

    Raises:
        OutputError: If another process holds it all that time, or it cannot be opened.
    """
    if fcntl is None:
        yield
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as exc:
        message = f"{folder} cannot be opened to lock it: {exc.strerror}"
        raise OutputError(message, where=folder, hint="choose another folder") from exc
    _held.add(descriptor)
    try:
        if poll(lambda: take(descriptor) is not False or None, LOCK_SECONDS) is None:
            message = f"another process has locked {folder} for more than {LOCK_SECONDS:g} seconds"
            hint = "end it (lslocks lists the locks), or choose another output folder"
            raise OutputError(message, where=folder, hint=hint)
        yield
    finally:
        release(descriptor)


def try_lock(path: Path) -> int | None:
    """Lock a folder or a regular file without waiting, until `release` of the returned descriptor; links are ignored.

    None if another process holds it, or locks are not supported.

    Raises:
        OSError: If it cannot be opened, for example another user's.
    """
    if fcntl is None:
        return None
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)  # does not wait for a pipe's writer
    _held.add(descriptor)
    try:
        if take(descriptor):
            return descriptor
    except BaseException:
        release(descriptor)
        raise
    release(descriptor)
    return None


def release(descriptor: int) -> None:
    """Release the lock of `try_lock`, even if a child has a copy of the descriptor."""
    if fcntl is not None:
        with contextlib.suppress(OSError):  # on a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_UN)
    _held.discard(descriptor)
    os.close(descriptor)


def take(descriptor: int) -> bool | None:
    """Lock an open file or folder without waiting: False if another process holds it, None if unsupported."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as exc:
        if exc.errno in _NO_LOCKS:
            return None
        raise
    return True
