"""How the process of the command line ends: full and closed streams, signals, defects, reports that fail."""

from __future__ import annotations

import errno
import io
import os
import shlex
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import NoReturn

import pytest
from command_line import run
from PIL import Image

from vitdeploy.bundle.bundle import Bundle
from vitdeploy.cli import main

COMMAND = f"'{sys.executable}' -m vitdeploy"
REPORTS = "--html {0}/report.html --markdown {0}/report.md --junit {0}/report.xml"


@pytest.fixture(scope="module")
def compared(single: Bundle, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The arguments of a comparison with stored outputs, which needs no torch."""
    golden = tmp_path_factory.mktemp("golden") / "golden.npz"
    assert run("compare", single.path, "--save-golden", golden).code == 0
    return f"compare '{single.path}' --golden '{golden}'"


def shell(line: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a line of bash; a pipe's exit code is that of the first of its commands that fails."""
    env = {**os.environ, **variables}
    command = ["bash", "-o", "pipefail", "-c", line]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=env, timeout=120)


@pytest.mark.parametrize(
    ("arguments", "into", "code", "error"),
    [
        (arguments, into, code, error)
        for index, (into, code, error) in enumerate([
            (">/dev/full", 3, "Error: cannot write to standard output: No space left on device\n"),
            (">&-", 3, "Error: cannot write to standard output: it is closed\n"),
            (">/dev/full 2>&1", 3, ""),
            (">/dev/full 2>&-", 3, ""),
            ("| true", 0, ""),
            ("| head -c 1", 0, ""),
            ("<&-", 0, ""),
            ("2>&-", 0, ""),
        ])
        for arguments in (("verify '{0}'", "export --help")[index % 2], "inspect '{0}' --json")
    ],
)  # fmt: skip
def test_streams_that_take_nothing(single: Bundle, arguments: str, into: str, code: int, error: str) -> None:
    variables = {"PYTHONUNBUFFERED": "1"} if "verify" in arguments else {}
    found = shell(f"{COMMAND} {arguments.format(single.path)} {into}", **variables)
    assert (found.returncode, found.stderr) == (code, error)


@pytest.mark.parametrize(("tolerance", "code"), [("1", 0), ("1e-12", 1)])
def test_a_reader_that_went_away_does_not_change_the_status(compared: str, tolerance: str, code: int) -> None:
    found = shell(f"{COMMAND} {compared} --tolerance {tolerance} | true")
    assert (found.returncode, found.stderr) == (code, "")


@pytest.mark.parametrize("errors", ["2>/dev/full", "2>&-", "<&- >&- 2>&-"])
def test_an_error_that_cannot_be_told_has_its_exit_code(tmp_path: Path, errors: str) -> None:
    assert shell(f"{COMMAND} inspect '{tmp_path}/absent' {errors}").returncode == 4


def test_files_do_not_take_the_places_of_closed_streams(tmp_path: Path) -> None:
    """A library's line in C would else go into the file that got descriptor 1 or 2."""
    script = (
        "import os, vitdeploy.cli.process as process; process.guard_streams(); "
        "opened = os.open('.', os.O_RDONLY); open('n', 'w').write(str(opened))"
    )
    assert shell(f"cd '{tmp_path}' && '{sys.executable}' -c \"{script}\" <&- >&- 2>&-").returncode == 0
    assert int((tmp_path / "n").read_text()) > 2


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_what_an_encoding_lacks_is_spelled(tmp_path: Path, encoding: str) -> None:
    found = shell(f"{COMMAND} inspect '{tmp_path}/\u732b'", PYTHONIOENCODING=encoding, PYTHONUTF8="1")
    assert found.returncode == 4
    assert ("\u732b" if encoding == "utf-8" else "\\u732b") in found.stderr


def test_the_environment_of_the_user(single: Bundle, tmp_path: Path) -> None:
    """The export in the working directory has them all, beside a folder that is named like a library."""
    image = tmp_path / "a.png"
    Image.new("RGB", (32, 32)).save(image)
    (tmp_path / "triton").mkdir()  # torch looks whether there is a `triton`
    environments = (
        {"PYTHONWARNINGS": "error", "COLUMNS": "0", "TERM": "dumb", "NO_COLOR": "1"},
        {"PYTHONOPTIMIZE": "2", "COLUMNS": "1"},
        {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "COLUMNS": "many", "TERM": ""},
    )
    small = f"{COMMAND} predict '{single.path}' '{image}'", f"{COMMAND} compare --help"
    lines = [(variables, line) for variables in environments for line in small]
    made = f"cd '{tmp_path}' && {COMMAND} export --random-weights vit-tiny-patch16-32 -o made"
    for variables, line in [({key: value for each in environments for key, value in each.items()}, made), *lines]:
        found = shell(line, **variables)
        assert (found.returncode, found.stderr) == (0, ""), line


def _raise(error: BaseException) -> NoReturn:
    raise error


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (KeyError("x"), 70),
        (AssertionError(), 70),
        (RecursionError("maximum recursion depth exceeded"), 70),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), 70),
        (OSError("of a library, without a number"), 70),
        (OSError(errno.EMFILE, os.strerror(errno.EMFILE), "a.png"), 3),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), 3),
        (MemoryError(), 3),
        (BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE)), 3),
        (EOFError(), 70),
        (KeyboardInterrupt(), 130),
        (RuntimeError("two\nlines \x1b[31m"), 70),
    ],
)
@pytest.mark.parametrize("debug", [False, True])
def test_an_error_that_nobody_foresaw_is_a_line_and_no_failed_check(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: BaseException, code: int, debug: bool
) -> None:
    monkeypatch.setenv("VITDEPLOY_DEBUG", "1" if debug else "0")
    monkeypatch.setattr("vitdeploy.bundle.bundle.Bundle.open", lambda *_args, **_options: _raise(error))
    with pytest.raises(SystemExit) as caught:
        main(["verify", "anything"])
    assert caught.value.code == code
    *traceback, line = capsys.readouterr().err.splitlines()
    assert line.startswith("Error: ")
    assert ("defect in vitdeploy" in line) is (code == 70)
    assert ("VITDEPLOY_DEBUG" in line) is (code != 130)
    assert "\x1b" not in line
    assert bool(traceback) is debug
    if debug:
        assert traceback[0].startswith("Traceback")


@pytest.mark.parametrize(
    ("broken", "tolerance", "code", "status"),
    [("html", "1", 3, "passed"), ("markdown", "1e-12", 1, "failed"), ("junit", "1", 3, "passed")],
)
def test_a_report_that_fails_hides_neither_the_others_nor_the_status(
    compared: str, tmp_path: Path, broken: str, tolerance: str, code: int, status: str
) -> None:
    options = REPORTS.format(tmp_path).split()
    options[options.index(f"--{broken}") + 1] = "/dev/full"
    found = run(*shlex.split(compared), "--tolerance", tolerance, "--json", *options)
    assert (found.code, found.json["status"]) == (code, status)
    (line,) = found.err.splitlines()
    assert line.startswith("Error: /dev/full")
    assert line.endswith(f"(status: {status})")
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(("tolerance", "code", "status"), [("1", 3, "passed"), ("1e-12", 1, "failed")])
def test_a_status_that_cannot_be_printed_is_in_the_error_and_in_the_reports(
    compared: str, tmp_path: Path, tolerance: str, code: int, status: str
) -> None:
    options = REPORTS.format(tmp_path)
    found = shell(f"{COMMAND} {compared} --tolerance {tolerance} {options} >/dev/full")
    assert found.returncode == code
    assert found.stderr == f"Error: cannot write to standard output: No space left on device (status: {status})\n"
    assert len(list(tmp_path.iterdir())) == 3


def test_a_defect_in_a_report_is_told_after_the_others_are_written(
    compared: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vitdeploy.assess.report.markdown.write_markdown", lambda *_: _raise(KeyError("x")))
    options = REPORTS.format(tmp_path).split()
    for tolerance, code in (("1", 70), ("1e-12", 1)):
        found = run(*shlex.split(compared), "--tolerance", tolerance, *options)
        assert found.code == code
        assert "defect in vitdeploy" in found.err
        assert "against the reference" in found.out
        assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.xml"]


def test_a_second_signal_does_not_cut_the_clean_up_short(tmp_path: Path) -> None:
    """As CI servers send SIGINT, and SIGTERM soon after."""
    script = """
import os, pathlib, signal, time
from vitdeploy.cli.process import Interrupted, end_on_signals, print_error
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup, where the tests run below it, ignores it
end_on_signals()
try:
    pathlib.Path("begun").touch()
    time.sleep(60)
except Interrupted as exc:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(os.getpid(), number)
    pathlib.Path("begun").unlink()
    raise SystemExit(print_error(exc))
"""
    with subprocess.Popen([sys.executable, "-c", script], cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        while not (tmp_path / "begun").exists():
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGHUP)
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (128 + signal.SIGHUP, "Error: interrupted by SIGHUP\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="signals are not blocked here")
@pytest.mark.parametrize("then", ["raise", "raise ImportError('initialization failed')"])
def test_signals_at_once_are_one_and_no_other_error(then: str) -> None:
    """Two that arrive together, and one that a library's import turns into an error of its own."""
    script = f"""
import signal, sys
from vitdeploy.cli.process import end_on_signals, print_error
end_on_signals()
both = signal.SIGINT, signal.SIGTERM
signal.pthread_sigmask(signal.SIG_BLOCK, both)
for number in both:
    signal.raise_signal(number)
try:
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, both)
    except SystemExit:
        {then}
except BaseException as error:
    sys.exit(print_error(error))
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (128 + signal.SIGINT, "Error: interrupted by SIGINT\n")


def test_a_caller_in_the_same_process_keeps_its_signals() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    with pytest.raises(SystemExit):
        main(["--version"])
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before


def test_libtiff_prints_no_lines(single: Bundle, tmp_path: Path) -> None:
    """Of an image that is refused, of one that is read, and in the processes that `benchmark` starts."""
    file = io.BytesIO()
    Image.new("RGB", (64, 64), (200, 3, 3)).save(file, "TIFF", compression="tiff_lzw")
    data = bytearray(file.getvalue())
    directory = struct.unpack("<I", data[4:8])[0]
    last = directory + 2 + 12 * (struct.unpack("<H", data[directory : directory + 2])[0] - 1)
    data[last : last + 2] = struct.pack("<H", 65000)  # a tag that libtiff does not know
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "a.tif").write_bytes(data)
    data[10:40] = bytes(byte ^ 0x5A for byte in data[10:40])
    (tmp_path / "damaged.tif").write_bytes(data)
    found = shell(f"{COMMAND} predict '{single.path}' '{tmp_path}/damaged.tif'")
    assert (found.returncode, found.stderr.count("\n")) == (4, 1), found.stderr
    options = f"--images '{tmp_path}/odd' --batch-sizes 1 --rounds 1 --runs 1 --backend onnxruntime"
    for line in (f"predict '{single.path}' '{tmp_path}/odd/a.tif'", f"benchmark '{single.path}' {options}"):
        found = shell(f"{COMMAND} {line}")
        assert (found.returncode, found.stderr) == (0, "")
