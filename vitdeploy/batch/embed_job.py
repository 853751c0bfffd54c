"""Embed the images of folders, files and parquet data sets into one file."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import PIL

from vitdeploy._version import __version__
from vitdeploy.assess.data.image_set import open_all
from vitdeploy.assess.data.loader import Prepared, prepare
from vitdeploy.assess.evaluate.loop import BATCHES_AHEAD, that_counts
from vitdeploy.batch.outputs import names_file, parquet_writer, put_in_place
from vitdeploy.batch.unfinished import Unfinished
from vitdeploy.bundle.output_paths import check_outputs
from vitdeploy.errors import ImageError, InputError, first_line
from vitdeploy.files.output_files import check_writable
from vitdeploy.predictor import Predictor, batch_size_for, check_batch_size
from vitdeploy.specs import Pool
from vitdeploy.system.argument_types import typed
from vitdeploy.system.cpu import usable_cpus
from vitdeploy.system.progress import SILENT, Progress

if TYPE_CHECKING:
    from vitdeploy.assess.data.folder_listing import LeftOut
    from vitdeploy.assess.data.image_set import ImageSet
    from vitdeploy.models.layers.pooling import Pooling

_PathLike = str | os.PathLike[str]
OnError = Literal["record", "stop"]


@dataclasses.dataclass(frozen=True)
class FailedImage:
    """An image that could not be read: its row, its path and the reason."""

    row: int
    path: str
    error: str


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
        left_out = {folder: files.to_dict() for folder, files in self.left_out.items()}
        return {**dataclasses.asdict(self), "left_out": left_out}


@typed
def embed(
    predictor: Predictor,
    images: _PathLike | Sequence[_PathLike],
    output: _PathLike,
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
        InputError: If there are no images, or the work of an interrupted run is of another model or other images.
        ImageError: If an image cannot be read, with "stop"; if none can, with "record".
        NotFiniteError: If the vector of an image is NaN or infinite.
        MissingDependencyError: If pyarrow is not installed, for parquet.
        OutputError: If a file cannot be written.
    """
    paths = [images] if isinstance(images, (str, os.PathLike)) else list(images)
    target = Path(output)
    names = names_file(target)
    pooling = predictor.pooling(pool)
    size = predictor.batch_size if batch_size is None else batch_size
    check_batch_size(size)
    size = batch_size_for(predictor.processor, predictor.runtime, size)
    if names is None:
        parquet_writer()
    bundle = predictor.details.get("folder", predictor.details.get("bundle"))
    check_outputs({"output": target, "the table of paths": names}, {"images": paths}, bundle=bundle)
    for path in filter(None, (target, names)):
        check_writable(path)
    target = target.resolve()
    progress.step("listing images")
    image_set, left_out = open_all(paths)
    job = _Job(predictor, image_set, pooling, normalize, size, on_error)
    with Unfinished(target, job.header(), (len(image_set), pooling.width)) as unfinished:
        progress.step(f"embedding {len(image_set)} images")
        errors = job.run(unfinished, progress)
        unfinished.finish()
        if len(errors) == len(image_set):
            unfinished.remove()
            raise ImageError(f"none of {len(errors)} images could be read; the first: {errors[0]}", what="images")
        resumed = sum(batch["rows"] for batch in unfinished.batches)
        put_in_place(unfinished.vectors, target, names, image_set.names, errors)
        unfinished.remove()
    failed = tuple(FailedImage(row, image_set.names[row], error) for row, error in errors.items())
    embedding = {"output": pooling.output, "pool": pooling.pool, "normalize": normalize or pooling.normalize}
    table = None if names is None else str(names)
    return EmbeddedImages(str(output), table, len(image_set), pooling.width, embedding, failed, resumed, left_out)


@dataclasses.dataclass(frozen=True)
class _Job:
    """Images, and how they are embedded."""

    predictor: Predictor
    images: ImageSet
    pooling: Pooling
    normalize: bool
    batch_size: int
    on_error: str

    def header(self) -> dict[str, Any]:
        """Identity of the work: finished batches are reused only if it is equal."""
        listing = "".join(f"{name}\0" for name in self.images.names)
        return {
            "format": "vitdeploy embeddings 1",
            # The model of a predictor assembled from parts is unknown: another run does not continue.
            "model": self.predictor.fingerprint or secrets.token_hex(),
            "backend": self.predictor.runtime.backend,
            "precision": self.predictor.runtime.precision,
            "details": that_counts(self.predictor.runtime.details),
            "embedding": {**dataclasses.asdict(self.pooling), "normalize": self.normalize},
            "batch_size": self.batch_size,
            "images": len(self.images),
            "names": hashlib.sha256(listing.encode("utf-8", "surrogatepass")).hexdigest(),
            "versions": {"vitdeploy": __version__, "pillow": PIL.__version__, "numpy": np.__version__},
        }

    def run(self, unfinished: Unfinished, progress: Progress) -> dict[int, str]:
        """Embed the images of the unfinished batches; the reasons why images could not be read, by row."""
        finished, threads = unfinished.batches, usable_cpus().workers
        stream = prepare(
            self.images,
            self.predictor.processor,
            {self.predictor.runtime.pixels},
            first=len(finished) * self.batch_size,
            threads=threads,
            ahead=BATCHES_AHEAD * max(self.batch_size, threads),
            keep_errors=self.on_error == "record",
        )
        errors: dict[int, str] = {}
        with contextlib.closing(stream):
            for number, first in enumerate(range(0, len(self.images), self.batch_size)):
                batch = list(itertools.islice(stream, self.batch_size))
                sha256 = hashlib.sha256("".join(f"{image.sha256}\n" for image in batch).encode()).hexdigest()
                if number < len(finished):
                    failed = self._restored(finished[number], sha256, first)
                else:
                    failed = [
                        [row, first_line(image.error)]
                        for row, image in enumerate(batch, first)
                        if image.error is not None
                    ]
                    entry = {"batch": number, "sha256": sha256, "errors": failed}
                    unfinished.append(self._vectors(batch, first), entry)
                errors.update((row, text) for row, text in failed)
                progress.advance(first + len(batch), len(self.images))
        return errors

    def _vectors(self, batch: Sequence[Prepared], first: int) -> np.ndarray:
        """Vectors of a batch, (n, D); NaN for images that could not be read."""
        vectors = np.full((len(batch), self.pooling.width), np.nan, np.float32)
        rows = [row for row, image in enumerate(batch) if image.error is None]
        if rows:
            runtime = self.predictor.runtime
            pixels = np.concatenate([batch[row].pixels[runtime.pixels] for row in rows])
            pooled = self.pooling(runtime.run({"pixel_values": pixels}), normalize=self.normalize)
            names = [self.images.names[first + row] for row in rows]
            self.predictor.check_finite(self.pooling.output, pooled, names, first)
            vectors[rows] = pooled
        return vectors

    def _restored(self, entry: dict[str, Any], sha256: str, first: int) -> list[list[Any]]:
        """The failed images of a finished batch.

        Raises:
            InputError: If one of its images has changed.
            ImageError: If an image could not be read, and that is to stop the job.
        """
        if entry["sha256"] != sha256:
            name = self.images.names[first]
            message = f"an image from {name!r} on has changed since its batch was finished"
            raise InputError(message, what="images", found=name, hint="remove the unfinished work")
        failed: list[list[Any]] = entry["errors"]
        if failed and self.on_error == "stop":
            row, text = failed[0]
            raise ImageError(text, what="images", found=self.images.names[row])
        return failed
