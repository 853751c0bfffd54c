"""Replace a folder or a file whole or not at all, whatever happens meanwhile."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import secrets
import shutil
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from vitdeploy.errors import OutputError, first_line

try:
    import fcntl
except ImportError:  # not POSIX: writers are then not kept apart, and what a killed one leaves is not removed
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from collections.abc import Iterator

_AT_FDCWD = -100  # linux/fcntl.h
_RENAME_EXCHANGE = 2  # linux/fs.h


@contextlib.contextmanager
def staged_folder(target: Path) -> Iterator[Path]:
    """An empty folder beside `target`, for what is to become its content; it is gone when the block ends.

    Hand it to `replace_folder` to keep it. Folders that killed processes left are removed.

    Raises:
        OutputError: the folder, or a file in it, cannot be written.
    """
    staging, lock = None, None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(target.parent):
            _clear_up_after_the_killed(target)
            staging = target.with_name(f".{target.name}.partial-{secrets.token_hex(4)}")
            staging.mkdir()
            lock = _try_lock(staging)
        yield staging
    except OSError as exc:
        raise OutputError(
            f"{target} could not be written: {exc.strerror or exc}; free space or choose another folder, "
            f"what existed is untouched"
        ) from exc
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)
        if lock is not None:
            os.close(lock)


@contextlib.contextmanager
def exclusive(target: Path) -> Iterator[None]:
    """Hold the place of `target` against other writers, from reading its present content to replacing it."""
    with _locked(target.parent):
        yield


def replace_folder(staging: Path, target: Path) -> None:
    """Put `staging` in the place of `target`, in one step that a crash cannot split; the old content goes.

    Raises:
        OSError: it cannot be done; `target` is as it was.
    """
    for folder, _, names in os.walk(staging):
        for path in (*(Path(folder, name) for name in names), Path(folder)):
            if not path.is_symlink():
                fsync(path)
    if target.exists():
        _exchange(staging, target)
    else:
        staging.rename(target)
    fsync(target.parent)


def write_file(target: Path, content: bytes) -> None:
    """Write a file; one that exists is replaced whole or not at all, and keeps its mode. Links are followed.

    A device or a pipe takes the content as it is.

    Raises:
        OutputError: it cannot be written; the one before is untouched.
    """
    try:
        if _is_stream(target):
            target.write_bytes(content)
            return
        target = target.resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.partial-{secrets.token_hex(4)}")
        try:
            with partial.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            if target.exists():
                partial.chmod(stat.S_IMODE(target.stat().st_mode))
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)
    except (OSError, RuntimeError, ValueError) as exc:  # a loop of links, a name that is none
        raise OutputError(f"{target} could not be written: {first_line(exc)}; choose another folder") from exc


def check_writable(target: Path) -> None:
    """Raise OutputError unless a file can be written there, as far as can be told before."""
    try:
        if _is_stream(target):
            return
        folder = next(parent for parent in target.resolve().parents if parent.exists())
        good = target.name and not target.is_dir() and folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)
    except (OSError, RuntimeError, ValueError) as exc:
        raise OutputError(f"{target} must be a file that can be written: {first_line(exc)}; choose another") from exc
    if not good:
        raise OutputError(f"{target} must be a file that can be written, {folder} takes none; choose another")


def _is_stream(target: Path) -> bool:
    """Whether it is a device or a pipe, or what /dev/stdout leads to, which may be a file."""
    return target.absolute().parts[1:2] in (("dev",), ("proc",)) or (
        target.exists() and not target.is_file() and not target.is_dir()
    )


def _exchange(a: Path, b: Path) -> None:
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if hasattr(libc, "renameat2"):
            if libc.renameat2(_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), _RENAME_EXCHANGE) == 0:
                return
            code = ctypes.get_errno()
            if code not in (errno.EINVAL, errno.ENOSYS):  # the filesystem or the kernel cannot exchange
                raise OSError(code, os.strerror(code), str(b))
    # Two steps where one is not to be had; who is killed between them leaves it to the next writer to go back.
    old = a.with_name(a.name.replace(".partial-", ".previous-"))
    b.rename(old)
    try:
        a.rename(b)
    except OSError:
        old.rename(b)
        raise
    old.rename(a)


def fsync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    if path.is_dir() and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _try_lock(folder: Path) -> int | None:
    """Lock `folder` for the life of the returned descriptor; None where another process holds it."""
    if fcntl is None:
        return None
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def _clear_up_after_the_killed(target: Path) -> None:
    for folder in _siblings(target, "partial"):
        lock = _try_lock(folder)
        if lock is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)
    for folder in _siblings(target, "previous"):  # killed between two renames
        if target.exists():
            shutil.rmtree(folder, ignore_errors=True)
        else:
            folder.rename(target)


def _siblings(target: Path, kind: str) -> list[Path]:
    name = re.compile(re.escape(f".{target.name}.{kind}-") + "[0-9a-f]{8}")
    return [path for path in target.parent.iterdir() if name.fullmatch(path.name)]
