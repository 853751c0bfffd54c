"""Keep writers apart with the system's advisory locks, which end with the process that holds them."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from typing import TYPE_CHECKING

from vitdeploy.errors import OutputError

try:
    import fcntl
except ImportError:  # not POSIX: writers are then not kept apart, and what a killed one leaves is not removed
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# vitdeploy holds the lock of a folder while it renames, and where there are no hard links while it copies a bundle.
LOCK_SECONDS = 60.0
_POLL_SECONDS = 0.05
# File systems without locks; EBADF is NFS's for what is not open for writing, as a folder cannot be: flock(2).
_NO_LOCKS = (errno.EBADF, errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder against other writers; wait at most `LOCK_SECONDS` for another one, since `flock` waits for ever.

    Raises:
        OutputError: another process holds it all that time, or it cannot be opened.
    """
    if fcntl is None:
        yield
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as exc:
        raise OutputError(f"{folder} cannot be opened to lock it: {exc.strerror}; choose another folder") from exc
    try:
        last = time.monotonic() + LOCK_SECONDS
        while take(descriptor) is False:
            if time.monotonic() >= last:
                raise OutputError(
                    f"another process has locked {folder} for more than {LOCK_SECONDS:g} seconds; "
                    f"end it (lslocks lists the locks), or choose another output folder"
                )
            time.sleep(_POLL_SECONDS)
        yield
    finally:
        os.close(descriptor)


def try_lock(path: Path) -> int | None:
    """Lock a folder or a regular file for the life of the returned descriptor, without waiting; links are not followed.

    None where another process holds it, or no lock can be had.

    Raises:
        OSError: it cannot be opened, as another user's.
    """
    if fcntl is None:
        return None
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)  # which does not wait for a pipe's writer
    try:
        if take(descriptor):
            return descriptor
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


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
