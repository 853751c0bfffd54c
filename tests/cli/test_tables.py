"""Tables of the command line: on a terminal of 80 columns no line is longer, and no word is broken."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from command_line import Terminal, run
from faults import copy_of

import vitdeploy
from vitdeploy.assets import default_checkpoint, held_out_images
from vitdeploy.bundle.bundle import Bundle
from vitdeploy.cli import table
from vitdeploy.cli.output import print_table, print_text
from vitdeploy.cli.table import by_reason

QUICK = ("--rounds", "1", "--runs", "1", "--batch-sizes", "1")
RANDOM = ("export", "--random-weights", "vit-tiny-patch16-32")


@pytest.fixture(scope="module")
def folder(digits: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a bundle of two artifacts, and few labelled images."""
    folder = tmp_path_factory.mktemp("tables")
    copy_of(digits, folder / "vit")
    vitdeploy.export(default_checkpoint(), output=folder / "vit", precision="fp16")
    for label in ("0", "1"):
        (folder / "photos" / label).mkdir(parents=True)
        for image in sorted((held_out_images() / label).iterdir())[:8]:
            shutil.copy(image, folder / "photos" / label)
    return folder


@pytest.fixture
def asked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The words that commands ask to be printed, on a terminal of 80 columns."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "dumb")  # no bold type
    words: list[str] = []
    rendered, wrapped = table.rendered, table.wrapped

    def spy(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
        words.extend(" ".join([title, *columns, *(cell for row in rows for cell in row)]).split())
        return rendered(title, columns, rows)

    def spy_text(text: str, limit: int | None) -> str:
        words.extend(text.split())
        return wrapped(text, limit)

    monkeypatch.setattr(table, "rendered", spy)
    monkeypatch.setattr(table, "wrapped", spy_text)
    return words


@pytest.mark.parametrize(
    "line",
    [
        "compare vit",
        "compare vit --details",
        "evaluate vit --data photos --details",
        "evaluate vit --data photos --per-class --confusion --device cuda:7",
        "gate vit --data photos",
        "gate vit --data photos --device cuda:7",
        "benchmark vit --backend onnxruntime:fp32 " + " ".join(QUICK),
        "benchmark vit --backend onnxruntime:fp32 --details " + " ".join(QUICK),
        "inspect vit",
        "inspect vit vit --artifact onnx-fp32 --artifact onnx-fp16",
        "doctor",
        "predict vit photos/0/* photos/1/*",
        "debug layers vit",
        "debug bisect vit",
        "debug sensitivity vit --precision fp16 --images photos --max-images 1",
        "verify vit",
        "triton vit models --artifact onnx-fp32",
        " ".join((*RANDOM, "-o", "random")),
        " ".join((*RANDOM, "--int8", "--calibration-data", "photos/0", "-o", "random")),
    ],
)
def test_every_table_fits(asked: list[str], line: str) -> None:
    words = [word for typed in line.split() for word in (sorted(map(str, Path().glob(typed))) or [typed])]
    printed = run(*words, out=Terminal()).out
    assert printed
    assert max(map(len, printed.splitlines())) <= 80, printed
    assert {*printed.split()} <= {*asked}
    if "--details" not in words:
        assert all(len(re.split(" {2,}", row.strip())) <= 6 for row in printed.splitlines())


def printed(columns: tuple[str, ...], *rows: tuple[str, ...], width: int, monkeypatch: pytest.MonkeyPatch) -> str:
    out = Terminal()
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr("sys.stdout", out)
    print_table("", columns, rows)
    return out.getvalue()


def test_a_column_is_wrapped_between_words(monkeypatch: pytest.MonkeyPatch) -> None:
    text = printed(("name", "found"), ("a", "one two three"), ("bb", "four"), width=14, monkeypatch=monkeypatch)
    assert text.splitlines() == ["name  found", "a     one two", "      three", "bb    four"]


def test_rows_are_blocks_where_the_words_do_not_fit_beside_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = (("onnx-fp32", "onnxruntime", "a b c"), ("x", "y", "z"))
    text = printed(("artifact", "backend", "note"), *rows, width=22, monkeypatch=monkeypatch)
    assert text.splitlines() == [
        "artifact  onnx-fp32", "backend   onnxruntime", "note      a b c", "",
        "artifact  x", "backend   y", "note      z",
    ]  # fmt: skip


def test_a_table_without_rows_is_its_head(monkeypatch: pytest.MonkeyPatch) -> None:
    assert printed(("artifact", "backend"), width=10, monkeypatch=monkeypatch).splitlines() == ["artifact  backend"]


def test_characters_of_two_columns_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    text = printed(("label", "score"), ("猫 犬 鳥", "0.5"), ("a", "1"), width=12, monkeypatch=monkeypatch)
    assert text.splitlines() == ["label  score", "猫 犬  0.5", "鳥", "a      1"]


def test_text_is_broken_between_words(monkeypatch: pytest.MonkeyPatch) -> None:
    out = Terminal()
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setattr("sys.stdout", out)
    print_text("run: vitdeploy verify a-long-name-of-a-bundle --run\nsecond line")
    assert out.getvalue().splitlines() == [
        "run: vitdeploy",
        "verify",
        "a-long-name-of-a-bundle",
        "--run",
        "second line",
    ]


def test_a_reason_is_told_once() -> None:
    reasons = [("a", "no GPU"), ("b", "no torch"), ("c", "no GPU"), ("a", "no GPU")]
    assert by_reason(reasons) == ["a, c: no GPU", "b: no torch"]
