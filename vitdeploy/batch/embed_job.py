"""Embed the images of folders, files and parquet data sets into one file."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitdeploy.batch.embedding_files import names_file, parquet_writer, write_names
from vitdeploy.batch.image_job import FailedImage, OnError, PathLike, Rows, result_dict, run_image_job
from vitdeploy.predictor import Predictor
from vitdeploy.specs import Pool
from vitdeploy.system.argument_types import typed
from vitdeploy.system.progress import SILENT, Progress

if TYPE_CHECKING:
    from vitdeploy.assess.data.folder_listing import LeftOut
    from vitdeploy.batch.unfinished import Unfinished
    from vitdeploy.models.layers.pooling import Pooling


@dataclasses.dataclass(frozen=True)
class EmbeddedImages:
    """The result of `embed`.

    Attributes:
        output: The file of vectors.
        names: The table of paths beside a `.npy` file; None for parquet.
        images: Number of images and rows, N.
        width: Length of a vector, D.
        embedding: The output of the artifact, the pooling outside it (None if there is none), and whether the vectors
            were normalized outside it.
        failed: Images that could not be read.
        resumed: Number of images that an earlier, interrupted run had finished.
        left_out: Files that are not among the images, by folder.
    """

    output: str
    names: str | None
    images: int
    width: int
    embedding: dict[str, Any]
    failed: tuple[FailedImage, ...]
    resumed: int
    left_out: dict[str, LeftOut]

    def to_dict(self) -> dict[str, Any]:
        return result_dict(self)


@typed
def embed(
    predictor: Predictor,
    images: PathLike | Sequence[PathLike],
    output: PathLike,
    *,
    pool: Pool | None = None,
    normalize: bool = False,
    batch_size: int | None = None,
    on_error: OnError = "record",
    progress: Progress = SILENT,
) -> EmbeddedImages:
    """Embed images into a file of one row per image, in their order; see `Predictor.embed`.

    A `.npy` file has (N, D) float32, and a table beside it, of the same name and the ending `.csv`, the columns `path`
    and `error`. A `.parquet` file has the columns `path`, `vector` and `error`. The row of an image that cannot be read
    is NaN, or null in parquet.

    The work of an interrupted run stays in the folder `OUTPUT.unfinished`; the same call continues it, and writes the
    file that an uninterrupted run writes. Neither images nor vectors are all in memory.

    Args:
        predictor: The opened bundle.
        images: Image files; folders of images; .csv, .tsv or .parquet files; or folders of .parquet files.
        output: File with the ending `.npy` or `.parquet`; an existing one is replaced.
        pool: See `Predictor.embed`.
        normalize: See `Predictor.embed`.
        batch_size: Images per run. Default: the predictor's.
        on_error: "record" to continue after an image that cannot be read; "stop" to raise its error, after which a
            call with "record" continues.
        progress: Receives the number of finished images.

    Raises:
        UsageError: As `Predictor.embed`, or if the output would overwrite an input or has another ending.
        InputError: If there are no images, a folder or a data set vanished, or the work of an interrupted run is of
            another model or other images.
        ImageError: If an image cannot be read, with "stop"; if none can, with "record".
        NotFiniteError: If the vector of an image is NaN or infinite.
        MissingDependencyError: If pyarrow is not installed, for parquet.
        OutputError: If a file cannot be written.
    """
    target = Path(output)
    table = names_file(target)
    pooling = predictor.pooling(pool)
    if table is None:
        parquet_writer()
    done = run_image_job(
        predictor, images, {"output": target, "the table of paths": table},
        _Vectors(predictor, pooling, normalize, table),
        batch_size=batch_size, on_error=on_error, progress=progress,
    )  # fmt: skip
    embedding = {"output": pooling.output, "pool": pooling.pool, "normalize": normalize or pooling.normalize}
    names = None if table is None else str(table)
    return EmbeddedImages(
        str(output), names, done.images, pooling.width, embedding, done.failed, done.resumed, done.left_out
    )


class _Vectors(Rows):
    """Embeddings, (N, D) float32; the row of an image that could not be read is NaN."""

    form, verb = "vitdeploy embeddings 3", "embedding"
    dtype, missing = np.dtype("<f4"), np.nan

    def __init__(self, predictor: Predictor, pooling: Pooling, normalize: bool, table: Path | None) -> None:
        self._predictor, self._pooling, self._normalize, self._table = predictor, pooling, normalize, table
        self.width = pooling.width

    def identity(self) -> dict[str, Any]:
        return {"embedding": {**dataclasses.asdict(self._pooling), "normalize": self._normalize}}

    def compute(self, pixels: np.ndarray, names: Sequence[str], first: int) -> np.ndarray:
        outputs = self._predictor.runtime.run({"pixel_values": pixels})
        vectors = self._pooling(outputs, normalize=self._normalize)
        self._predictor.check_finite(self._pooling.output, vectors, names, first)
        return vectors

    def write(self, unfinished: Unfinished, names: Sequence[str], errors: Mapping[int, str]) -> Path:
        if self._table is None:
            parquet_writer()(unfinished.rows, unfinished.finished, names, errors)
            return unfinished.finished
        write_names(self._table, names, errors)
        return unfinished.rows
