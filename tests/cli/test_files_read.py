"""Input files of the command line: regular files, within size limits, unambiguous; others are one-line errors."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import run

import vitdeploy
from vitdeploy.assets import default_checkpoint, held_out_images
from vitdeploy.bundle.bundle import Bundle

LIMIT_S = 30  # far above what is needed, far below for ever


@pytest.fixture(autouse=True)
def in_time() -> Iterator[None]:
    def late(_number: int, _frame: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(LIMIT_S)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def gate(*more: str) -> Callable[[Path, Path], list[str]]:
    return lambda bundle, file: ["gate", str(bundle), "--data", str(held_out_images()), *more, str(file)]


def on_bundle(command: str, *more: str) -> Callable[[Path, Path], list[str]]:
    return lambda bundle, file: [command, str(bundle), *more, str(file)]


# A command line that reads a file, by the file's name.
READERS: dict[str, Callable[[Path, Path], list[str]]] = {
    "rules.toml": gate("--rules"),
    "baseline.json": gate("--baseline"),
    "old.json": gate("--update", "--baseline"),
    "data.csv": on_bundle("evaluate", "--data"),
    "data.tsv": on_bundle("evaluate", "--data"),
    "data.parquet": on_bundle("evaluate", "--data"),
    "images.csv": on_bundle("compare", "--images"),
    "golden.npz": on_bundle("compare", "--golden"),
    "image.png": on_bundle("predict"),
    "work": on_bundle("evaluate", "--data", str(held_out_images()), "--resume"),
    "kept.json": lambda _, file: [
        "export", "--random-weights", "vit-tiny-patch16-32", "--fp16", "--keep-fp32-from", str(file), "-o",
        str(file.parent / "out"),
    ],
    "classes.npz": lambda _, file: [
        "export", str(default_checkpoint()), "--class-embeddings", str(file), "-o", str(file.parent / "out"),
    ],
    "processor.json": lambda _, file: [
        "export", "--random-weights", "vit-tiny-patch16-32", "--processor", str(file), "-o", str(file.parent / "out"),
    ],
}  # fmt: skip
JSON_FILES = ("baseline.json", "old.json", "kept.json")


def refused(arguments: list[str], *, codes: tuple[int, ...] = (4,)) -> str:
    done = run(*arguments)
    assert done.code in codes, done.err
    assert done.out == ""
    assert done.err.startswith("Error: ")
    assert done.err.count("\n") == 1
    assert len(done.err) < 1500
    return done.err


@pytest.mark.parametrize("kind", ["pipe", "link to a pipe", "link to a device", "folder", "link to itself"])
@pytest.mark.parametrize("name", READERS)
def test_only_regular_files_are_read(digits: Bundle, tmp_path: Path, name: str, kind: str) -> None:
    file = tmp_path / name
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "link to a pipe":
        os.mkfifo(tmp_path / "pipe")
        file.symlink_to(tmp_path / "pipe")
    elif kind == "link to a device":
        file.symlink_to("/dev/zero")
    elif kind == "folder":
        file.mkdir()
    else:
        file.symlink_to(file)
    # A work file and a new baseline are written, too: where none can be, that is said.
    refused(READERS[name](digits.path, file), codes=(3, 4) if name in ("work", "old.json") else (4,))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["rules.toml", "baseline.json", "data.csv", "kept.json", "work"])
def test_a_file_that_is_too_large_is_not_read(digits: Bundle, tmp_path: Path, name: str) -> None:
    with (tmp_path / name).open("wb") as file:
        file.truncate(1 << 40)  # a terabyte with no block on the disk
    message = refused(READERS[name](digits.path, tmp_path / name), codes=(3, 4) if name == "work" else (4,))
    assert "more than the" in message


@pytest.mark.parametrize("content", [b"", b"\0" * 9, b"\xff\xfe\0", b'"\xff"', b"\xed\xa0\x80", b"[" * 200_000])
@pytest.mark.parametrize("name", ["rules.toml", "baseline.json", "old.json", "data.csv", "kept.json", "golden.npz"])
def test_what_is_no_text_is_refused(digits: Bundle, tmp_path: Path, name: str, content: bytes) -> None:
    if name == "rules.toml" and not content:
        pytest.skip("no rules are rules")
    (tmp_path / name).write_bytes(content)
    refused(READERS[name](digits.path, tmp_path / name))


@pytest.fixture(scope="module")
def good(digits: Bundle, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    file = tmp_path_factory.mktemp("good") / "baseline.json"
    vitdeploy.gate(digits, data=held_out_images(), baseline=file, update=True, backends=None)
    baseline = json.loads(file.read_bytes())
    return {"baseline.json": baseline, "old.json": baseline, "kept.json": {"kept": [{"name": "a"}]}}


@pytest.mark.parametrize("added", ['"more": NaN', '"more": [-Infinity]', '"more": 1e999', f'"more": {"9" * 5000}',
                                   '"more": {"a": 1, "a": 2}', f'"more": {"[" * 200_000}{"]" * 200_000}'],
                         ids=lambda text: text[:16])  # fmt: skip
@pytest.mark.parametrize("name", JSON_FILES)
def test_json_that_readers_understand_differently_is_refused(
    digits: Bundle, tmp_path: Path, good: dict[str, Any], name: str, added: str
) -> None:
    """Even below a key that nothing reads."""
    (tmp_path / name).write_text(json.dumps(good[name])[:-1] + f", {added}}}", encoding="utf-8")
    refused(READERS[name](digits.path, tmp_path / name))


@pytest.mark.parametrize("key", ["kept", "schema_version", "backends"])
def test_a_key_that_stands_twice_is_refused(digits: Bundle, tmp_path: Path, good: dict[str, Any], key: str) -> None:
    name = "kept.json" if key == "kept" else "baseline.json"
    again = json.dumps({key: good[name][key]})[1:]
    (tmp_path / name).write_text(json.dumps(good[name])[:-1] + f", {again}", encoding="utf-8")
    assert "twice" in refused(READERS[name](digits.path, tmp_path / name)) or name == "kept.json"
