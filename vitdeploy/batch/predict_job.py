"""Predict the classes of the images of folders, files and data sets into one file."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitdeploy.batch.image_job import FailedImage, OnError, PathLike, Rows, result_dict, run_image_job
from vitdeploy.batch.prediction_files import PREDICTION, FinishedPredictions, prediction_writer
from vitdeploy.predictor import Predictor
from vitdeploy.system.argument_types import typed
from vitdeploy.system.progress import SILENT, Progress

if TYPE_CHECKING:
    from collections.abc import Callable

    from vitdeploy.assess.data.folder_listing import LeftOut
    from vitdeploy.batch.unfinished import Unfinished


@dataclasses.dataclass(frozen=True)
class PredictedImages:
    """The result of `predict`.

    Attributes:
        output: The file of predictions.
        images: Number of images and rows, N.
        problem_type: How logits became scores; see `Predictor`.
        ranks: Classes of each image, or values of a regression, K.
        failed: Images that could not be read.
        resumed: Number of images that an earlier, interrupted run had finished.
        left_out: Files that are not among the images, by folder.
    """

    output: str
    images: int
    problem_type: str
    ranks: int
    failed: tuple[FailedImage, ...]
    resumed: int
    left_out: dict[str, LeftOut]

    def to_dict(self) -> dict[str, Any]:
        return result_dict(self)


@typed
def predict(
    predictor: Predictor,
    images: PathLike | Sequence[PathLike],
    output: PathLike,
    *,
    top_k: int | None = None,
    batch_size: int | None = None,
    on_error: OnError = "record",
    progress: Progress = SILENT,
) -> PredictedImages:
    """Predict images into a file of one row per image, in their order; see `Predictor.predict`.

    `.csv` and `.parquet` files have the columns `path`, `label`, `index`, `score`, then `label_2`, `index_2`, `score_2`
    and so on for the next classes, and `error`. A line of a `.jsonl` file is an object with `path`, `predictions` (a
    list of objects with `label`, `index` and `score`) and `error`. The row of an image that cannot be read has its path
    and the error; the other values are null, or empty in CSV.

    The work of an interrupted run stays in the folder `OUTPUT.unfinished`; the same call continues it, and writes the
    file that an uninterrupted run writes. Neither images nor predictions are all in memory.

    Args:
        predictor: The opened bundle.
        images: Image files; folders of images; .csv, .tsv or .parquet files; or folders of .parquet files.
        output: File with the ending `.csv`, `.jsonl` or `.parquet`; an existing one is replaced.
        top_k: See `Predictor.predict`.
        batch_size: Images per run. Default: the predictor's.
        on_error: "record" to continue after an image that cannot be read; "stop" to raise its error, after which a
            call with "record" continues.
        progress: Receives the number of finished images.

    Raises:
        UsageError: As `Predictor.predict`, or if the output would overwrite an input or has another ending.
        InputError: If there are no images, a folder or a data set vanished, or the work of an interrupted run is of
            another model or other images.
        ImageError: If an image cannot be read, with "stop"; if none can, with "record".
        NotFiniteError: If the logits of an image are NaN or infinite.
        MissingDependencyError: If pyarrow is not installed, for parquet.
        OutputError: If the file cannot be written; the work is kept.
    """
    target = Path(output)
    rows = _Predictions(predictor, predictor.classes_asked(top_k), prediction_writer(target))
    done = run_image_job(
        predictor,
        images,
        {"output": target},
        rows,
        batch_size=batch_size,
        on_error=on_error,
        progress=progress,
    )
    kind = str(predictor.problem_type)
    return PredictedImages(str(output), done.images, kind, rows.width, done.failed, done.resumed, done.left_out)


class _Predictions(Rows):
    """Predictions, (N, K) of index and score."""

    form, verb = "vitdeploy predictions 2", "predicting"
    dtype, missing = PREDICTION, np.array((-1, np.nan), PREDICTION)

    def __init__(self, predictor: Predictor, width: int, writer: Callable[[FinishedPredictions, Path], None]) -> None:
        self._predictor, self.width, self._writer = predictor, width, writer

    def identity(self) -> dict[str, Any]:
        return {"problem_type": str(self._predictor.problem_type), "top_k": self.width}

    def compute(self, pixels: np.ndarray, names: Sequence[str], first: int) -> np.ndarray:
        logits = self._predictor.logits(pixels)
        self._predictor.check_finite("logits", logits, names, first)
        rows = np.empty((len(logits), self.width), PREDICTION)
        rows["index"], rows["score"] = self._predictor.problem_type.best(logits, self.width)
        return rows

    def write(self, unfinished: Unfinished, names: Sequence[str], errors: Mapping[int, str]) -> Path:
        predictions = FinishedPredictions(unfinished.rows, self._predictor.labels, names, errors)
        self._writer(predictions, unfinished.finished)
        return unfinished.finished
