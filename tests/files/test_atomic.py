"""Replacing a folder: whole or not at all, also when the disk is full or the process is killed."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from raising import raises

from vitdeploy.errors import OutputError
from vitdeploy.files import atomic, locks
from vitdeploy.files.atomic import replace_folder, staged_folder, write_file


def content(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): path.read_text() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def put(target: Path, **files: str) -> None:
    with staged_folder(target) as staging:
        for name, text in files.items():
            (staging / name).write_text(text)
        replace_folder(staging, target)


def test_makes_a_folder_and_its_parents(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b"
    put(target, x="1")
    assert content(tmp_path) == {"a/b/x": "1"}


def test_takes_the_place_of_a_folder(tmp_path: Path) -> None:
    put(tmp_path / "out", x="1", y="2")
    put(tmp_path / "out", x="3")
    assert content(tmp_path) == {"out/x": "3"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_old_content_is_removed_whatever_its_permissions_are(tmp_path: Path) -> None:
    inner = tmp_path / "out" / "inner"
    inner.mkdir(parents=True)
    (inner / "file").touch()
    for folder in (inner, inner.parent):
        folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
    if os.access(inner, os.W_OK):
        pytest.skip("nothing is forbidden to this user")
    put(tmp_path / "out", x="1")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_permissions_are_those_of_an_ordinary_folder(tmp_path: Path) -> None:
    put(tmp_path / "out", x="1")
    (tmp_path / "plain").mkdir()
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_failure_leaves_nothing_and_the_old_content(tmp_path: Path) -> None:
    put(tmp_path / "out", x="1")

    def fail() -> None:
        with staged_folder(tmp_path / "out") as staging:
            (staging / "x").write_text("2")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert content(tmp_path) == {"out/x": "1"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EBUSY])
def test_an_exchange_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """A file system that cannot exchange folders has two renames instead; any other reason is an error."""

    class Libc:
        @staticmethod
        def renameat2(*_: Any) -> int:
            ctypes.set_errno(number)
            return -1

    put(tmp_path / "out", x="1")
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: Libc)
    with raises(OutputError, where=tmp_path / "out") if number == errno.EBUSY else contextlib.nullcontext():
        put(tmp_path / "out", x="2")
    assert content(tmp_path) == {"out/x": "1" if number == errno.EBUSY else "2"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with raises(OutputError, where=tmp_path / "file" / "out"), staged_folder(tmp_path / "file" / "out"):
        pytest.fail("the folder cannot be")


def run_python(code: str, *args: str, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", textwrap.dedent(code), *args]
    return subprocess.run(command, capture_output=True, text=True, check=False, **kwargs)


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path: Path) -> None:
    put(tmp_path / "out", x="1")
    killed = run_python(
        """
        import os, signal, sys
        from pathlib import Path
        from vitdeploy.files.atomic import staged_folder
        with staged_folder(Path(sys.argv[1])) as staging:
            (staging / "x").write_text("2")
            os.kill(os.getpid(), signal.SIGKILL)
        """,
        str(tmp_path / "out"),
    )
    assert killed.returncode == -signal.SIGKILL
    assert content(tmp_path / "out") == {"x": "1"}
    assert len(list(tmp_path.iterdir())) == 2
    put(tmp_path / "out", x="3")
    assert content(tmp_path) == {"out/x": "3"}


def test_folders_of_other_names_are_not_touched(tmp_path: Path) -> None:
    for name in (".a1.partial-00000000", ".a[1].partial-notes", ".a[1].partial-0000000x", ".out.partial-00000000"):
        (tmp_path / name).mkdir()
    put(tmp_path / "a[1]", x="1")
    assert len(list(tmp_path.iterdir())) == 5


@pytest.mark.parametrize("put_back", [True, False])
def test_who_was_killed_between_two_renames(tmp_path: Path, put_back: bool) -> None:
    put(tmp_path / "out", x="1")
    (tmp_path / "out").rename(tmp_path / ".out.previous-00000000")
    if not put_back:
        (tmp_path / "out").mkdir()
    with staged_folder(tmp_path / "out"):
        assert content(tmp_path / "out") == ({"x": "1"} if put_back else {})
        assert not (tmp_path / ".out.previous-00000000").exists()


def test_the_folder_of_a_process_that_lives_is_not_removed(tmp_path: Path) -> None:
    with staged_folder(tmp_path / "out") as staging:
        (staging / "x").write_text("mine")
        other = run_python(
            """
            import sys
            from pathlib import Path
            from vitdeploy.files.atomic import staged_folder
            with staged_folder(Path(sys.argv[1])):
                pass
            """,
            str(tmp_path / "out"),
        )
        assert other.returncode == 0, other.stderr
        assert content(staging) == {"x": "mine"}


def test_a_file_beyond_the_limit_of_the_process(tmp_path: Path) -> None:
    put(tmp_path / "out", x="1")
    limited = run_python(
        """
        import resource, signal, sys
        from pathlib import Path
        from vitdeploy.files.atomic import staged_folder
        from vitdeploy.errors import OutputError
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            with staged_folder(Path(sys.argv[1])) as staging:
                (staging / "x").write_bytes(bytes(2000))
        except OutputError as exc:
            print(exc)
        """,
        str(tmp_path / "out"),
    )
    assert "out could not be written: File too large; free space" in limited.stdout, limited.stderr
    assert content(tmp_path) == {"out/x": "1"}


def test_writers_wait_for_each_other(tmp_path: Path) -> None:
    with locks.locked(tmp_path):
        other = run_python(
            """
            import fcntl, os, sys
            descriptor = os.open(sys.argv[1], os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print("held")
            """,
            str(tmp_path),
        )
    assert other.stdout == "held\n", other.stderr


@pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="mounting a small filesystem needs root")
def test_a_full_disk(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"tmpfs cannot be mounted here: {mounted.stderr.decode().strip()}")
    try:
        put(disk / "out", x="1")
        with raises(OutputError, where=disk / "out", hint=re.compile("free space")):
            put(disk / "out", x="2" * 100_000)
        assert content(disk) == {"out/x": "1"}
        assert shutil.disk_usage(disk).free > 0
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_file_is_written_through_links_and_keeps_its_mode(tmp_path: Path) -> None:
    real = tmp_path / "real.txt"
    real.write_text("old")
    real.chmod(0o640)
    link = tmp_path / "link.txt"
    link.symlink_to("real.txt")
    write_file(link, b"new")
    assert link.is_symlink()
    assert (real.read_text(), real.stat().st_mode & 0o777) == ("new", 0o640)
    loop = tmp_path / "loop"
    loop.symlink_to("loop")
    with raises(OutputError, where=loop):
        write_file(loop, b"new")
    assert loop.is_symlink()


def test_what_is_no_regular_file_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for place in (tmp_path / "pipe", Path(os.devnull), tmp_path):
        with pytest.raises(OutputError):
            write_file(place, b"content")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]


def test_the_file_of_a_killed_writer_is_removed_by_the_next(tmp_path: Path) -> None:
    killed = run_python(
        """
        import os, signal, sys
        from pathlib import Path
        from vitdeploy.files import atomic
        atomic.os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)
        atomic.write_file(Path(sys.argv[1]), b"2")
        """,
        str(tmp_path / "out"),
    )
    assert killed.returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 1
    with atomic._partial_file(tmp_path / "out") as (living, _):  # whose writer is not dead
        write_file(tmp_path / "out", b"3")
        assert {path.name for path in tmp_path.iterdir()} == {"out", living.name}
    assert content(tmp_path) == {"out": "3"}


def test_a_signal_right_after_a_file_or_a_folder_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(atomic, "take", interrupt)
    monkeypatch.setattr(atomic, "try_lock", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_file(tmp_path / "file", b"new")
    with pytest.raises(KeyboardInterrupt), staged_folder(tmp_path / "folder"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_file_on_a_full_disk_is_untouched(tmp_path: Path) -> None:
    limited = run_python(
        """
        import resource, sys
        from pathlib import Path
        from vitdeploy.files.atomic import write_file
        from vitdeploy.errors import OutputError
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        write_file(Path(sys.argv[1]), b"old")
        try:
            write_file(Path(sys.argv[1]), bytes(2000))
        except OutputError:
            print("refused")
        """,
        str(tmp_path / "out"),
    )
    assert limited.stdout == "refused\n", limited.stderr
    assert content(tmp_path) == {"out": "old"}


def test_leftovers_of_another_kind_or_user_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f".out.{kind}-0000000{number}" for kind in ("partial", "previous") for number in range(3)]
    for fifo, file, link in (names[:3], names[3:]):
        os.mkfifo(tmp_path / fifo)
        (tmp_path / file).write_text("kept")
        (tmp_path / link).symlink_to(tmp_path)
    other = tmp_path / ".out.partial-00000009"
    other.mkdir()
    opened = os.open

    def refuse(path: Any, *args: Any, **options: Any) -> int:  # as for another user; a superuser may open everything
        if Path(path) == other:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return opened(path, *args, **options)

    monkeypatch.setattr(os, "open", refuse)
    put(tmp_path / "out", x="1")
    assert {path.name for path in tmp_path.iterdir()} == {*names, other.name, "out"}
    (tmp_path / names[1]).unlink()
    write_file(tmp_path / "out" / "x", b"2")
    assert content(tmp_path / "out") == {"x": "2"}


def test_what_cannot_be_moved_back_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    previous = tmp_path / ".out.previous-00000000"
    previous.mkdir()

    def refuse(*_: Any) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(Path, "rename", refuse)
    with raises(OutputError, what=previous.name, where=tmp_path / "out"):
        put(tmp_path / "out", x="1")
    assert [path.name for path in tmp_path.iterdir()] == [previous.name]


@pytest.mark.parametrize("write", [put, lambda target: locks.locked(target.parent).__enter__()])
def test_a_lock_that_is_not_released_is_an_error_that_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path], None]
) -> None:
    monkeypatch.setattr(locks, "LOCK_SECONDS", 0.2)
    holder = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(holder, fcntl.LOCK_EX)
    try:
        with raises(OutputError, where=tmp_path):
            write(tmp_path / "out")
        write_file(tmp_path / "file", b"which needs no lock of its folder")
    finally:
        os.close(holder)
    assert content(tmp_path) == {"file": "which needs no lock of its folder"}
    put(tmp_path / "out", x="1")


def test_pipes_in_a_folder_are_not_waited_for(tmp_path: Path) -> None:
    with staged_folder(tmp_path / "out") as staging:
        os.mkfifo(staging / "pipe")
        replace_folder(staging, tmp_path / "out")
    assert stat.S_ISFIFO((tmp_path / "out" / "pipe").stat().st_mode)


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    leftover = tmp_path / ".out.partial-00000000"
    leftover.mkdir()
    put(tmp_path / "out", x="1")
    write_file(tmp_path / "file", b"1")
    assert content(tmp_path) == {"out/x": "1", "file": "1"}
    assert leftover.is_dir()  # nobody knows whether its writer lives


def test_names_as_long_as_a_file_system_takes(tmp_path: Path) -> None:
    write_file(tmp_path / ("a" * 255), b"1")
    put(tmp_path / ("ä" * 127), x="1")
    assert len(list(tmp_path.iterdir())) == 2
