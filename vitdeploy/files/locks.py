"""Keep writers apart with the system's advisory locks, which end with the process that holds them."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from vitdeploy.errors import OutputError
from vitdeploy.system.forks import first_in_child
from vitdeploy.system.polling import poll

try:
    import fcntl
except ImportError:  # not POSIX: writers are then not kept apart, and what a killed one leaves is not removed
    fcntl = None  # type: ignore[assignment]


# vitdeploy holds the lock of a folder while it renames, and where there are no hard links while it copies a bundle.
LOCK_SECONDS = 60.0
# File systems without locks; EBADF is NFS's for what is not open for writing, as a folder cannot be: flock(2).
_held: set[int] = set()  # descriptors, of which a forked child has copies that hold the locks as well
_NO_LOCKS = (errno.EBADF, errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@first_in_child
def _let_go() -> None:
    """Leave the locks that threads of the parent hold to the parent: they would last until the child ends."""
    for descriptor in _held:
        with contextlib.suppress(OSError):  # which another thread of the parent was about to close
            null = os.open(os.devnull, os.O_RDONLY)
            os.dup2(null, descriptor)  # in place of a close: whoever has the number closes it
            os.close(null)
    _held.clear()


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder against other writers; wait at most `LOCK_SECONDS` for another one, since `flock` waits for ever.

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
    """Lock a folder or a regular file until `release` of the returned descriptor, without waiting; links are let be.

    None where another process holds it, or no lock can be had.

    Raises:
        OSError: If it cannot be opened, as another user's.
    """
    if fcntl is None:
        return None
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)  # which does not wait for a pipe's writer
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
    """Give up the lock that `try_lock` returned, also where a child has a copy of the descriptor."""
    if fcntl is not None:
        with contextlib.suppress(OSError):  # of a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_UN)
    _held.discard(descriptor)
    os.close(descriptor)


def take(descriptor: int) -> bool | None:
    """Lock an open file or folder, without waiting: False where another process holds it, None where no lock can be."""
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
