"""Run the images of folders, files and data sets into one file: a row for each, resumable, in bounded memory."""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import hashlib
import itertools
import os
import secrets
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import PIL

from vitdeploy._version import __version__
from vitdeploy.assess.data.image_set import open_all
from vitdeploy.assess.data.loader import Prepared, prepare
from vitdeploy.assess.evaluate.loop import BATCHES_AHEAD, that_counts
from vitdeploy.batch.unfinished import Unfinished, writing
from vitdeploy.bundle.output_paths import check_outputs
from vitdeploy.errors import ImageError, InputError, OutputError, first_line
from vitdeploy.files.atomic import move_file
from vitdeploy.files.label_tables import TABLE_ENDINGS
from vitdeploy.files.output_files import check_writable, is_stream
from vitdeploy.images.formats import readable_formats
from vitdeploy.images.pixel_limit import limits_in_effect
from vitdeploy.predictor import batch_size_for, check_batch_size
from vitdeploy.system.cpu import usable_cpus

if TYPE_CHECKING:
    from vitdeploy.assess.data.folder_listing import LeftOut
    from vitdeploy.assess.data.image_set import ImageSet
    from vitdeploy.predictor import Predictor
    from vitdeploy.runtimes.base import Runtime
    from vitdeploy.system.progress import Progress

PathLike = str | os.PathLike[str]
OnError = Literal["record", "stop"]


@dataclasses.dataclass(frozen=True)
class FailedImage:
    """An image that could not be read: its row, its path and the reason."""

    row: int
    path: str
    error: str


@dataclasses.dataclass(frozen=True)
class FinishedJob:
    """A job whose output is written.

    Attributes:
        images: Number of images and rows, N.
        failed: Images that could not be read.
        resumed: Number of images that an earlier, interrupted run had finished.
        left_out: Files that are not among the images, by folder.
    """

    images: int
    failed: tuple[FailedImage, ...]
    resumed: int
    left_out: dict[str, LeftOut]


def result_dict(result: Any) -> dict[str, Any]:
    """The fields of a job's result, a dataclass with `left_out`, as plain values."""
    left_out = {folder: files.to_dict() for folder, files in result.left_out.items()}
    return {**dataclasses.asdict(result), "left_out": left_out}


class Rows(abc.ABC):
    """The row that a job computes for each image, and the file that it makes of all rows.

    Attributes:
        form: Name of the rows' content, with its version.
        verb: The work, such as "embedding".
        dtype: Type of the elements of a row.
        missing: Element of the row of an image that cannot be read.
        width: Elements of a row, W.
    """

    form: ClassVar[str]
    verb: ClassVar[str]
    dtype: ClassVar[np.dtype[Any]]
    missing: ClassVar[Any]
    width: int

    @abc.abstractmethod
    def identity(self) -> dict[str, Any]:
        """The options that change rows, as plain values."""

    @abc.abstractmethod
    def compute(self, pixels: np.ndarray, names: Sequence[str], first: int) -> np.ndarray:
        """Preprocessed images (n, ...), named, whose batch begins at row `first` -> (n, W).

        Raises:
            NotFiniteError: If an image's values are NaN or infinite.
        """

    @abc.abstractmethod
    def write(self, unfinished: Unfinished, names: Sequence[str], errors: Mapping[int, str]) -> Path:
        """Write the output of a finished job.

        Args:
            unfinished: Has the rows of all images.
            names: Path of each of N images.
            errors: Why images could not be read, by row.

        Returns:
            The file to move to its place: `unfinished.rows` or `unfinished.finished`.

        Raises:
            OSError, OutputError: If a file cannot be written.
        """


def run_image_job(
    predictor: Predictor,
    images: PathLike | Sequence[PathLike],
    outputs: Mapping[str, Path | None],
    rows: Rows,
    *,
    batch_size: int | None,
    on_error: OnError,
    progress: Progress,
) -> FinishedJob:
    """Compute a row for each image, in their order, and write the first of the outputs.

    Args:
        predictor: The opened bundle.
        images: See `open_all`.
        outputs: Files that will be written, by name.
        rows: What is computed.
        batch_size: Images per run. Default: the predictor's.
        on_error: "record" to continue after an image that cannot be read; "stop" to raise its error.
        progress: Receives the number of finished images.

    Raises:
        UsageError: If an argument is invalid, or an output would overwrite an input.
        InputError: If there are no images, a folder or a data set vanished, or the work of an interrupted run is of
            another model or other images.
        ImageError: If an image cannot be read, with "stop"; if none can, with "record".
        NotFiniteError: If an image's values are NaN or infinite.
        OutputError: If a file cannot be written; the work is kept.
    """
    paths = [images] if isinstance(images, (str, os.PathLike)) else list(images)
    size = predictor.batch_size if batch_size is None else batch_size
    check_batch_size(size)
    size = batch_size_for(predictor.processor, predictor.runtime, size)
    bundle = predictor.details.get("folder", predictor.details.get("bundle"))
    check_outputs(outputs, {"images": paths}, bundle=bundle)
    files = [path for path in outputs.values() if path is not None]
    for path in files:
        check_writable(path)
        if is_stream(path):  # which the finished file would replace
            raise OutputError(f"{path} is a pipe or a device", what="output", where=path, hint="name a regular file")
    target = files[0].resolve()
    progress.step("listing images")
    image_set, left_out = open_all(paths, keep_unreadable=on_error == "record")
    sources = [path for path in map(Path, paths) if path.is_dir() or path.suffix.lower() in TABLE_ENDINGS]
    folders = set(map(_folder, image_set.names))
    job = _Job(predictor, image_set, _devices(map(str, sources)), _devices(folders), rows, size, on_error)
    with Unfinished(target, job.header(), rows.dtype, (len(image_set), rows.width)) as unfinished:
        progress.step(f"{rows.verb} {len(image_set)} images")
        errors = job.run(unfinished, progress)
        unfinished.finish()
        if len(errors) == len(image_set):
            unfinished.remove()
            raise ImageError(f"none of {len(errors)} images could be read; the first: {errors[0]}", what="images")
        resumed = sum(batch["rows"] for batch in unfinished.batches)
        with writing(target):
            unfinished.finished.unlink(missing_ok=True)  # of a killed run, or a link
            try:
                move_file(rows.write(unfinished, image_set.names, errors), target)
            except OSError:
                unfinished.finished.unlink(missing_ok=True)  # leave its space to others
                raise
        unfinished.remove()
    failed = tuple(FailedImage(row, image_set.names[row], error) for row, error in errors.items())
    return FinishedJob(len(image_set), failed, resumed, left_out)


@dataclasses.dataclass(frozen=True)
class _Job:
    """Images, what is computed for them, and where they were when they were listed.

    Attributes:
        sources: Folders and data sets that were given, with the device of each: that of a network drive's folder is
            another one without the drive.
        folders: Existing folders of the images, with their devices.
    """

    predictor: Predictor
    images: ImageSet
    sources: Mapping[str, int]
    folders: Mapping[str, int]
    rows: Rows
    batch_size: int
    on_error: str

    def header(self) -> dict[str, Any]:
        """Identity of the work: finished batches are reused only if it is equal."""
        return {
            "format": self.rows.form,
            # The model of a predictor assembled from parts is unknown: another run does not continue.
            "model": self.predictor.fingerprint or secrets.token_hex(),
            "backend": self.predictor.runtime.backend,
            "precision": self.predictor.runtime.precision,
            "details": that_counts(self.predictor.runtime.details),
            **self.rows.identity(),
            "batch_size": self.batch_size,
            "images": len(self.images),
            "names": _sha256(self.images.names),
            "folders": _sha256(sorted(self.folders)),  # one that has vanished since may come back
            "versions": {"vitdeploy": __version__, "pillow": PIL.__version__, "numpy": np.__version__},
        }

    def run(self, unfinished: Unfinished, progress: Progress) -> dict[int, str]:
        """Compute the rows of the unfinished batches; the reasons why images could not be read, by row."""
        finished, threads = unfinished.batches, usable_cpus().workers
        reads = [*limits_in_effect(), len(readable_formats())]  # more of each reads more images
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
                    failed = self._restored(finished[number], sha256, reads, first, unfinished.path)
                else:
                    failed = [
                        [row, first_line(image.error)]
                        for row, image in enumerate(batch, first)
                        if image.error is not None
                    ]
                    self._check_sources(batch, first)
                    entry = {
                        "batch": number,
                        "sha256": sha256,
                        "errors": failed,
                        "reads": reads,
                        "largest": _largest(batch),
                    }
                    unfinished.append(self._computed(batch, first), entry)
                errors.update((row, text) for row, text in failed)
                progress.advance(first + len(batch), len(self.images))
        return errors

    def _computed(self, batch: Sequence[Prepared], first: int) -> np.ndarray:
        """Rows of a batch, (n, W)."""
        rows = np.full((len(batch), self.rows.width), self.rows.missing, self.rows.dtype)
        intact = [row for row, image in enumerate(batch) if image.error is None]
        if intact:
            runtime = self.predictor.runtime
            # An engine may take no batch as small as one with bad images, or the last one: its last image repeats.
            run = intact + intact[-1:] * (_fewest(runtime) - len(intact))
            pixels = np.concatenate([batch[row].pixels[runtime.pixels] for row in run])
            computed = self.rows.compute(pixels, [self.images.names[first + row] for row in run], first)
            rows[intact] = computed[: len(intact)]
        return rows

    def _check_sources(self, batch: Sequence[Prepared], first: int) -> None:
        """Raise InputError if images cannot be read because their folder or data set is gone: they may come back."""
        names = [self.images.names[row] for row, image in enumerate(batch, first) if not image.sha256]
        folders = {folder: self.folders[folder] for folder in map(_folder, names) if folder in self.folders}
        for place, device in {**self.sources, **folders}.items() if names else ():
            if _devices([place]).get(place) != device:
                message = f"{place} has vanished since its images were listed"
                hint = "once it is back, the same call continues"
                raise InputError(message, what="images", where=place, found=names[0], hint=hint)

    def _restored(
        self, entry: dict[str, Any], sha256: str, reads: Sequence[int], first: int, work: Path
    ) -> list[list[Any]]:
        """The failed images of a finished batch.

        Raises:
            InputError: If one of its images has changed, or other images of it may be readable now.
            ImageError: If an image could not be read, and that is to stop the job.
        """
        if entry["sha256"] != sha256:
            name = self.images.names[first]
            message = f"an image from {name!r} on has changed since its batch was finished"
            raise InputError(message, what="images", found=name, where=work, hint=f"remove {work}")
        failed: list[list[Any]] = entry["errors"]
        then = entry["reads"]
        fewer = reads != then and any(
            now < needed for now, needed in zip(reads, [*entry["largest"], then[-1]], strict=True)
        )
        more = failed and any(now > before for now, before in zip(reads, then, strict=True))
        if fewer or more:
            message = "the limit of pixels or the readable formats have changed since images were read"
            hint = f"set the limit as before, or remove {work}"
            raise InputError(message, what="reads", expected=then, found=reads, where=work, hint=hint)
        if failed and self.on_error == "stop":
            row, text = failed[0]
            raise ImageError(text, what="images", found=self.images.names[row])
        return failed


def _largest(batch: Sequence[Prepared]) -> list[int]:
    """The largest image of a batch, and the largest resized one, in pixels."""
    return [max(counts) for counts in zip(*(image.counts for image in batch), strict=True)]


def _fewest(runtime: Runtime) -> int:
    """Fewest images of a run."""
    size = runtime.inputs[0].shape[0]
    return size if isinstance(size, int) else runtime.axes[size].minimum if size in runtime.axes else 1


def _folder(name: str) -> str:
    return os.path.dirname(name) or "."  # noqa: PTH120  (pathlib takes 8 times as long, for every image)


def _devices(places: Iterable[str]) -> dict[str, int]:
    """The device of each existing file or folder."""
    devices = {}
    for place in places:
        with contextlib.suppress(OSError):
            devices[place] = os.stat(place).st_dev  # noqa: PTH116  (as in `_folder`)
    return devices


def _sha256(texts: Sequence[str]) -> str:
    return hashlib.sha256("".join(f"{text}\0" for text in texts).encode("utf-8", "surrogatepass")).hexdigest()
