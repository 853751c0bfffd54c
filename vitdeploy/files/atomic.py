"""Replace a folder or a file atomically, despite crashes and concurrent writers."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import os
import re
import secrets
import shutil
import stat
import sys
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import BinaryIO

from vitdeploy.errors import OutputError, first_line
from vitdeploy.files.locks import locked, release, take, try_lock

_AT_FDCWD = -100  # linux/fcntl.h
_RENAME_EXCHANGE = 2  # linux/fs.h
_MOST_NAME_BYTES = 200


@contextlib.contextmanager
def staged_folder(target: Path) -> Iterator[Path]:
    """Create an empty folder beside `target` for its new content; it is removed when the block ends.

    Pass it to `replace_folder` to keep it. Leftover folders of killed processes are removed.

    Raises:
        OutputError: If the folder, or a file in it, cannot be written.
    """
    staging, lock = None, None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with locked(target.parent):
            _clear_up_after_the_killed(target, is_leftover=Path.is_dir)
            _go_back(target)
            staging = target.with_name(_prefix(target, "partial") + secrets.token_hex(4))
            staging.mkdir()
            lock = try_lock(staging)
        yield staging
    except OSError as exc:
        name = exc.filename2 or exc.filename  # of a copy the second
        file = "" if name in (None, str(target)) else f" ({name!s:.200})"
        message = f"{target} could not be written: {exc.strerror or first_line(exc)}{file}"
        hint = "free space or choose another folder, what existed is untouched"
        raise OutputError(message, where=target, hint=hint) from exc
    finally:
        if staging is not None:
            _remove(staging)
        if lock is not None:
            release(lock)


def replace_folder(staging: Path, target: Path, synced: Collection[Path] = ()) -> None:
    """Replace `target` by `staging` in one atomic step; the old content is removed.

    Args:
        staging: Folder beside `target`.
        target: Folder, or path for one.
        synced: Files that `sync` has already written to disk.

    Raises:
        OSError: If it fails; `target` is unchanged.
    """
    sync(staging, synced)
    if target.exists():
        _exchange(staging, target)
    else:
        staging.rename(target)
    fsync(target.parent)


def sync(folder: Path, synced: Collection[Path] = ()) -> set[Path]:
    """Wait until the files and folders below a folder are on disk, except those already synced; return the files."""
    files: set[Path] = set()
    for parent, _, names in os.walk(folder):
        here = {path for name in names if stat.S_ISREG((path := Path(parent, name)).lstat().st_mode)}
        for path in (*here.difference(synced), Path(parent)):
            fsync(path)
        files |= here
    return files


def write_file(target: Path, content: bytes, *, follow_link: bool = True) -> None:
    """Write a file atomically; an existing file keeps its mode.

    Leftover files of killed writers of the same target are removed.

    Args:
        target: File, or path for one. A pipe or a device is refused; see `vitdeploy.files.output_files.write_output`.
        content: New content.
        follow_link: True to replace a link's target, False to replace the link itself.

    Raises:
        OutputError: If it cannot be written; an existing file is unchanged.
    """
    try:
        place = target.resolve() if follow_link else target
        if place.exists() and not place.is_file():
            hint = "remove it, or choose another file"
            raise OutputError(f"{target} is not a regular file", where=target, hint=hint)
        place.parent.mkdir(parents=True, exist_ok=True)
        with _partial_file(place) as (partial, file):
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            if place.exists():
                partial.chmod(stat.S_IMODE(place.stat().st_mode))
            if os.name == "nt":  # cannot rename open files
                file.close()
            partial.replace(place)
    except (OSError, RuntimeError, ValueError) as exc:  # a loop of links, an invalid name
        message = f"{target} could not be written: {first_line(exc)}"
        raise OutputError(message, where=target, hint="choose another folder") from exc


def move_file(finished: Path, target: Path) -> None:
    """Replace a file atomically by a finished one on the same file system; an existing file's mode stays.

    Raises:
        OSError: If it fails; an existing file is unchanged.
    """
    fsync(finished)
    if target.exists():
        finished.chmod(stat.S_IMODE(target.stat().st_mode))
    finished.replace(target)
    fsync(target.parent)


def check_takes_files(folder: Path) -> None:
    """Create a file in a folder and remove it, or raise OSError: permissions alone do not show if it is possible."""
    with _partial_file(folder / "file"):
        pass


@contextlib.contextmanager
def _partial_file(target: Path) -> Iterator[tuple[Path, BinaryIO]]:
    """A new, locked file beside `target`, removed when the block ends unless it was renamed."""
    with contextlib.suppress(OSError):  # for a folder that may not be listed
        _clear_up_after_the_killed(target, is_leftover=Path.is_file)
    while True:
        partial = target.with_name(_prefix(target, "partial") + secrets.token_hex(4))
        try:  # before it is created: a signal may raise right after
            with partial.open("xb") as file:
                # Before it was locked, another writer may have treated it as a leftover.
                if take(file.fileno()) is False or os.fstat(file.fileno()).st_nlink == 0:
                    continue
                yield partial, file
                return
        finally:
            partial.unlink(missing_ok=True)


def _exchange(a: Path, b: Path) -> None:
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if hasattr(libc, "renameat2"):
            if libc.renameat2(_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), _RENAME_EXCHANGE) == 0:
                return
            code = ctypes.get_errno()
            if code not in (errno.EINVAL, errno.ENOSYS):  # the filesystem or the kernel cannot exchange
                raise OSError(code, os.strerror(code), str(b))
    # Two steps without an atomic exchange; after a kill between them, the next writer goes back.
    old = a.with_name(a.name.replace(".partial-", ".previous-"))
    b.rename(old)
    try:
        a.rename(b)
    except OSError:
        old.rename(b)
        raise
    old.rename(a)


def fsync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on disk."""
    if path.is_dir() and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _clear_up_after_the_killed(target: Path, is_leftover: Callable[[Path], bool]) -> None:
    """Remove leftovers of killed writers beside `target`, but nothing of another kind or user."""
    for path in _siblings(target, "partial"):
        if path.is_symlink() or not is_leftover(path):
            continue
        with contextlib.suppress(OSError):
            lock = try_lock(path)
            if lock is not None:
                try:
                    _remove(path) if path.is_dir() else path.unlink()
                finally:
                    release(lock)


def _remove(folder: Path) -> None:
    """Remove a folder, also one in which nothing may be changed."""
    shutil.rmtree(folder, ignore_errors=True)
    if folder.is_dir():
        with contextlib.suppress(OSError):
            folder.chmod(stat.S_IRWXU)
            for parent, names, _ in os.walk(folder):
                for path in (Path(parent, name) for name in names):
                    if not path.is_symlink():
                        path.chmod(stat.S_IRWXU)
        shutil.rmtree(folder, ignore_errors=True)


def _go_back(target: Path) -> None:
    """Undo the first of two renames after a writer was killed between them (`_exchange`), or raise OutputError."""
    for folder in _siblings(target, "previous"):
        if folder.is_symlink() or not folder.is_dir():
            continue
        if target.exists():
            _remove(folder)
            continue
        try:
            folder.rename(target)
        except OSError as exc:
            message = (
                f"{folder} has the content of {target}, from a writer that was killed, and cannot be moved back: "
                f"{exc.strerror}"
            )
            hint = f"rename it to {target.name}, or remove it"
            raise OutputError(message, what=folder.name, where=target, hint=hint) from exc


def _siblings(target: Path, kind: str) -> list[Path]:
    name = re.compile(re.escape(_prefix(target, kind)) + "[0-9a-f]{8}")
    return [path for path in target.parent.iterdir() if name.fullmatch(path.name)]


def _prefix(target: Path, kind: str) -> str:
    """Prefix of temporary names beside a file or folder; file systems allow 255 bytes."""
    name = os.fsencode(target.name)
    return f".{target.name if len(name) <= _MOST_NAME_BYTES else hashlib.sha256(name).hexdigest()}.{kind}-"
