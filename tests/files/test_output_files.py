"""Writing a result: failures are reported before the work, and streams are supported."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from raising import raises

from vitdeploy.errors import OutputError
from vitdeploy.files.output_files import check_writable, write_output

posix = pytest.mark.skipif(os.name != "posix", reason="there are no such files")


@pytest.mark.parametrize("place", ["/", "/proc/report.html", "/proc/new/report.html", "/dev/fd"])
@pytest.mark.skipif(sys.platform != "linux", reason="these are Linux's")
def test_a_place_that_takes_no_file_is_told_before(place: str) -> None:
    for write in (check_writable, lambda path: write_output(path, b"report")):
        with raises(OutputError, where=place):
            write(Path(place))


def test_looking_whether_a_file_can_be_written_leaves_nothing(tmp_path: Path) -> None:
    check_writable(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="there is no /dev/shm")
def test_a_file_below_dev_is_replaced_whole_or_not_at_all() -> None:
    code = """
import resource, sys
from pathlib import Path
from vitdeploy.errors import OutputError
from vitdeploy.files.output_files import write_output
write_output(Path(sys.argv[1]), b"old")
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    write_output(Path(sys.argv[1]), bytes(2000))
except OutputError:
    print(Path(sys.argv[1]).read_text())
"""
    place = Path(f"/dev/shm/vitdeploy-test-{os.getpid()}")
    try:
        done = subprocess.run([sys.executable, "-c", code, str(place)], capture_output=True, text=True, check=False)
        assert done.stdout == "old\n", done.stderr
        assert [path.name for path in place.parent.glob(f"*{place.name}*")] == [place.name]
    finally:
        place.unlink(missing_ok=True)


@posix
def test_a_pipe_and_a_device_take_the_content(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with ThreadPoolExecutor(1) as pool:
        read = pool.submit((tmp_path / "pipe").read_bytes)
        write_output(tmp_path / "pipe", b"all of it")
        assert read.result(timeout=10) == b"all of it"
    write_output(Path(os.devnull), b"nothing")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    assert stat.S_ISCHR(Path(os.devnull).stat().st_mode)


@posix
def test_a_pipe_that_nobody_reads_is_not_waited_for_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitdeploy.files.output_files._READER_SECONDS", 0.2)
    os.mkfifo(tmp_path / "pipe")
    with raises(OutputError, where=tmp_path / "pipe"):
        write_output(tmp_path / "pipe", b"content")


@pytest.mark.skipif(sys.platform != "linux", reason="these are Linux's")
@pytest.mark.parametrize("name", ["/dev/fd/{}", "/proc/self/fd/{}", "link"])
def test_an_open_file_is_written_where_it_is(tmp_path: Path, name: str) -> None:
    file = tmp_path / "log"
    file.write_text("before ")
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND)
    try:
        place = Path(name.format(descriptor))
        if name == "link":
            place = tmp_path / "link"
            place.symlink_to(f"/dev/fd/{descriptor}")
        write_output(place, b"after")
        os.write(descriptor, b", and more")
    finally:
        os.close(descriptor)
    assert file.read_text() == "before after, and more"


@posix
def test_a_report_for_whoever_went_away_is_dropped() -> None:
    """As whatever else the command line prints: the exit code is that of the status."""
    code = """
import pathlib, sys
from vitdeploy.cli.process import guard_streams
from vitdeploy.files.output_files import write_output
guard_streams()
sys.stdin.read()
write_output(pathlib.Path("/dev/stdout"), bytes(1 << 20))
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        process.stdout.close()
        process.stdout = None
        assert (process.communicate()[1], process.returncode) == ("", 0)


@pytest.mark.skipif(sys.platform != "linux", reason="these are Linux's")
def test_an_open_file_that_takes_nothing_is_told_before(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    descriptor = os.open(tmp_path / "file", os.O_RDONLY)
    try:
        with raises(OutputError, where=f"/dev/fd/{descriptor}"):
            check_writable(Path(f"/dev/fd/{descriptor}"))
    finally:
        os.close(descriptor)
    with raises(OutputError, where=f"/dev/fd/{descriptor}"):
        check_writable(Path(f"/dev/fd/{descriptor}"))
