"""Progress of long work: a bar on a terminal, a line now and then in a log, nothing for short work."""

from __future__ import annotations

import re
import sys
import time

import click
import pytest
from raising import raises

from vitdeploy.cli.progress import EVERY_VARIABLE, CommandProgress
from vitdeploy.cli.verbosity import options
from vitdeploy.errors import UsageError


def work(progress: CommandProgress) -> None:
    progress.step("evaluating 10 images")
    progress.advance(3, 10)


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def test_a_bar_has_the_name_of_the_pass_and_the_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    with CommandProgress("images") as progress:
        work(progress)
    out, err = capsys.readouterr()
    assert out == ""
    lines = re.split(r"[\r\n]+", plain(err))
    assert lines[0] == "evaluating 10 images …"
    assert any(re.fullmatch(r"evaluating 10 images ━.* 3/10 images .* left", line) for line in lines)
    assert max(map(len, lines)) <= 80


def test_a_log_has_no_line_of_short_work(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(EVERY_VARIABLE)
    with CommandProgress("images") as progress:
        work(progress)
    assert capsys.readouterr() == ("", "")


def test_a_log_says_every_while_how_far_long_work_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(EVERY_VARIABLE, "0.01")
    with CommandProgress("images") as progress:
        work(progress)
        text = ""
        deadline = time.monotonic() + 30
        while text.count("\n") < 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)
            text += capsys.readouterr().err
    line = r"evaluating 10 images: 3 of 10 images, \d+ s so far, about \d+ s left"
    assert all(re.fullmatch(line, each) for each in text.splitlines())
    capsys.readouterr()
    time.sleep(0.05)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("flag", "shown"), [("--quiet", ""), ("--verbose", "s] evaluating 10 images\n")])
def test_quiet_and_verbose(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, flag: str, shown: str
) -> None:
    monkeypatch.setenv(EVERY_VARIABLE, "0.01" if flag == "--quiet" else "0")

    def callback() -> None:
        with CommandProgress("images") as progress:
            work(progress)
            time.sleep(0.05)

    click.Command("work", params=[*options()], callback=callback).main([flag], standalone_mode=False)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.endswith(shown) if shown else err == ""


@pytest.mark.parametrize("seconds", ["often", "-1", "nan", "inf"])
def test_seconds_that_are_none(monkeypatch: pytest.MonkeyPatch, seconds: str) -> None:
    monkeypatch.setenv(EVERY_VARIABLE, seconds)
    with raises(UsageError, what=EVERY_VARIABLE, found=seconds):
        CommandProgress("images")
