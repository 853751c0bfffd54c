"""The folder of a job that was killed at any point, without Ray."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from raising import raises

from vitdeploy.errors import InputError, OutputError, UsageError
from vitdeploy.serving.scale_out.arrow_table import as_table
from vitdeploy.serving.scale_out.job_folder import JobFolder

IDENTITY = {"source": "images", "files": ["0" * 64], "extensions": ("jpg", "png")}


def _write(folder: JobFolder, name: str, ids: list[int], *, rows: bool = True, recorded: str | None = "") -> None:
    """A file of rows, and its ids with an ending before `.parquet`."""
    if rows:
        pq.write_table(pa.table({"id": ids, "label": ["cat"] * len(ids)}), folder.parts / f"{name}-0.parquet")
    if recorded is not None:
        pq.write_table(pa.table({"id": ids}), folder.checkpoint / f"{name}{recorded}.parquet")


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.parquet"))


def test_a_run_takes_over_what_is_whole(tmp_path: Path) -> None:
    with JobFolder(tmp_path / "rows", IDENTITY) as first:
        assert first.resumed == 0
        _write(first, "u_000000", [0, 1])
        _write(first, "u_000001", [2, 3], recorded=".pending")
        _write(first, "u_000002", [4], recorded=None)
        _write(first, "u_000003", [5, 6], rows=False)
        _write(first, "u_000004", [7, 8])
        _write(first, "u_000004", [7, 8], rows=False, recorded=".pending")  # its task was tried again, and killed
        (first.parts / "u_000005-0.parquet").write_bytes(b"PAR1")
    with JobFolder(tmp_path / "rows", IDENTITY) as second:
        assert second.resumed == 2
        assert (_names(second.parts), _names(second.checkpoint)) == (["u_000000-0.parquet"], ["u_000000.parquet"])
        assert not first.parts.exists()


def test_a_process_of_an_earlier_run_that_still_writes_changes_nothing(tmp_path: Path) -> None:
    with JobFolder(tmp_path / "rows", IDENTITY) as first:
        _write(first, "u_000000", [0, 1])
    with JobFolder(tmp_path / "rows", IDENTITY) as second:
        for folder in (first.parts, first.checkpoint):
            folder.mkdir(parents=True)
        _write(first, "u_000001", [2])
        _write(second, "v_000000", [2])
        second.finish("id", 3)
    assert _names(tmp_path / "rows") == ["u_000000-0.parquet", "v_000000-0.parquet"]


def test_a_finished_job_is_its_output(tmp_path: Path) -> None:
    output = tmp_path / "rows"
    with JobFolder(output, IDENTITY) as folder:
        assert not folder.finished
        _write(folder, "u_000000", [0, 1])
    with JobFolder(output, IDENTITY) as folder:
        _write(folder, "v_000000", [2])
        _write(folder, "v_000001", [3], recorded=".pending")
        folder.finish("id", 3)
    assert [path.name for path in tmp_path.iterdir()] == ["rows"]
    assert sorted(pq.read_table(output).column("id").to_pylist()) == [0, 1, 2]
    folder.path.mkdir()  # as after a kill at the end
    shutil.copy(output / "_job.json", folder.path)
    with JobFolder(output, IDENTITY) as folder:
        assert folder.finished
    assert [path.name for path in tmp_path.iterdir()] == ["rows"]
    with raises(UsageError, what="output", where=output):
        JobFolder(output, {**IDENTITY, "source": "others"})


def test_a_job_of_no_rows_has_an_output(tmp_path: Path) -> None:
    with JobFolder(tmp_path / "rows", IDENTITY) as folder:
        folder.finish("id", 0)
    assert _names(tmp_path / "rows") == []


@pytest.mark.parametrize(("ids", "expected"), [([2, 1], None), ([2], 4)])
def test_a_row_that_is_missing_or_twice_is_no_output(tmp_path: Path, ids: list[int], expected: int | None) -> None:
    with JobFolder(tmp_path / "rows", IDENTITY) as folder:
        _write(folder, "u_000000", [0, 1])
        _write(folder, "v_000000", ids)
        rows = 2 + len(ids)
        with raises(OutputError, what="rows", where=folder.path, expected=expected or rows, found=rows):
            folder.finish("id", expected)
        assert not (tmp_path / "rows").exists()
        assert len(_names(folder.parts)) == 2


def test_rows_that_were_not_recorded_as_such_are_no_output(tmp_path: Path) -> None:
    with JobFolder(tmp_path / "rows", IDENTITY) as folder:
        _write(folder, "u_000000", [0, 1])
        _write(folder, "u_000000", [0, 1, 2], rows=False)
        with raises(OutputError, what="rows", where=folder.path, expected=3, found=2):
            folder.finish("id")


def test_unfinished_work_of_another_job_is_refused(tmp_path: Path) -> None:
    with JobFolder(tmp_path / "rows", IDENTITY):
        pass
    with raises(InputError, what="unfinished", where=tmp_path / "rows.unfinished"):
        JobFolder(tmp_path / "rows", {**IDENTITY, "files": ["1" * 64]})
    (tmp_path / "taken").mkdir()
    (tmp_path / "link").symlink_to("absent")  # in the way at the end, when the folder gets its name
    for name in ("taken", "link"):
        with raises(UsageError, what="output", where=tmp_path / name):
            JobFolder(tmp_path / name, IDENTITY)


def test_tables_have_nulls_and_types_that_do_not_depend_on_the_rows() -> None:
    columns = {
        "id": np.array([7, 8]), "label": np.array(["", "cat"], object), "index": np.array([-1, 3]),
        "score": np.array([np.nan, 0.5], np.float32), "vector": np.array([[np.nan, np.nan], [1, 2]], np.float32),
        "error": np.array(["empty", ""], object),
    }  # fmt: skip
    results = "label", "index", "score", "vector"
    table = as_table(columns, results)
    assert table.to_pylist() == [
        {"id": 7, "label": None, "index": None, "score": None, "vector": None, "error": "empty"},
        {"id": 8, "label": "cat", "index": 3, "score": 0.5, "vector": [1.0, 2.0], "error": None},
    ]
    assert as_table({name: column[:1] for name, column in columns.items()}, results).schema == table.schema
    assert as_table({name: column[1:] for name, column in columns.items()}, results).schema == table.schema
    several = np.array([["", ""], ["cat", "dog"]], object)
    some = as_table({"index": columns["index"], "label": several, "error": columns["error"]}, ["label"])
    assert some.column("label").to_pylist() == [None, ["cat", "dog"]]
    assert some.column("index").to_pylist() == [-1, 3], "it is the caller's"
