"""Jobs that write a file with a row per image: their unfinished work, and the data sets that they read."""

from __future__ import annotations

import contextlib
import csv
import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import vitdeploy
from fuzz.cases import DAMAGED, PASSED, UNAVAILABLE, Case
from fuzz.damage import choose, damaged
from fuzz.data_sets import DataSets
from fuzz.special_files import copy_tree, replace, rewrite
from vitdeploy.system.progress import Progress

if TYPE_CHECKING:
    from vitdeploy.batch.embed_job import EmbeddedImages
    from vitdeploy.batch.predict_job import PredictedImages

_OUTPUT = "vectors.npy"
Row = tuple["list[float]", "str | None"]  # the scores of an image, and its error


class _Stop(Exception):  # noqa: N818  (it is no error)
    pass


class _StoppedAfter(Progress):
    """Ends a job after a number of images."""

    def __init__(self, images: int) -> None:
        self._images = images

    def step(self, text: str) -> None:
        """Take no notice."""

    def advance(self, done: int, total: int) -> None:
        if done >= self._images:
            raise _Stop


class UnfinishedJobs:
    """The folder of an interrupted `embed`, damaged.

    Oracle: refused, or the output is that of an uninterrupted run, to the byte.
    """

    def __init__(self, base: Path) -> None:
        self._bundle, self._data = base / "features", base / "data"
        self._predictor = vitdeploy.load(self._bundle)
        work = base.parent / "jobs"
        work.mkdir(exist_ok=True)
        with contextlib.suppress(_Stop):
            vitdeploy.embed(self._predictor, self._data, work / _OUTPUT, batch_size=1, progress=_StoppedAfter(4))
        self._work = work / f"{_OUTPUT}.unfinished"
        self._files = sorted(path.relative_to(self._work) for path in self._work.rglob("*") if path.is_file())
        vitdeploy.embed(self._predictor, self._data, work / "whole.npy", batch_size=1)
        self._whole = (work / "whole.npy").read_bytes()

    def make(self, rng: np.random.Generator, folder: Path) -> Case:
        work = copy_tree(self._work, folder / self._work.name)
        file, other = (work / choose(rng, self._files) for _ in range(2))
        content = file.read_bytes()
        kind = choose(rng, ("damaged", "damaged", "damaged", "swapped", "gone", "special", "twice", "cut", "folder"))
        if kind == "damaged":
            note, content = damaged(rng, content)
            rewrite(file, content)
            kind = f"damaged {note}"
        elif kind == "swapped":
            rewrite(file, other.read_bytes())
        elif kind == "gone":
            file.unlink()
        elif kind == "special":
            kind, _ = replace(rng, file)
        elif kind == "twice":
            lines = content.splitlines(keepends=True)
            at = int(rng.integers(len(lines)))
            rewrite(file, b"".join([*lines[: at + 1], *lines[at:]]))
        elif kind == "cut":  # by a kill, at any byte
            rewrite(file, content[: int(rng.integers(len(content)))])
        else:
            file.unlink()
            file.mkdir()

        def call() -> bytes:
            vitdeploy.embed(self._predictor, self._data, folder / _OUTPUT, batch_size=1)
            return (folder / _OUTPUT).read_bytes()

        def check(written: bytes) -> str | None:
            return None if written == self._whole else "the output is another than that of an uninterrupted run"

        args = ("embed", str(self._bundle), str(self._data), "--output", _OUTPUT, "--batch-size", "1")
        return Case(f"{file.name}: {kind}", args, frozenset({PASSED, UNAVAILABLE, DAMAGED}), check, call)


class JobInputs:
    """The data sets of `DataSets`, whose labels a job does not read.

    Oracle: refused with 4; or a row for each image that the result states, finite unless the image could not be read.
    """

    def __init__(self, base: Path) -> None:
        self._bundle, self._sets = base / "features", DataSets(base)
        self._predictor = vitdeploy.load(self._bundle)

    def make(self, rng: np.random.Generator, folder: Path) -> Case:
        note, name = self._sets.draw(rng, folder)

        def call() -> EmbeddedImages:
            return vitdeploy.embed(self._predictor, name, _OUTPUT)

        def check(result: EmbeddedImages) -> str | None:
            rows = np.load(folder / _OUTPUT)
            unread = len(rows) - int(np.isfinite(rows).all(axis=1).sum())
            if not 1 <= result.images == len(rows) or unread != len(result.failed):
                return f"{result.images} images, {len(rows)} rows, {unread} without a vector: {result.failed}"
            return None

        args = ("embed", str(self._bundle), name, "--output", _OUTPUT, "--json")
        return Case(note, args, frozenset({PASSED, DAMAGED}), check, call)


class PredictJobInputs:
    """The data sets of `DataSets`, predicted into each format of output.

    Oracle: refused with 4; or a row for each image that the result states: with an error if the image could not be
    read, else with classes whose scores sum to 1 at most.
    """

    def __init__(self, base: Path) -> None:
        self._bundle, self._sets = base / "bundle", DataSets(base)
        self._predictor = vitdeploy.load(self._bundle)

    def make(self, rng: np.random.Generator, folder: Path) -> Case:
        note, name = self._sets.draw(rng, folder)
        output = f"out{choose(rng, _ENDINGS)}"

        def call() -> PredictedImages:
            return vitdeploy.predict(self._predictor, name, output)

        def check(result: PredictedImages) -> str | None:
            rows = _READERS[Path(output).suffix](folder / output)
            failed = [row for row, (_, error) in enumerate(rows) if error is not None]
            if not 1 <= result.images == len(rows) or failed != [image.row for image in result.failed]:
                return f"{result.images} images, {len(rows)} rows, {failed} failed: {result.failed}"
            odd = [
                row for row, (scores, error) in enumerate(rows)
                if bool(scores) == bool(error) or not 0 <= sum(scores) <= 1 + 1e-5
            ]  # fmt: skip
            return f"rows {odd} have neither scores nor an error" if odd else None

        args = ("predict", str(self._bundle), name, "--output", output, "--json")
        return Case(note, args, frozenset({PASSED, DAMAGED}), check, call)


def _json_rows(file: Path) -> list[Row]:
    rows = [json.loads(line) for line in file.read_text(encoding="ascii").splitlines()]
    return [([best["score"] for best in row["predictions"] or ()], row["error"]) for row in rows]


def _csv_rows(file: Path) -> list[Row]:
    with file.open(encoding="utf-8", errors="surrogateescape", newline="") as opened:
        return [_of_columns(row) for row in csv.DictReader(opened)]


def _parquet_rows(file: Path) -> list[Row]:
    import pyarrow.parquet as pq

    return [_of_columns(row) for row in pq.read_table(file).to_pylist()]


def _of_columns(row: dict[str, Any]) -> Row:
    scores = [value for name, value in row.items() if name.startswith("score") and value not in (None, "")]
    return [float(score) for score in scores], row["error"] or None


_READERS: dict[str, Callable[[Path], list[Row]]] = {".jsonl": _json_rows, ".csv": _csv_rows}
if find_spec("pyarrow"):
    _READERS[".parquet"] = _parquet_rows
_ENDINGS = tuple(_READERS)
