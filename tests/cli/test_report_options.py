"""The files that assessments write: refused before the work, where they must be, and written beside the output."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from command_line import run
from written_results import COMPARISON, gate_result

from vitdeploy.assess.compare import compare as compare_module
from vitdeploy.assess.gate import gate as gate_module


@pytest.mark.parametrize(
    ("module", "command", "result"),
    [(compare_module, ["compare"], COMPARISON), (gate_module, ["gate", "--data", "d"], gate_result())],
)
def test_every_file_is_written_of_a_result_that_failed(
    module: Any, command: list[str], result: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, command[0], lambda *_args, **_options: result)
    files = {name: tmp_path / "new" / f"a.{name}" for name in ("html", "markdown", "junit")}
    code, out, err = run(*command, "b", *(each for name, path in files.items() for each in (f"--{name}", path)))
    assert (code, err) == (1, "")
    assert "failed" in out
    for path in files.values():
        assert b"failed" in path.read_bytes()


@pytest.mark.parametrize(
    "command",
    [
        ["compare"],
        ["debug", "layers"],
        ["debug", "sensitivity"],
        ["evaluate", "--data", "d"],
        ["gate", "--data", "d"],
        ["benchmark"],
    ],
)
def test_what_cannot_be_written_is_told_before_the_work(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = (*command, tmp_path / "absent")  # exits with 4, as soon as a bundle is looked for
    assert run(*held, "--html", tmp_path / "a.html")[0] == 4
    for path, reason in (
        (tmp_path, "is a folder"), (".", "is a folder"), ("x" * 300, "name too long")
    ):  # fmt: skip
        code, _, err = run(*held, "--html", path)
        assert (code, err.count("\n"), "cannot be written" in err, reason in err) == (3, 1, True, True)
    assert run(*held, "--html", "")[0] == 2
    for module in ("page", "plots"):
        monkeypatch.delitem(sys.modules, f"vitdeploy.assess.report.{module}")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, _, err = run(*held, "--html", tmp_path / "a.html")
    assert (code, "pip install 'vitdeploy[report]'" in err) == (3, True)
    assert run(*held, "--markdown", tmp_path / "a.md")[0] == 4


def test_only_checks_go_into_junit_and_nothing_of_a_bisection(tmp_path: Path) -> None:
    without_junit = [["evaluate", "--data", "d"], ["benchmark"], ["debug", "sensitivity"], ["debug", "bisect"]]
    for command, report in (*((command, "--junit") for command in without_junit), (["debug", "bisect"], "--html")):
        code, _, err = run(*command, tmp_path, report, tmp_path / "a.file")
        assert (code, report in err) == (2, True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("command", "option"),
    [("compare", "--golden"), ("gate", "--rules"), ("gate", "--baseline"), ("gate", "--data"), ("evaluate", "--data")],
)
def test_a_file_that_may_not_be_read_is_no_matter_of_usage(
    command: str, option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"")
    data = () if command == "compare" else ("--data", "d")
    monkeypatch.setattr("os.access", lambda *_: False)  # as click asks; a superuser may read everything
    code, _, err = run(command, tmp_path / "absent", *data, option, tmp_path / "file")
    assert (code, err.count("\n")) == (4, 1)


@pytest.mark.parametrize(
    ("report", "problem"),
    [
        ("bundle/manifest.json", "the bundle bundle"),
        ("bundle/page.md", "the bundle bundle"),
        ("data/0/1.png", "--data data"),
        ("data/0/1.AVIF", "--data data"),
        ("data/labels.tsv", "--data data"),
        ("baseline.json", "--baseline baseline.json"),
        ("./rules.toml", "--rules rules.toml"),
        ("link", "--baseline baseline.json"),
        ("page.xml", "--junit"),
    ],
)
def test_a_report_overwrites_nothing_of_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, report: str, problem: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "0").mkdir(parents=True)
    (tmp_path / "baseline.json").write_text("kept")
    (tmp_path / "link").symlink_to("baseline.json")
    held = ("--data", "data", "--baseline", "baseline.json", "--rules", "rules.toml", "--junit", "page.xml")
    code, _, err = run("gate", "bundle", *held, "--markdown", report)
    assert (code, problem in err, err.count("\n")) == (2, True, 1), err
    assert (tmp_path / "baseline.json").read_text() == "kept"
    assert run("gate", "bundle", *held, "--markdown", "data/summary.md")[0] == 4  # there is no bundle


@pytest.mark.parametrize("place", ["file/a.md", "", ".", "a" * 300])
def test_a_place_that_is_none_is_told_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("in the way")
    code, out, err = run("compare", "absent", "--markdown", place)
    assert code in (2, 3)
    assert "absent" not in err  # the bundle was not looked for
    assert out == ""
