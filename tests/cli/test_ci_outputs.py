"""Outputs for a CI server: Markdown, JUnit and annotations, even if a command ends with an error."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from command_line import run
from faults import copy_of
from schemas import validated

import vitdeploy
from vitdeploy.assess.benchmark.turns import _Timing
from vitdeploy.assess.report.markdown import markdown
from vitdeploy.assess.report.stopped import Stopped
from vitdeploy.assets import default_checkpoint, held_out_images
from vitdeploy.bundle.bundle import Bundle
from vitdeploy.cli.annotations import annotate
from vitdeploy.cli.output import print_table
from vitdeploy.errors import MissingDependencyError

QUICK = ("--batch-sizes", "1", "--rounds", "1", "--runs", "1")


@pytest.fixture
def on_github(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize(
    ("command", "code", "kind"),
    [
        (("gate", "--data", "{images}"), 4, "BundleError"),
        (("gate", "--data", "{images}", "--max-drop", "0.1%"), 2, "UsageError"),
        (("compare",), 4, "BundleError"),
        (("debug", "layers"), 4, "BundleError"),
    ],
)
def test_files_are_written_where_an_artifact_cannot_be_opened(
    digits: Bundle, tmp_path: Path, command: tuple[str, ...], code: int, kind: str
) -> None:
    bundle = copy_of(digits, tmp_path / "bundle")
    flip(bundle.path / "onnx" / "model.onnx")
    junit, summary = tmp_path / "out.xml", tmp_path / "out.md"
    words = [word.format(images=held_out_images()) for word in command]
    result = run(*words, bundle.path, "--junit", junit, "--markdown", summary)
    assert (result.code, result.out, result.err.count("\n")) == (code, "", 1)
    message = result.err.removeprefix("Error: ").strip()
    root = ET.fromstring(junit.read_bytes())
    (case,) = root.iter("testcase")
    assert (root.get("errors"), root.get("failures"), case.get("name")) == ("1", "0", kind)
    assert float(str(root.get("time"))) > 0
    (error,) = case
    assert (error.tag, error.get("type"), error.get("message")) == ("error", "error", message)
    assert summary.read_text(encoding="utf-8").startswith(f"### ❌ error: {bundle.path}".replace("_", "\\_"))


def test_a_file_that_cannot_take_the_error_is_told_too(digits: Bundle, tmp_path: Path) -> None:
    """The bundle is no bundle when it is written: the error stays the first one."""
    result = run("gate", tmp_path / "absent", "--data", tmp_path, "--junit", tmp_path / "out.xml")
    assert result.code == 4
    assert ET.fromstring((tmp_path / "out.xml").read_bytes()).get("errors") == "1"
    result = run("gate", digits.path, "--data", tmp_path, "--junit", digits.path / "out.xml")
    assert (result.code, "out.xml" in result.err) == (2, True)
    assert not (digits.path / "out.xml").exists()


def test_the_times_of_a_gate(digits: Bundle, tmp_path: Path) -> None:
    junit, summary = tmp_path / "out.xml", tmp_path / "out.md"
    assert run("gate", digits.path, "--data", held_out_images(), "--junit", junit, "--markdown", summary).code == 0
    root = ET.fromstring(junit.read_bytes())
    times = [float(str(case.get("time"))) for case in root.iter("testcase")]
    assert len(times) == 3
    assert 0 < sum(times) <= float(str(root.get("time")))
    assert "\nTime: " in summary.read_text(encoding="utf-8")


def test_a_new_artifact_is_told_apart_from_a_failure(digits: Bundle, tmp_path: Path) -> None:
    bundle = copy_of(digits, tmp_path / "bundle")
    baseline, junit, summary, page = (tmp_path / name for name in ("b.json", "out.xml", "out.md", "out.html"))
    held = ("gate", bundle.path, "--data", held_out_images(), "--baseline", baseline)
    assert run(*held, "--update").code == 0
    vitdeploy.export(default_checkpoint(), output=bundle.path, precision="fp16")
    result = run(*held, "--junit", junit, "--markdown", summary, "--html", page)
    assert result.code == 3
    assert "\nmax_drop of onnxruntime fp16: new: not in the baseline; run with --update to accept it\n" in result.out
    assert "| 🆕 new | onnxruntime fp16 | max\\_drop | not in the baseline;" in summary.read_text(encoding="utf-8")
    root = ET.fromstring(junit.read_bytes())
    assert (root.get("failures"), root.get("errors")) == ("0", "1")
    assert [error.get("type") for error in root.iter("error")] == ["new"]
    assert "not in the baseline; run with --update" in page.read_text(encoding="utf-8")
    found = validated("gate", run(*held, "--json").out)
    assert [check["rule"] for check in found["checks"] if check["status"] == "new"] == ["max_drop"]
    assert found["status"] == "skipped"
    assert run(*held, "--update").code == 0
    assert run(*held).code == 0


def test_a_missing_torch_counts_only_where_torch_was_asked_for(digits: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that times is another one, so what it would answer is put in its place."""
    opened = _Timing.open

    def open_without_torch(self: _Timing) -> None:
        if self.job.setting.selected.backend == "torch":
            real, self._ask = self._ask, _missing
            opened(self)
            self._ask = real
        else:
            opened(self)

    def _missing(*_: Any) -> Any:
        raise MissingDependencyError("the torch backend", "torch")

    monkeypatch.setattr(_Timing, "open", open_without_torch)
    result = run("benchmark", digits.path, *QUICK)
    assert (result.code, result.err) == (0, "")
    assert "torch fp32 was not measured: the torch backend needs a package" in result.out
    found = validated("benchmark", run("benchmark", digits.path, *QUICK, "--json").out)
    assert (found["status"], [each["status"] for each in found["skipped"]]) == ("passed", ["left out"])
    assert run("benchmark", digits.path, *QUICK, "--backend", "torch", "--backend", "onnxruntime").code == 3


@pytest.mark.usefixtures("on_github")
def test_errors_and_checks_that_did_not_pass_are_annotations(digits: Bundle, tmp_path: Path) -> None:
    absent = run("verify", tmp_path / "100%, not:here")
    lines = absent.err.splitlines()
    assert (absent.code, len(lines)) == (4, 2)
    assert lines[0].startswith("Error: ")
    assert lines[1] == "::error title=vitdeploy::" + lines[0].removeprefix("Error: ").replace("%", "%25")
    typed = run("compare", digits.path, "--batchsize", "1")
    assert typed.err.splitlines()[-1].startswith("::error title=vitdeploy::No such option")
    failed = run("compare", digits.path, "--tolerance", "1e-12")
    assert failed.code == 1
    assert failed.err.startswith("::error title=onnx-fp32 on onnxruntime%3A logits failed::max relative difference ")
    assert run("compare", digits.path).err == ""


@pytest.mark.usefixtures("on_github")
def test_annotations_are_escaped_as_github_reads_them(capsys: pytest.CaptureFixture[str]) -> None:
    annotate("50 %\r\n::error::x", "a: b, c")
    assert capsys.readouterr().err == "::error title=a%3A b%2C c::50 %25%0D%0A::error::x\n"


@pytest.mark.usefixtures("on_github")
@pytest.mark.parametrize("words", [("no\n::add-mask::\x1b[2J",), ("debug", "no\n::add-mask::"), ("debug",)])
def test_names_that_were_typed_give_no_commands_to_github(words: tuple[str, ...]) -> None:
    result = run(*words)
    commands = [line for line in result.err.splitlines() if line.startswith("::")]
    assert (result.code, len(commands), "\x1b" in result.err) == (2, 1, False)
    assert commands[0].startswith("::error title=vitdeploy::")


def test_a_cell_stays_in_its_row(capsys: pytest.CaptureFixture[str]) -> None:
    print_table("", ("image",), [("a\n::stop-commands::x.png",)])
    assert "a\\n::stop-commands::x.png" in capsys.readouterr().out.splitlines()


def test_elsewhere_nothing_is_annotated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "false")
    assert "::error" not in run("verify", tmp_path).err


def test_an_error_in_markdown() -> None:
    text = markdown(Stopped("vit", "gate", "InputError", "a | b"), seconds=1.25)
    assert text.splitlines() == [
        "### ❌ error: vit", "", "Time: 1.2 s", "", "0 passed, 0 failed, 0 skipped, 1 error", "",
        "| outcome | subject | check | found |", "| --- | --- | --- | --- |",
        "| ❌ error | gate | InputError | a \\| b |",
    ]  # fmt: skip
