"""Images that a list or a folder names and that are not there: recorded rows, whose errors are their own file's."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from command_line import run
from forbidden import forbidden
from image_files import paths_of
from raising import raises
from told import Told

import vitdeploy
from vitdeploy.assess.data.image_set import open_all
from vitdeploy.cli.predict import _with_hint
from vitdeploy.errors import ImageError, InputError

if TYPE_CHECKING:
    from vitdeploy.bundle.bundle import Bundle
    from vitdeploy.predictor import Predictor


def errors_of(output: Path) -> dict[str, str | None]:
    """The error of each row of a file of JSON lines, by path."""
    rows = [json.loads(line) for line in output.read_text(encoding="ascii").splitlines()]
    assert all((row["predictions"] is None) == (row["error"] is not None) for row in rows)
    return {row["path"]: row["error"] for row in rows}


def test_a_list_that_names_missing_files(digits: Bundle, features: Path, folder: Path, tmp_path: Path) -> None:
    """In a folder that exists or does not, a folder itself, a name that no file can have; after --on-error stop."""
    table, names = tmp_path / "table.tsv", ["gone.png", "no folder/gone.png", "0", "x" * 300 + ".png"]
    table.write_text("\n".join(["image", "images/0/00.png", *(f"images/{name}" for name in names)]), encoding="utf-8")
    output = tmp_path / "out.jsonl"
    stopped = run("predict", digits.path, table, "-o", output, "--on-error", "stop")
    assert (stopped.code, output.exists(), list(tmp_path.glob("*.unfinished"))) == (InputError.exit_code, False, [])
    recorded = run("predict", digits.path, table, "-o", output, "--batch-size", 1, "--json")
    failed = json.loads(recorded.out)["failed"]
    assert (recorded.code, [one["row"] for one in failed]) == (ImageError.exit_code, [1, 2, 3, 4])
    paths = [(folder / name).as_posix() for name in names]
    errors = errors_of(output)
    assert [path for path, error in errors.items() if error] == [one["path"] for one in failed] == paths
    assert all(path in (errors[path] or "") for path in paths)
    embedded = run("embed", features, table, "-o", tmp_path / "out.npy", "--json")
    assert [one["path"] for one in json.loads(embedded.out)["failed"]] == paths


def test_broken_links_in_a_folder(predictor: Predictor, folder: Path, tmp_path: Path) -> None:
    """Without an ending, it may be an image; one with another file's ending is left out."""
    for name in ("link.png", "link", "link.txt"):
        (folder / name).symlink_to(tmp_path / "gone")
    (folder / "below.png").symlink_to("0/00.png/below.png")
    (folder / "long.png").symlink_to("x" * 300)
    (folder / "loop.png").symlink_to("loop.png")
    output = tmp_path / "out.jsonl"
    with raises(InputError):
        vitdeploy.predict(predictor, folder, output, on_error="stop")
    result = vitdeploy.predict(predictor, folder, output)
    assert [failed.path for failed in result.failed] == [
        str(folder / name) for name in ("below.png", "link", "link.png", "long.png", "loop.png")
    ]
    assert result.left_out[str(folder)].files == 1


def test_pipes_in_a_folder(predictor: Predictor, folder: Path, tmp_path: Path) -> None:
    """Nothing waits for a writer."""
    os.mkfifo(folder / "0" / "pipe.png")
    (folder / "link.png").symlink_to("0/pipe.png")
    with raises(InputError, hint="remove it"):
        vitdeploy.predict(predictor, folder, tmp_path / "out.jsonl", on_error="stop")
    result = vitdeploy.predict(predictor, folder, tmp_path / "out.jsonl")
    assert [failed.path for failed in result.failed] == [str(folder / "0/pipe.png"), str(folder / "link.png")]


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
@pytest.mark.parametrize("name", ["a.png", "list.csv", "folder"])
def test_a_forbidden_argument_is_an_input_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("closed").mkdir()
    with forbidden(Path("closed")):
        with raises(InputError, where=Path("closed", name), found="Permission denied"):
            open_all([Path("closed", name)], keep_unreadable=True)
        told = _with_hint(ImageError("refused"), [f"closed/{name}"])
    assert ("--output" in str(told)) == (name == "list.csv")


def test_an_error_names_its_own_file_alone(predictor: Predictor, folder: Path, tmp_path: Path) -> None:
    """Not the first of the arguments."""
    first, second = paths_of(folder / "0")[:2]
    Path(second).write_bytes(b"no image")
    result = vitdeploy.predict(predictor, [first, folder / "1", second], tmp_path / "out.jsonl")
    (failed,) = result.failed
    assert failed.path == second
    assert failed.error.startswith(f"cannot read {second!r}")
    with raises(ImageError, where=second) as refused:
        vitdeploy.predict(predictor, [first, folder / "1", second], tmp_path / "out.csv", on_error="stop")
    assert str(refused.value).startswith(f"cannot read {second!r}")


@pytest.mark.usefixtures("reads_nothing_ahead")
def test_a_folder_of_a_list_that_vanishes_stops_the_work(predictor: Predictor, folder: Path, tmp_path: Path) -> None:
    """Unlike one that was not there when the list was read. While it is away, the work is kept."""
    table = tmp_path / "table.csv"
    table.write_text("image\nabsent/a.png\nimages/0/00.png\nimages/1/01.png\n", encoding="utf-8")
    output, away = tmp_path / "out.jsonl", tmp_path / "away"
    told = Told(on_advance=lambda done, _total: done == 1 and folder.rename(away))
    with raises(InputError, what="images", where=folder / "0"):
        vitdeploy.predict(predictor, table, output, batch_size=1, progress=told)
    with raises(InputError, what="folders"):
        vitdeploy.predict(predictor, table, output, batch_size=1)
    away.rename(folder)
    result = vitdeploy.predict(predictor, table, output, batch_size=1)
    assert (result.resumed, [failed.row for failed in result.failed]) == (1, [0])
