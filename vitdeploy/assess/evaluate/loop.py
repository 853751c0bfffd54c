"""Run every image through every backend once, and log finished batches."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL

from vitdeploy._version import __version__
from vitdeploy.assess.data.loader import prepare
from vitdeploy.errors import InputError
from vitdeploy.system.cpu import usable_cpus

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vitdeploy.assess.data.dataset import LabelledData
    from vitdeploy.assess.evaluate.backend_run import BackendRun
    from vitdeploy.assess.evaluate.resume_file import WorkFile
    from vitdeploy.bundle.bundle import Bundle
    from vitdeploy.images.processor import ImageProcessor
    from vitdeploy.system.progress import Progress

BATCHES_AHEAD = 2  # ready or in progress, while one runs


def run_all(
    runs: Sequence[BackendRun],
    images: LabelledData,
    labels: Sequence[str],
    processor: ImageProcessor,
    batch_size: int,
    work: WorkFile | None,
    progress: Progress,
) -> str:
    """Run the unfinished batches, and restore the finished ones.

    After a backend gives up, for example out of memory, no batch counts as finished, so that another run retries it.

    Returns:
        SHA-256 of the names, labels and bytes of all images.

    Raises:
        InputError: If an image of a finished batch has changed.
        ImageError: If an image cannot be read.
    """
    finished = work.batches if work is not None else []
    opened = [run for run in runs if run.skipped is None]
    threads = usable_cpus().workers
    stream = prepare(
        images,
        processor,
        {run.pixels for run in runs if run.pixels is not None},
        first=len(finished) * batch_size,
        threads=threads,
        ahead=BATCHES_AHEAD * max(batch_size, threads),
    )
    of_all = hashlib.sha256()
    with contextlib.closing(stream):
        for number, first in enumerate(range(0, len(images), batch_size)):
            batch = list(itertools.islice(stream, batch_size))
            text = "".join(
                f"{images.names[position]}\0{labels[images.targets[position]]}\0{image.sha256}\n"
                for position, image in enumerate(batch, first)
            )
            of_all.update(text.encode("utf-8", "surrogatepass"))
            sha256 = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
            if number < len(finished):
                _restore(runs, finished[number], sha256, first, len(batch), images)
            else:
                results = [run.run(batch, first) for run in runs]
                if work is not None and all(run.skipped is None for run in opened):
                    work.append({"batch": number, "sha256": sha256, "results": results})
            progress.advance(first + len(batch), len(images))
    return of_all.hexdigest()


def header(
    bundle: Bundle, images: LabelledData, runs: Sequence[BackendRun], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Header of a resume log: finished batches are reused only if it is equal."""
    listing = "".join(f"{name}\0{target}\n" for name, target in zip(images.names, images.targets.tolist(), strict=True))
    return {
        "format": "vitdeploy evaluation 2",
        "bundle": hashlib.sha256(bundle.manifest.to_json().encode()).hexdigest(),
        **settings,
        "data": hashlib.sha256(listing.encode("utf-8", "surrogatepass")).hexdigest(),
        "images": len(images),
        "backends": {f"{run.selected} {run.selected.precision}": that_counts(run.details) for run in runs},
        "versions": {"vitdeploy": __version__, "pillow": PIL.__version__, "numpy": np.__version__},
    }


def that_counts(details: Mapping[str, Any]) -> dict[str, Any]:
    """Details that change results: the number of threads, which orders the sums; not its reason or idle waiting."""
    return {
        name: value
        for name, value in details.items()
        if name not in ("threads_reason", "allow_spinning", "concurrent_runs")
    }


def _restore(
    runs: Sequence[BackendRun], entry: Mapping[str, Any], sha256: str, first: int, count: int, images: LabelledData
) -> None:
    try:
        if entry["sha256"] != sha256:
            raise InputError(
                f"an image from {images.names[first]!r} on has changed since its batch was finished",
                what="images", found=images.names[first], hint="name another file to resume from",
            )  # fmt: skip
        for run, result in zip(runs, entry["results"], strict=True):
            run.restore(result, first, count)
    except (KeyError, TypeError, ValueError) as exc:
        raise InputError(
            f"the finished batch {entry['batch']} is not valid: {type(exc).__name__} {exc}",
            what="resume", found=entry["batch"], hint="remove the file",
        ) from exc  # fmt: skip
