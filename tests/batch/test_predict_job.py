"""Prediction jobs: a row for each image in CSV, JSON lines and parquet, and the command that writes them."""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command_line import run
from image_files import paths_of
from raising import raises
from stub_runtime import StubRuntime
from told import Told

import vitdeploy
from vitdeploy.batch.prediction_files import PREDICTION, FinishedPredictions, rank_columns
from vitdeploy.errors import ImageError, InputError, MissingDependencyError, NotFiniteError, OutputError, UsageError
from vitdeploy.images.preprocessor_config import Size
from vitdeploy.images.processor import ImageProcessor
from vitdeploy.predictor import Prediction, Predictor
from vitdeploy.specs import AxisRange, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vitdeploy.bundle.bundle import Bundle

FORMATS = ("csv", "jsonl", "parquet")
Row = tuple[str, "list[Prediction] | None", "str | None"]


def read(file: Path) -> list[Row]:
    """Path, predictions and error of each row; scores are float32 in every format."""
    if file.suffix == ".jsonl":
        lines = [json.loads(line) for line in file.read_text(encoding="ascii").split("\n")[:-1]]
        return [
            (
                line["path"],
                None if line["predictions"] is None else [Prediction(**best) for best in line["predictions"]],
                line["error"],
            )
            for line in lines
        ]
    if file.suffix == ".csv":
        with file.open(encoding="utf-8", errors="surrogateescape", newline="") as opened:
            rows: list[dict[str, Any]] = list(csv.DictReader(opened))
    else:
        rows = pq.read_table(file).to_pylist()
    ranks = (len(rows[0]) - 2) // 3
    assert list(rows[0]) == ["path", *(name for rank in range(ranks) for name in rank_columns(rank)), "error"]
    return [(row["path"], _best(row, ranks), row["error"] or None) for row in rows]


def _best(row: dict[str, Any], ranks: int) -> list[Prediction] | None:
    cells = [[row[name] for name in rank_columns(rank)] for rank in range(ranks)]
    if all(value in (None, "") for rank in cells for value in rank):
        return None
    return [Prediction(label, int(index), float(score)) for label, index, score in cells]


class Constant(StubRuntime):
    """Gives each image the same logits, (num_labels,)."""

    def __init__(self, logits: np.ndarray) -> None:
        super().__init__()
        self.details, self._logits = {}, logits.astype(np.float32)
        self.inputs = (TensorSpec("pixel_values", "float32", ("batch", 3, 8, 8)),)
        self.outputs = (TensorSpec("logits", "float32", ("batch", len(logits))),)

    def _run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"logits": np.tile(self._logits, (len(feeds["pixel_values"]), 1))}


def of_logits(logits: np.ndarray, problem_type: str | None = None, labels: Sequence[str] | None = None) -> Predictor:
    names = labels or [f"name {index}" for index in range(len(logits))]
    return Predictor(ImageProcessor(size=Size(8, 8)), Constant(logits), names, problem_type)


@pytest.mark.parametrize("ending", FORMATS)
def test_a_row_for_each_image_in_order(predictor: Predictor, folder: Path, tmp_path: Path, ending: str) -> None:
    told = Told()
    output = tmp_path / f"predictions.{ending}"
    bad = paths_of(folder)[4]
    Path(bad).write_bytes(b"no image")
    sources: list[str | Path] = [folder / "1", folder / "0"]
    result = vitdeploy.predict(predictor, sources, output, top_k=3, batch_size=5, progress=told)
    expected = [*paths_of(folder / "1"), *paths_of(folder / "0")]
    rows = read(output)
    assert [path for path, *_ in rows] == expected
    row = expected.index(bad)
    assert [index for index, (_, best, error) in enumerate(rows) if best is None and error] == [row]
    intact = [path for path in expected if path != bad]
    for best, wanted in zip([best for _, best, _ in rows if best], predictor.predict(intact, top_k=3), strict=True):
        assert [(one.label, one.index) for one in best] == [(one.label, one.index) for one in wanted]
        np.testing.assert_allclose([one.score for one in best], [one.score for one in wanted], atol=1e-6)
    assert [(failed.row, failed.path, failed.error) for failed in result.failed] == [(row, bad, rows[row][2])]
    assert (result.output, result.images, result.ranks, result.resumed) == (str(output), len(expected), 3, 0)
    assert (told.steps[-1], told.advances[-1]) == ("predicting 12 images", (12, 12))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", output.name]


def test_every_format_has_the_same_values(
    predictor: Predictor, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Written at once or part by part."""
    Path(paths_of(folder)[0]).write_bytes(b"no image")
    for ending in FORMATS:
        vitdeploy.predict(predictor, folder, tmp_path / f"whole.{ending}")
    monkeypatch.setattr("vitdeploy.batch.prediction_files._PREDICTIONS_A_PART", 29)
    monkeypatch.setattr("vitdeploy.batch.prediction_parquet._GROUP_BYTES", 5 * 40 * 7)
    for ending in FORMATS:
        vitdeploy.predict(predictor, folder, tmp_path / f"parts.{ending}")
    rows = read(tmp_path / "whole.jsonl")
    assert len(rows[1][1] or ()) == 5
    assert [read(tmp_path / f"whole.{ending}") for ending in FORMATS] == [rows] * 3
    for ending in ("csv", "jsonl"):
        assert (tmp_path / f"parts.{ending}").read_bytes() == (tmp_path / f"whole.{ending}").read_bytes()
    with pq.ParquetFile(tmp_path / "parts.parquet") as file:
        assert [file.metadata.row_group(index).num_rows for index in range(file.num_row_groups)] == [5, 5, 2]
    assert read(tmp_path / "parts.parquet") == rows


@pytest.mark.parametrize("ranks", [1, 1000, 200_000])
def test_memory_is_bounded_for_many_classes_too(tmp_path: Path, ranks: int) -> None:
    count = 300_000 // ranks + 1
    np.save(tmp_path / "rows.npy", np.zeros((count, ranks), PREDICTION))
    parts = FinishedPredictions(tmp_path / "rows.npy", ["a"] * ranks, ["a.png"] * count, {}).parts()
    sizes = [part.indices.shape for part in parts]
    assert len(sizes) > 1
    assert sum(rows for rows, _ in sizes) == count
    assert max(rows * ranks for rows, _ in sizes) <= max(ranks, 1 << 17)


def test_odd_paths_keep_their_rows(predictor: Predictor, folder: Path, tmp_path: Path) -> None:
    """Formulas of spreadsheets, separators, line breaks, and names that are not UTF-8."""
    names = ["=1+1.png", "-a,b.png", '"q".png', "a\nb.png", "a\rb.png", "\N{LINE SEPARATOR}.png", "\N{SNOWMAN}.png"]
    if sys.platform == "linux":
        names.append(os.fsdecode(b"\xff.png"))
    (tmp_path / "odd").mkdir()
    for name in names:
        shutil.copy(folder / "0" / "00.png", tmp_path / "odd" / name)
    Path(tmp_path / "odd" / names[-1]).write_bytes(b"")
    result = vitdeploy.predict(predictor, tmp_path / "odd", tmp_path / "out.csv")
    paths = sorted((tmp_path / "odd" / name).as_posix() for name in names)
    assert [path for path, *_ in read(tmp_path / "out.csv")] == paths
    assert [failed.path for failed in result.failed] == [(tmp_path / "odd" / names[-1]).as_posix()]
    in_utf_8 = [os.fsencode(path).decode("utf-8", "backslashreplace") for path in paths]
    for ending in ("jsonl", "parquet"):
        vitdeploy.predict(predictor, tmp_path / "odd", tmp_path / f"out.{ending}")
        assert [path for path, *_ in read(tmp_path / f"out.{ending}")] == in_utf_8
    odd = of_logits(np.arange(3.0), labels=["a\rb", "\ud800", '"'])
    for ending in FORMATS:
        vitdeploy.predict(odd, folder, tmp_path / f"labels.{ending}")
        assert [best.label for best in read(tmp_path / f"labels.{ending}")[0][1] or ()] == ['"', "\\ud800", "a\rb"]


@pytest.mark.parametrize("ending", FORMATS)
def test_regressions_and_several_labels(folder: Path, tmp_path: Path, ending: str) -> None:
    output = tmp_path / f"out.{ending}"
    values = np.array([0.5, -3.0, 7.25, 1e20, -0.0, 2.0, 9.0])
    regression = of_logits(values, "regression")
    result = vitdeploy.predict(regression, folder, output)
    assert (result.problem_type, result.ranks) == ("regression", 7)
    assert read(output)[3][1] == [
        Prediction(f"name {index}", index, float(np.float32(value))) for index, value in enumerate(values)
    ]
    with raises(UsageError, what="top_k", found=2):
        vitdeploy.predict(regression, folder, output, top_k=2)
    several = of_logits(np.array([0.0, 1.0, -1.0]), "multi_label_classification")
    assert vitdeploy.predict(several, folder, output, top_k=2).ranks == 2
    for best, (index, logit) in zip(read(output)[0][1] or (), ((1, 1.0), (0, 0.0)), strict=True):
        assert best.index == index
        assert best.score == pytest.approx(1 / (1 + math.exp(-logit)), abs=1e-6)
    with raises(NotFiniteError, what="logits"):
        vitdeploy.predict(of_logits(np.array([0.0, np.nan])), folder, output)


@pytest.mark.parametrize("batch_size", [1, 4, 8])
def test_an_engine_that_takes_no_small_batch(folder: Path, tmp_path: Path, batch_size: int) -> None:
    """A bad image, and the last batch, leave fewer than its smallest."""
    expected = of_logits(np.arange(3.0))
    Path(paths_of(folder)[1]).write_bytes(b"no image")
    vitdeploy.predict(expected, paths_of(folder)[:9], tmp_path / "expected.csv", batch_size=batch_size)
    engine = of_logits(np.arange(3.0))
    engine.runtime.axes = {"batch": AxisRange(4, 4, 4)}
    vitdeploy.predict(engine, paths_of(folder)[:9], tmp_path / "out.csv", batch_size=batch_size)
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "expected.csv").read_bytes()


def test_tables_and_parquet_with_labels(predictor: Predictor, folder: Path, tmp_path: Path) -> None:
    first, second, *_ = paths_of(folder)
    (tmp_path / "table.csv").write_text("label,image\n9,images/0/02.png\n9,images/0/00.png\n", encoding="utf-8")
    content = [{"image": {"bytes": Path(path).read_bytes(), "path": None}, "label": 3} for path in (second, first)]
    pq.write_table(pa.Table.from_pylist(content), tmp_path / "data.parquet")
    vitdeploy.predict(predictor, [tmp_path / "table.csv", tmp_path / "data.parquet"], tmp_path / "out.jsonl")
    rows = read(tmp_path / "out.jsonl")
    place = tmp_path.as_posix()
    assert [path for path, *_ in rows] == [second, first, f"{place}/data.parquet#0", f"{place}/data.parquet#1"]
    assert [best for _, best, _ in rows[:2]] == [best for _, best, _ in rows[2:]]


def test_the_command(digits: Bundle, folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.csv"
    whole = run("predict", digits.path, folder, "-o", output, "-k", 1)
    assert (whole.code, output.name in whole.out) == (0, True)
    bad = paths_of(folder)[3]
    Path(bad).write_bytes(Path(bad).read_bytes()[:99])
    stopped = run("predict", digits.path, folder, "-o", tmp_path / "b.csv", "--on-error", "stop", "--batch-size", 2)
    assert (stopped.code, bad in stopped.err) == (ImageError.exit_code, True)
    assert not (tmp_path / "b.csv").exists()
    code, out, _ = run("predict", digits.path, folder, "-o", tmp_path / "b.csv", "--batch-size", 2, "--json")
    result = json.loads(out)
    assert (code, result["resumed"], result["ranks"]) == (ImageError.exit_code, 2, 5)
    assert [(failed["row"], failed["path"]) for failed in result["failed"]] == [(3, bad)]
    assert result["problem_type"] == "single_label_classification"
    assert "could not be read" in run("predict", digits.path, folder, "-o", output).out


def test_without_an_output_a_folder_is_refused(digits: Bundle, folder: Path) -> None:
    code, out, err = run("predict", digits.path, folder)
    assert (code, out, "--output" in err) == (ImageError.exit_code, "", True)
    image = paths_of(folder)[0]
    assert "--output" not in run("predict", digits.path, Path(image).parent / "absent.png").err
    assert run("predict", digits.path, image, "--on-error", "stop").code == UsageError.exit_code
    assert run("predict", digits.path, image, "--batch-size", 1).code == 0


def test_what_cannot_be_had_is_refused_before_any_work(
    predictor: Predictor, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with raises(UsageError, what="output", found=".npy"):
        vitdeploy.predict(predictor, folder, tmp_path / "out.npy")
    with raises(UsageError, what="top_k", found=0):
        vitdeploy.predict(predictor, folder, tmp_path / "out.csv", top_k=0)
    wrong: Any = "skip"
    with raises(UsageError, what="on_error"):
        vitdeploy.predict(predictor, folder, tmp_path / "out.csv", on_error=wrong)
    table = tmp_path / "table.csv"
    table.write_text("image\nimages/0/00.png\n", encoding="utf-8")
    for output in (table, folder / "out.csv"):
        with raises(UsageError, what="output"):
            vitdeploy.predict(predictor, [folder, table], output)
    with raises(InputError, where=tmp_path / "absent"):
        vitdeploy.predict(predictor, tmp_path / "absent", tmp_path / "out.csv")
    pipe = tmp_path / "pipe.csv"
    os.mkfifo(pipe)
    (tmp_path / "link.csv").symlink_to(pipe)
    with raises(OutputError, what="output", where=tmp_path / "link.csv"):
        vitdeploy.predict(predictor, folder, tmp_path / "link.csv")
    assert pipe.is_fifo(), "not replaced by a file"
    for path in paths_of(folder):
        Path(path).write_bytes(b"")
    with raises(ImageError, what="images"):
        vitdeploy.predict(predictor, folder, tmp_path / "out.csv")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.delitem(sys.modules, "vitdeploy.batch.prediction_parquet", raising=False)
    with raises(MissingDependencyError):
        vitdeploy.predict(predictor, folder, tmp_path / "out.parquet")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "link.csv", "pipe.csv", "table.csv"]
