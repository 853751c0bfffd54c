"""Sources of a Ray Data job, read without a cluster: their files, and what is refused before any image is computed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from environments import ROOT, environment, run

SCRIPT = """
import json, sys
from vitdeploy.errors import VitDeployError
from vitdeploy.serving.scale_out import ray_sources
for call in map(json.loads, sys.argv[1:]):
    try:
        source = getattr(ray_sources, call["kind"])(*call["arguments"])
        if call["method"] == "_sample":
            sample = {"__url__": "a.tar", "__key__": "0", "cls": b"3", "PNG": b"image"}
            result = source._sample(sample)["image"].decode()
        else:
            result = getattr(source, call["method"])(*call["more"])
        print(json.dumps(result, default=str))
    except VitDeployError as exc:
        print(json.dumps([type(exc).__name__, exc.what]))
"""


def results(*calls: tuple[Any, ...]) -> list[Any]:
    """Results of methods, or the error's type and field: kind of source, its arguments, method, arguments of it."""
    names = "kind", "arguments", "method", "more"
    words = [
        json.dumps(dict(zip(names, (*call, "count", [])[:4] if len(call) == 2 else call, strict=True)), default=str)
        for call in calls
    ]
    return list(map(json.loads, run(environment("ray"), "-c", SCRIPT, *words, PYTHONPATH=str(ROOT)).splitlines()))


def write(path: Path, ids: Any, column: str = "image") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"id": ids, column: pa.array([b"image"] * len(ids), pa.binary())}), path)
    return path


def test_rows_are_counted_and_ids_checked_before_the_job(tmp_path: Path) -> None:
    mixed = write(tmp_path / "mixed/x/a.parquet", pa.array([1, 2], pa.int32())).parents[1]
    write(mixed / "b.parquet", pa.array([2**40], pa.int64()))
    write(mixed / "_temporary/c.parquet", [1])
    (mixed / "README.md").write_text("text", encoding="utf-8")
    cut = tmp_path / "cut.parquet"
    cut.write_bytes((mixed / "b.parquet").read_bytes()[:-20])
    refused = {
        "twice": (["a", "b", "a"], "id"),
        "null": (["a", None], "id"),
        "floats": ([0.5, 1.5], "id"),
    }
    files = [write(tmp_path / f"{name}.parquet", ids) for name, (ids, _) in refused.items()]
    found = results(
        ("ParquetRows", [[mixed]]),
        *(("ParquetRows", [[file]]) for file in files),
        ("ParquetRows", [[mixed, write(tmp_path / "text.parquet", ["a"])]]),
        ("ParquetRows", [[write(tmp_path / "other.parquet", [1], column="picture")]]),
        ("ParquetRows", [[mixed], "key"]),
        ("ParquetRows", [[cut]]),
    )
    errors = [["InputError", what] for what in ("id", "id", "id", "id", "image", "key", "paths")]
    assert found == [3, *errors]


def test_files_are_those_of_predict_and_each_is_given_once(tmp_path: Path) -> None:
    (folder := tmp_path / "images").mkdir()
    for name in ("_DSC1.JPG", "class=cat/_x/2.png", ".hidden/3.png", "._4.png", "5.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"image")
    (tmp_path / "empty").mkdir()
    (other := tmp_path / "other").mkdir()
    (other / "back").symlink_to(folder)
    (folder / "class=cat/up").symlink_to(folder)
    (folder / "other").symlink_to(other)
    listed, absolute, *found = results(
        ("ImageFiles", [[folder, folder / "5.txt"]], "_list", []),
        ("ImageFiles", [["images", "s3://bucket/images"]], "__getattribute__", ["paths"]),
        ("ImageFiles", [[folder, folder / "_DSC1.JPG"]]),
        ("ImageFiles", [[folder, folder]]),
        ("ImageFiles", [[]]),
        ("ImageFiles", ["images"]),
        ("ImageFiles", [[folder, "mock://"]], "_list", []),
        ("ImageFiles", [[tmp_path / "empty"]]),
        ("WebDataset", [[tmp_path / "*.tar"]], "_list", []),
        ("WebDataset", [[folder]], "_list", []),
        ("WebDataset", [["a.tar"]], "_sample", []),
    )
    assert listed["paths"] == [str(folder / name) for name in ("_DSC1.JPG", "class=cat/_x/2.png", "5.txt")]
    assert absolute == ["/images", "s3://bucket/images"]
    assert found == [["UsageError", "paths"]] * 5 + [["InputError", "paths"]] * 3 + ["image"]


def test_an_output_is_a_folder_outside_the_rows_that_are_read(tmp_path: Path) -> None:
    def check(kind: str, output: object) -> tuple[Any, ...]:
        return kind, [[tmp_path / "data"]], "check_output", [output]

    found = results(
        check("ParquetRows", tmp_path / "rows"),
        check("ImageFiles", tmp_path / "data/rows"),
        check("ParquetRows", tmp_path / "data/rows"),
        check("ParquetRows", "s3://bucket/rows"),
        ("ParquetRows", [["data"], "label"], "check_columns", [["label"]]),
        ("ParquetRows", [["data"], "image"], "check_columns", [["label"]]),
        ("ParquetRows", [["data"]], "check_columns", [["label"]]),
    )
    refused = ["UsageError", "output"], ["UsageError", "output"], *[["UsageError", "id_column"]] * 2
    assert found == [str(tmp_path / "rows"), str(tmp_path / "data/rows"), *refused, None]
