"""The form of every command: help, short flags, names that other tools have, quiet and verbose."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click
import pytest
from command_line import parsed, run

from vitdeploy.cli import cli
from vitdeploy.cli.command import Command
from vitdeploy.cli.export import export
from vitdeploy.cli.synonyms import COMMANDS, OPTIONS

if TYPE_CHECKING:
    from vitdeploy.bundle.bundle import Bundle

TINY = ("--random-weights", "vit-tiny-patch16-32")


def commands(group: click.Group, *path: str) -> Iterator[tuple[tuple[str, ...], Command]]:
    """Every command below a group, with its words."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert isinstance(command, Command)
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from commands(command, *path, name)


ALL = [((), cli), *commands(cli)]


@pytest.mark.parametrize(("path", "command"), ALL, ids=[" ".join(path) or "vitdeploy" for path, _ in ALL])
def test_help_fits_80_columns_and_its_examples_can_be_typed(path: tuple[str, ...], command: Command) -> None:
    shown, same = run(*path, "--help"), run(*path, "-h")
    assert (shown.code, shown.err, shown.out) == (0, "", same.out)
    assert max(map(len, shown.out.splitlines())) <= 80
    assert "<=x<=" not in shown.out
    assert 2 <= len(command.examples) <= 4
    for example in command.examples:
        assert f"\n  vitdeploy {example}\n" in shown.out
        assert command is cli or example.startswith(" ".join(path))
        parsed(example)


def test_the_options_of_export_stand_in_groups() -> None:
    lines = run("export", "--help").out.splitlines()
    headings = [line.removesuffix(":") for line in lines if line.endswith(":") and not line.startswith(" ")]
    assert headings == [
        "Model", "Output", "Half precision", "Quantization", "Image processor", "Graph", "Embeddings", "Calibration",
        "Accuracy bound", "Validation", "Engines", "Hub", "Common options", "Examples",
    ]  # fmt: skip
    options = [param for param in export.params if isinstance(param, click.Option)]
    assert all(sum(line.split(" ")[2:3] == [param.opts[0]] or f" {param.opts[-1]}" in line for line in lines)
               for param in options)  # fmt: skip


def test_short_flags() -> None:
    assert run("-V").out == run("--version").out
    assert parsed("export -m a -o b") == parsed("export --model a --output b")
    assert parsed("predict b x.jpg -k 3")["top_k"] == 3


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("export x --half --format engine", "export x --fp16 --to tensorrt"),
        ("export x --quantize int8 --imgsz 64", "export x --precision int8 --image-size 64"),
        ("export x --dtype float16 --format ts --format onnx", "export x --precision fp16 --to torchscript --to onnx"),
        ("predict b x.jpg --device gpu --topk 2", "predict b x.jpg --device cuda --top-k 2"),
        ("predict b x.jpg --device 0 --precision half", "predict b x.jpg --device cuda:0 --precision fp16"),
        ("compare b --device gpu:1", "compare b --device cuda:1"),
        ("benchmark b --device 1", "benchmark b --device cuda:1"),
    ],
)
def test_other_tools_names_are_taken(typed: str, meant: str) -> None:
    assert parsed(typed) == parsed(meant)


def test_an_option_under_two_names_is_refused() -> None:
    for line in ("export x --dtype fp16 --quantize int8", "export x --precision=fp16 --dtype int8 -o out"):
        result = run(*line.split())
        assert (result.code, result.out, "the same option" in result.err) == (2, "", True)
    assert parsed("export x --to onnx --format ts --half --fp16")["formats"] == ("onnx", "torchscript")
    assert parsed("export --dtype fp16 -- --precision")["checkpoint"] == "--precision"


def test_a_synonym_hides_no_option_and_is_no_value() -> None:
    for _, command in ALL:
        assert not {*OPTIONS} & {name for param in command.params for name in param.opts}
    assert parsed("export --model --half --fp16")["model"] == "--half"


@pytest.mark.parametrize(
    ("typed", "meant"),
    COMMANDS.items(),
)
def test_a_command_of_another_tool_is_answered_with_ours(typed: str, meant: str) -> None:
    result = run(typed, "x")
    assert (result.code, result.out) == (2, "")
    assert result.err.endswith(f"No such command '{typed}'; did you mean {meant}? Run: vitdeploy {meant} -h\n")
    assert run(meant, "-h").code == 0


@pytest.mark.parametrize(
    ("typed", "answer"),
    [
        ("exprot x", "did you mean export?"),
        ("debug layer x", "did you mean layers? Run: vitdeploy debug layers -h"),
        ("export x --calibration-dat y", "--calibration-data"),
        ("compare x --batchsize 3", "--batch-size"),
        ("frobnicate", "export, predict"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(typed: str, answer: str) -> None:
    result = run(*typed.split())
    assert (result.code, result.out) == (2, "")
    assert answer in result.err.splitlines()[-1]


def test_the_model_may_come_first_or_by_its_option(tmp_path: Path) -> None:
    both = run("export", "a", "--model", "b", "-o", tmp_path / "out")
    assert (both.code, both.err.count("\n")) == (2, 1)
    for arguments in (["./absent"], ["-m", "./absent"]):
        result = run("export", *arguments)
        assert (result.code, "no such folder: ./absent" in result.err) == (4, True)
    refused = run("export", "a", *TINY)
    assert (refused.code, "--random-weights" in refused.err) == (2, True)


def test_an_export_of_nothing_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """At once: the workflow imports torch and the exporter."""
    monkeypatch.setitem(sys.modules, "vitdeploy.exporting.workflow", None)
    for arguments in ([], ["--fp16"], ["--to", "tensorrt"], ["--to", "onnx", "-o", "out"]):
        result = run("export", *arguments)
        assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
        assert "vitdeploy export google/vit-base-patch16-224 -o vit" in result.err


def test_quiet_prints_errors_and_json_only(digits: Bundle, tmp_path: Path) -> None:
    assert run("verify", digits.path, "-q")[:3] == (0, "", "")
    assert run("-q", "inspect", digits.path)[:3] == (0, "", "")
    assert run("verify", digits.path, "-q", "--json").json["status"] == "passed"
    missing = run("verify", tmp_path, "-q")
    assert (missing.code, missing.out, missing.err.count("\n")) == (4, "", 1)
    assert run("compare", digits.path, "-q", "--tolerance", "1e-12")[:3] == (1, "", "")
    level = logging.getLogger("vitdeploy").level
    assert run("doctor", "--quiet", "--verbose").code == 2
    assert logging.getLogger("vitdeploy").level == level


def test_verbose_prints_steps_and_the_causes_of_errors(digits: Bundle, tmp_path: Path) -> None:
    compared = run("compare", digits.path, "-v")
    assert (compared.code, compared.out) == (0, run("compare", digits.path).out)
    assert "reference" in compared.err
    (tmp_path / "manifest.json").write_text("{", encoding="utf-8")
    plain, verbose = run("verify", tmp_path), run("verify", tmp_path, "-v")
    assert (plain.code, verbose.code) == (4, 4)
    assert verbose.err.startswith(plain.err)
    assert "  cause: " in verbose.err
    assert "Traceback" not in verbose.err
