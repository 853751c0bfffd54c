"""Accuracy of embeddings on labelled images: kNN classification and recall at k, in one pass over the images."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import itertools
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vitdeploy.assess.data.class_labels import BY_INDEX
from vitdeploy.assess.data.dataset import LabelledData, open_data
from vitdeploy.assess.data.loader import prepare
from vitdeploy.assess.evaluate.embedding_run import EmbeddingRun, Neighbours
from vitdeploy.assess.evaluate.labelled import LabelledAssessment, check_ran
from vitdeploy.assess.evaluate.loop import BATCHES_AHEAD
from vitdeploy.assess.metrics.neighbours import DEFAULT_NEIGHBOURS, RECALLS, check_neighbours, recalled
from vitdeploy.assess.runs.open_runtimes import OpenRuntimes
from vitdeploy.assess.runs.targets import select
from vitdeploy.bundle.bundle import Bundle
from vitdeploy.bundle.retry import retry_if_changed
from vitdeploy.errors import InputError, UsageError, check_count
from vitdeploy.predictor import check_batch_size
from vitdeploy.runtimes import BESIDE_OTHERS
from vitdeploy.specs import SEEDS, Pool, Task
from vitdeploy.system.argument_types import typed
from vitdeploy.system.cpu import usable_cpus
from vitdeploy.system.progress import SILENT, Progress

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vitdeploy.assess.metrics.accuracy import Accuracy


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class EmbeddingEvaluation(LabelledAssessment[Neighbours]):
    """The classes of every image's nearest neighbours, for every backend.

    A class is predicted by vote of the k nearest neighbours by cosine similarity. Without a gallery, each image is
    searched among all others of the data set (leave-one-out).

    Attributes:
        data: Folder or file of the query images.
        labels: Class names of the data set that is searched.
        images: Unique names of the N query images, with forward slashes.
        targets: Index of each image's label in `labels`, (N,) int32.
        data_sha256: SHA-256 of the name, label and bytes of every image, the gallery's included.
        results: One per backend and artifact, skipped ones included.
        settings: Number of neighbours, pooling, selection of images, and run settings.
        gallery: Folder or file of the images that are searched; None for leave-one-out.
        gallery_images: Number of images that each query is searched among.
        unmatched: Number of queries without another image of their class, which count as wrong.
        shared: Number of queries whose file is in the gallery, too; with leave-one-out, more than once in the data.
    """

    gallery: str | None = None
    gallery_images: int = 0
    unmatched: int = 0
    shared: int = 0

    @property
    def neighbours(self) -> int:
        """Number of neighbours that vote."""
        return int(self.settings["neighbours"])

    @property
    def method(self) -> str:
        """The images that are searched, as text."""
        if self.gallery is None:
            return f"leave-one-out among {len(self.images)} images"
        return f"among {self.gallery_images} images of {self.gallery}"

    @property
    def notes(self) -> tuple[str, ...]:
        """Remarks on what makes figures mislead, one line each."""
        of = "the gallery" if self.gallery else "the data"
        alone = f"{self.unmatched} images have no other image of their class in {of}, and count as wrong"
        where = (
            "in the gallery, too: each finds itself"
            if self.gallery
            else "in the data more than once: each finds a copy"
        )
        shared = f"{self.shared} images are {where}"
        fewer = (
            f"each image is searched among {self.gallery_images}, fewer than k = {self.neighbours}: all of them vote"
        )
        one = "all images have one class, and so has every neighbour"
        found = {
            alone: self.unmatched,
            shared: self.shared,
            fewer: self.gallery_images < self.neighbours,
            one: len(self.labels) == 1,
        }
        return tuple(text for text, count in found.items() if count)

    def best(self, result: Neighbours) -> NDArray[np.int32]:
        """The class by vote of each image, (N,); -1 for non-finite vectors."""
        check_ran(result)
        return result.classes

    def knn(self, result: Neighbours) -> Accuracy:
        """Images whose class by vote is their label."""
        return self.accuracy(self.best(result) == self.targets)

    def recall(self, result: Neighbours, count: int) -> Accuracy:
        """Images with an image of their class among the `count` nearest neighbours; `count` is one of `RECALLS`.

        UsageError for another count, or a skipped result.
        """
        check_ran(result)
        if count not in RECALLS:
            message = f"recall is measured at {', '.join(map(str, RECALLS))} neighbours, got {count!r:.40}"
            raise UsageError(message, what="count", expected=RECALLS, found=count)
        return self.accuracy(recalled(result.ranks, count))

    def figures(self, result: Neighbours) -> dict[str, Any]:
        reference = self.reference
        return {
            "knn": self.knn(result).to_dict(),
            "recall": {str(count): self.recall(result, count).to_dict() for count in RECALLS},
            "agreement": None if reference is None else self.agreement(result, reference).to_dict(),
            "not_finite": result.not_finite,
            "width": result.width,
        }

    def to_dict(self) -> dict[str, Any]:
        names = ("gallery", "gallery_images", "unmatched", "shared")
        return {**super().to_dict(), **{name: getattr(self, name) for name in names}}


@typed
@retry_if_changed
def evaluate_embeddings(
    bundle: str | os.PathLike[str] | Bundle,
    *,
    data: str | os.PathLike[str] | LabelledData,
    gallery: str | os.PathLike[str] | LabelledData | None = None,
    neighbours: int = DEFAULT_NEIGHBOURS,
    pool: Pool | None = None,
    backends: Sequence[str] | None = None,
    batch_size: int = 32,
    device: str = "cpu",
    limit: int | None = None,
    seed: int = 0,
    progress: Progress = SILENT,
) -> EmbeddingEvaluation:
    """Embed labelled images with every backend, and measure how well neighbours have the same class.

    Measured are the accuracy of a k-nearest-neighbours classifier, and recall at 1, 5 and 10: the share of images with
    an image of their class among as many nearest neighbours. See `vitdeploy.assess.metrics.neighbours` for ties.

    The vectors of every backend are in memory, 4 N D bytes each, and as much again for the one that is searched;
    similarities are computed in blocks of 16 MiB.

    Args:
        bundle: The bundle of a feature extractor, or its folder.
        data: Labelled images, as a path (see `open_data`) or opened; their classes are the data set's own.
        gallery: Labelled images to search among. Default: leave-one-out, all other images of `data`.
        neighbours: Number of neighbours that vote, from 1 to 200.
        pool: Pooling of the vectors; see `Predictor.embed`.
        backends: As for `evaluate`.
        batch_size: Images per run, 1 to 2**20.
        device: Device of every backend: "cpu", "cuda" or "cuda:1".
        limit: Maximum number of images in `data`; see `LabelledData.subset`.
        seed: Seed of the selection, with a limit.
        progress: Receives each step and its progress.

    Raises:
        BundleError: If the bundle is missing or was altered.
        UsageError: If the model gives no features, or an argument is invalid.
        InputError: If the data cannot be read, an image has no class, or its class is not in the gallery.
        ImageError: If an image cannot be read.
    """
    bundle = Bundle.of(bundle)
    check_count("seed", seed, *SEEDS)
    check_features(bundle)
    with OpenRuntimes(bundle, device, options=BESIDE_OTHERS) as runtimes:
        return run_embedding_evaluation(
            runtimes, data, gallery, neighbours=neighbours, pool=pool, backends=backends, batch_size=batch_size,
            limit=limit, seed=seed, progress=progress,
        )  # fmt: skip


def run_embedding_evaluation(
    runtimes: OpenRuntimes,
    data: str | os.PathLike[str] | LabelledData,
    gallery: str | os.PathLike[str] | LabelledData | None,
    *,
    neighbours: int,
    pool: Pool | None = None,
    backends: Sequence[str] | None,
    batch_size: int,
    limit: int | None = None,
    seed: int = 0,
    progress: Progress,
) -> EmbeddingEvaluation:
    """`evaluate_embeddings` on shared runtimes."""
    bundle = runtimes.bundle
    check_batch_size(batch_size)
    check_neighbours(neighbours)
    selection = select(bundle, backends)
    progress.step("reading the labels")
    whole, searched = open_labelled(data, gallery)
    queries = whole.subset(limit, seed)
    if searched is None and len(queries) < 2:
        raise InputError(
            f"leave-one-out needs two images or more, {whole.source} has {len(queries)}",
            what="images", where=whole.source, expected=2, found=len(queries), hint="add images, or give a gallery",
        )  # fmt: skip
    parts = [queries] if searched is None else [queries, searched]
    with contextlib.ExitStack() as stack:
        runs = []
        for selected in selection:
            progress.step(f"opening {selected}")
            runs.append(EmbeddingRun(selected, runtimes, sum(map(len, parts)), pool))
            stack.callback(runs[-1].close)
        progress.step(f"embedding {sum(map(len, parts))} images")
        digests = _embed(runs, parts, runtimes, batch_size, progress)
        progress.step("searching neighbours")
        others = None if searched is None else searched.targets
        results = tuple(run.neighbours(queries.targets, neighbours, others) for run in runs)
    copies, itself = collections.Counter(digests[-1]), int(searched is None)
    counts = np.bincount(queries.targets if others is None else others, minlength=len(queries.classes))
    return EmbeddingEvaluation(
        bundle=str(bundle.path),
        data=whole.source,
        labels=queries.classes,
        images=queries.names,
        targets=queries.targets,
        data_sha256=_sha256(parts, digests),
        results=results,
        settings={
            "neighbours": neighbours,
            "pool": pool,
            "kind": queries.kind,
            "images": len(whole),
            "batch_size": batch_size,
            "device": runtimes.device,
            "limit": limit,
            "seed": None if limit is None else seed,
        },
        processor=bundle.manifest.processor,
        left_out=queries.left_out,
        gallery=None if searched is None else searched.source,
        gallery_images=len(queries) - 1 if searched is None else len(searched),
        unmatched=int((counts[queries.targets] <= itself).sum()),
        shared=sum(copies[digest] > itself for digest in digests[0]),
    )


def open_labelled(
    data: str | os.PathLike[str] | LabelledData, gallery: str | os.PathLike[str] | LabelledData | None
) -> tuple[LabelledData, LabelledData | None]:
    """The queries and the gallery, with the gallery's classes; or the queries alone, with their own.

    InputError if a query's label is not in the gallery, or as `open_data`.
    """
    if gallery is None:
        return data if isinstance(data, LabelledData) else open_data(data, None), None
    searched = gallery if isinstance(gallery, LabelledData) else open_data(gallery, None)
    queries = data if isinstance(data, LabelledData) else open_data(data, searched.classes)
    if queries.classes != searched.classes:
        raise UsageError(
            "the queries have other classes than the gallery", what="gallery", expected=queries.classes,
            found=searched.classes, hint="open the queries with the classes of the gallery",
        )  # fmt: skip
    if queries.matched == BY_INDEX and not all(map(str.isdigit, searched.classes)):  # sorted names have no numbers
        raise InputError(
            f"the labels of {queries.source} are numbers, and those of the gallery {searched.source} are names",
            what="label", where=queries.source, expected=searched.classes, hint="use the names as labels",
        )  # fmt: skip
    return queries, searched


def check_features(bundle: Bundle) -> None:
    """Raise UsageError unless the bundle's model extracts features."""
    if bundle.manifest.task != Task.FEATURES:
        raise UsageError(
            f"neighbours need a model for {Task.FEATURES}, this one is for {bundle.manifest.task}",
            what="task", where=bundle.path, expected=str(Task.FEATURES), found=bundle.manifest.task,
            hint=f"export it with the task {Task.FEATURES}",
        )  # fmt: skip


def _embed(
    runs: Sequence[EmbeddingRun],
    parts: Sequence[LabelledData],
    runtimes: OpenRuntimes,
    batch_size: int,
    progress: Progress,
) -> list[list[str]]:
    """Run all images through every backend once; return the SHA-256 of each file, by part."""
    threads, total, done = usable_cpus().workers, sum(map(len, parts)), 0
    formats = {run.pixels for run in runs if run.pixels is not None}
    digests: list[list[str]] = []
    for part in parts:
        digests.append([])
        ahead = BATCHES_AHEAD * max(batch_size, threads)
        with contextlib.closing(prepare(part, runtimes.processor, formats, threads=threads, ahead=ahead)) as stream:
            while batch := list(itertools.islice(stream, batch_size)):
                for run in runs:
                    run.run(batch, done)
                digests[-1] += [image.sha256 for image in batch]
                done += len(batch)
                progress.advance(done, total)
    return digests


def _sha256(parts: Sequence[LabelledData], digests: Sequence[Sequence[str]]) -> str:
    """SHA-256 of the names, labels and bytes of all images."""
    of_all = hashlib.sha256()
    for part, of_part in zip(parts, digests, strict=True):
        for name, target, digest in zip(part.names, part.targets.tolist(), of_part, strict=True):
            of_all.update(f"{name}\0{part.classes[target]}\0{digest}\n".encode("utf-8", "surrogatepass"))
        of_all.update(b"\n")
    return of_all.hexdigest()
