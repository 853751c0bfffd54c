"""Completion of the installed command in a shell, which asks it with variables."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from vitdeploy.cli import COMMANDS, main

Ask = Callable[..., list[str]]


@pytest.fixture
def answer(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """The output of the command for an instruction."""

    def run(instruction: str) -> str:
        monkeypatch.setenv("_VITDEPLOY_COMPLETE", instruction)
        with pytest.raises(SystemExit) as caught:
            main([])
        out, err = capsys.readouterr()
        assert (caught.value.code, err) == (0, "")
        return out

    return run


@pytest.fixture
def offered(answer: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> Ask:
    """What bash offers for the last word."""

    def ask(*words: str) -> list[str]:
        monkeypatch.setenv("COMP_WORDS", " ".join(("vitdeploy", *words)))
        monkeypatch.setenv("COMP_CWORD", str(len(words)))
        return [line.partition(",")[2] for line in answer("bash_complete").splitlines()]

    return ask


def test_commands_are_completed(offered: Ask) -> None:
    assert offered("ex") == ["export"]
    assert offered("") == [*COMMANDS]
    assert offered("debug", "b") == ["bisect"]


def test_options_and_their_values_are_completed(offered: Ask) -> None:
    assert offered("export", "--calibration-d") == ["--calibration-data"]
    assert offered("export", "--to", "tensorrt") == ["tensorrt", "tensorrt-rtx"]
    assert offered("predict", "vit", "x.jpg", "--backend", "onnx") == ["onnxruntime", "onnxruntime-tensorrt"]
    assert {"-m", "--model", "-h", "-q"} <= {*offered("export", "-")}
    assert "--half" not in offered("export", "--hal")  # a synonym


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_line_for_each_shell_prints_a_script(
    answer: Callable[[str], str], monkeypatch: pytest.MonkeyPatch, shell: str
) -> None:
    if shell == "bash":  # which is asked for its version
        monkeypatch.setattr("click.shell_completion.BashComplete._check_version", lambda *_: None)
    assert f"_VITDEPLOY_COMPLETE={shell}_complete" in answer(f"{shell}_source")
