"""Write the finished predictions of many images as CSV, JSON lines or parquet, part by part."""

from __future__ import annotations

import dataclasses
import itertools
import json
from typing import TYPE_CHECKING, Any

import numpy as np

from vitdeploy.batch.cell_text import as_utf_8, csv_writer, path_as_utf_8
from vitdeploy.errors import UsageError
from vitdeploy.system.imports import load_target

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

PREDICTION = np.dtype([("index", "<i4"), ("score", "<f4")])
_PREDICTIONS_A_PART = 1 << 17  # in memory at a time, some 70 bytes each
_PARQUET = "vitdeploy.batch.prediction_parquet:write_parquet"


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """Consecutive images.

    Attributes:
        names: Path of each of n images.
        indices: Classes or outputs, best first, (n, K) int32; -1 for an image that could not be read.
        scores: Their scores, (n, K) float32; NaN for an image that could not be read.
        errors: Why each image could not be read; None for the others.
    """

    names: Sequence[str]
    indices: np.ndarray
    scores: np.ndarray
    errors: Sequence[str | None]


@dataclasses.dataclass(frozen=True, eq=False)
class FinishedPredictions:
    """Predictions of N images, read part by part.

    Attributes:
        rows: A `.npy` file of (N, K) PREDICTION.
        labels: Class names, in the order of the logits.
        names: Path of each image.
        errors: Why images could not be read, by row.
    """

    rows: Path
    labels: Sequence[str]
    names: Sequence[str]
    errors: Mapping[int, str]

    @property
    def ranks(self) -> int:
        """Number of predictions for each image, K."""
        return int(np.load(self.rows, mmap_mode="r").shape[1])

    def parts(self, rows: int | None = None) -> Iterator[Part]:
        """The images in order, `rows` at a time. Default: as many as have `_PREDICTIONS_A_PART`."""
        content = np.load(self.rows, mmap_mode="r")
        rows = max(1, _PREDICTIONS_A_PART // content.shape[1]) if rows is None else rows
        for start in range(0, len(content), rows):
            part = np.array(content[start : start + rows])
            numbers = range(start, start + len(part))
            errors = [as_utf_8(self.errors[row]) if row in self.errors else None for row in numbers]
            yield Part(self.names[numbers.start : numbers.stop], part["index"], part["score"], errors)


def rank_columns(rank: int) -> tuple[str, str, str]:
    """Names of the columns of a rank, from 0: `label`, `index` and `score` of the best, `label_2` ... of the next."""
    ending = f"_{rank + 1}" if rank else ""
    return f"label{ending}", f"index{ending}", f"score{ending}"


def prediction_writer(output: Path) -> Callable[[FinishedPredictions, Path], None]:
    """The function that writes the format of an output's ending.

    Raises:
        UsageError: If the output has another ending.
        MissingDependencyError: If pyarrow is not installed, for parquet.
    """
    ending = output.suffix.lower()
    if ending == ".parquet":
        writer: Callable[[FinishedPredictions, Path], None]
        writer = load_target(_PARQUET, "writing parquet files", "parquet", "pyarrow")
        return writer
    if ending not in _WRITERS:
        expected = (*_WRITERS, ".parquet")
        raise UsageError(
            f"predictions are written to {', '.join(expected)}, got {output.name!r:.80}", what="output",
            where=output, expected=expected, found=ending, hint="give the output one of these endings",
        )  # fmt: skip
    return _WRITERS[ending]


def write_csv(content: FinishedPredictions, target: Path) -> None:
    """Write the columns `path`, `label`, `index`, `score`, those of the other ranks, and `error`.

    Paths keep their bytes. The cells of an image that could not be read are empty, except its path and its error.
    """
    ranks = content.ranks
    labels = [as_utf_8(label) for label in content.labels]
    with target.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        writer = csv_writer(file, itertools.chain(content.names, labels, content.errors.values()))
        writer.writerow(("path", *(name for rank in range(ranks) for name in rank_columns(rank)), "error"))
        for part in content.parts():
            for name, indices, scores, error in _rows(part):
                if error is None:
                    best = zip(indices, scores, strict=True)
                    cells: Any = (cell for index, score in best for cell in (labels[index], index, score))
                else:
                    cells = [""] * (3 * ranks)
                writer.writerow((name, *cells, error or ""))


def write_json_lines(content: FinishedPredictions, target: Path) -> None:
    """Write one object a line, in ASCII: `path`, `predictions` (a list, best first, or null) and `error` (or null)."""
    labels = [as_utf_8(label) for label in content.labels]
    with target.open("w", encoding="ascii", newline="\n") as file:
        for part in content.parts():
            for name, indices, scores, error in _rows(part):
                best = [
                    {"label": labels[index], "index": index, "score": score}
                    for index, score in zip(indices, scores, strict=True)
                ]
                row = {"path": path_as_utf_8(name), "predictions": best if error is None else None, "error": error}
                file.write(f"{json.dumps(row, allow_nan=False)}\n")


def _rows(part: Part) -> Iterator[tuple[str, list[int], list[float], str | None]]:
    return zip(part.names, part.indices.tolist(), part.scores.tolist(), part.errors, strict=True)


_WRITERS: dict[str, Callable[[FinishedPredictions, Path], None]] = {".csv": write_csv, ".jsonl": write_json_lines}
