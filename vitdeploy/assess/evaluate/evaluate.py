"""Accuracy of every backend on labelled images, in one pass."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vitdeploy.assess.data.dataset import LabelledData, open_data
from vitdeploy.assess.data.folder_listing import left_out_dict
from vitdeploy.assess.evaluate.backend_run import BESIDE_OTHERS, BackendRun
from vitdeploy.assess.evaluate.loop import header, run_all
from vitdeploy.assess.evaluate.resume_file import WorkFile, check_work_file
from vitdeploy.assess.metrics.accuracy import Accuracy, Calibration, Predictions, calibration
from vitdeploy.assess.metrics.status import Assessment, counted
from vitdeploy.assess.runs.open_runtimes import OpenRuntimes
from vitdeploy.assess.runs.targets import REFERENCE, select
from vitdeploy.bundle.bundle import Bundle
from vitdeploy.bundle.output_paths import check_outputs
from vitdeploy.bundle.retry import retry_if_changed
from vitdeploy.bundle.scores import ProblemType
from vitdeploy.errors import UsageError, check_count
from vitdeploy.predictor import check_batch_size
from vitdeploy.specs import SEEDS, Precision
from vitdeploy.system.argument_types import typed
from vitdeploy.system.progress import SILENT, Progress
from vitdeploy.system.typed_lines import typed_line

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Evaluation(Assessment):
    """Predictions of every backend on a labelled data set.

    Attributes:
        data: Folder or file of the data set.
        labels: The model's class names, in the order of the logits.
        images: Unique names of the N images, with forward slashes.
        targets: Index of each image's label in `labels`, (N,) int32.
        data_sha256: SHA-256 of the name, label and bytes of every image.
        results: One per backend and artifact, skipped ones included.
        settings: Selection of images, label matching, and run settings.
    """

    data: str
    labels: tuple[str, ...]
    images: tuple[str, ...]
    targets: NDArray[np.int32]
    data_sha256: str
    results: tuple[Predictions, ...]
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def brief(self) -> str:
        """The result in a few words."""
        statuses = ["passed" if result.skipped is None else "skipped" for result in self.results]
        return f"{len(self.images)} images; {counted(statuses, 'backend')}"

    @property
    def status(self) -> str:
        """Outcome, "skipped" if a backend was skipped or none ran; else "passed"."""
        ran = [result.skipped is None for result in self.results]
        return "passed" if ran and all(ran) else "skipped"

    @property
    def reference(self) -> Predictions | None:
        """The reference's predictions, if it ran; those in float32 if it ran in several precisions."""
        references = [result for result in self.results if result.artifact == REFERENCE and result.skipped is None]
        return min(references, key=lambda result: result.precision != Precision.FP32, default=None)

    def top1(self, result: Predictions) -> Accuracy:
        """Images whose top-1 class is their label."""
        return self._accuracy(self._best(result) == self.targets)

    def top5(self, result: Predictions) -> Accuracy:
        """Images whose label is among the top-5 classes."""
        self._best(result)
        return self._accuracy((result.classes == self.targets[:, None]).any(axis=1))

    def per_class(self, result: Predictions) -> dict[str, Accuracy]:
        """Top-1 accuracy by label, for labels with images; a name shared by two classes ends in its index."""
        correct = self._best(result) == self.targets
        accuracies = {}
        for index, name in enumerate(self.class_names):
            members = np.flatnonzero(self.targets == index)
            if len(members):
                wrong = tuple(self.images[image] for image in members[~correct[members]])
                accuracies[name] = Accuracy(len(members) - len(wrong), len(members), wrong)
        return accuracies

    def confusion(self, result: Predictions) -> NDArray[np.int64]:
        """(C, C) counts of images by label (row) and top-1 class (column); finite logits only."""
        best, classes = self._best(result), len(self.labels)
        finite = best >= 0
        cells = self.targets[finite].astype(np.int64) * classes + best[finite]
        return np.bincount(cells, minlength=classes * classes).reshape(classes, classes)

    def confused(self, result: Predictions) -> list[tuple[str, str, int]]:
        """Confusions as label, top-1 class and image count, the most frequent first."""
        pairs = zip(self.targets.tolist(), self._best(result).tolist(), strict=True)
        counts = collections.Counter((label, best) for label, best in pairs if best not in (label, -1))
        ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        names = self.class_names
        return [(names[label], names[best], count) for (label, best), count in ordered]

    def calibration(self, result: Predictions) -> Calibration:
        """Calibration of the scores, in 15 bins of equal width."""
        return calibration(result.scores, self._best(result) == self.targets)

    def agreement(self, result: Predictions, with_: Predictions) -> Accuracy:
        """Images with the same top-1 class in both; two non-finite ones do not agree."""
        first, second = self._best(result), self._best(with_)
        return self._accuracy((first == second) & (first >= 0))

    @property
    def class_names(self) -> tuple[str, ...]:
        """`labels` made unique, with the index after a name that two classes share, such as ImageNet's cranes."""
        names = self.labels
        while len(counts := collections.Counter(names)) < len(names):  # a third class may have the name "crane (0)"
            names = tuple(name if counts[name] == 1 else f"{name} ({index})" for index, name in enumerate(names))
        return names

    def to_dict(self) -> dict[str, Any]:
        return {
            "status": self.status,
            "bundle": self.bundle,
            "processor": self.processor,
            "data": self.data,
            "data_sha256": self.data_sha256,
            "images": len(self.images),
            "labels": list(self.labels),
            "settings": self.settings,
            "left_out": left_out_dict(self.left_out),
            "results": [self._result_dict(result) for result in self.results],
        }

    def _result_dict(self, result: Predictions) -> dict[str, Any]:
        head = {
            "artifact": result.artifact,
            "backend": result.backend,
            "precision": result.precision,
            "status": "passed" if result.skipped is None else "skipped",
            "skipped": result.skipped,
            "details": result.details,
        }
        if result.skipped is not None:
            return head
        per_class = {name: accuracy.to_dict() for name, accuracy in self.per_class(result).items()}
        reference = self.reference
        return {
            **head,
            "top1": self.top1(result).to_dict(),
            "top5": self.top5(result).to_dict(),
            "agreement": None if reference is None else self.agreement(result, reference).to_dict(),
            "not_finite": result.not_finite,
            "calibration": self.calibration(result).to_dict(),
            "per_class": {name: {key: row[key] for key in row if key != "wrong"} for name, row in per_class.items()},
            "confused": [
                {"label": label, "predicted": best, "images": count} for label, best, count in self.confused(result)
            ],
        }

    def _best(self, result: Predictions) -> NDArray[np.int32]:
        if result.skipped is not None:
            raise UsageError(f"{result.name} was skipped: {result.skipped}", what=result.name, found=result.skipped)
        return result.classes[:, 0]

    def _accuracy(self, correct: NDArray[np.bool_]) -> Accuracy:
        wrong = tuple(self.images[image] for image in np.flatnonzero(~correct))
        return Accuracy(len(correct) - len(wrong), len(correct), wrong)


@typed
@retry_if_changed
def evaluate(
    bundle: str | os.PathLike[str] | Bundle,
    *,
    data: str | os.PathLike[str] | LabelledData,
    backends: Sequence[str] | None = None,
    batch_size: int = 32,
    device: str = "cpu",
    resume: str | os.PathLike[str] | None = None,
    limit: int | None = None,
    seed: int = 0,
    progress: Progress = SILENT,
) -> Evaluation:
    """Classify labelled images with every backend, in one pass over the decoded images.

    A data loader reads, decodes and preprocesses images ahead, in threads, while the backends run one after another.
    Backends that cannot run here are skipped, with the reason. An image with non-finite logits counts as wrong.

    Args:
        bundle: The bundle of a classifier, or its folder.
        data: Labelled images, as a path (see `open_data`) or opened.
        backends: Backends such as "onnxruntime", for every artifact that it runs, or "onnxruntime:fp16"; "torch" is the
            reference. Default: the reference and every artifact.
        batch_size: Images per run, 1 to 2**20.
        device: Device of every backend: "cpu", "cuda" or "cuda:1".
        resume: Resume log, created if missing, to which each finished batch is written. With the same bundle, data and
            arguments, finished batches are not computed again; their images are read again and must be unchanged.
        limit: Maximum number of images; see `LabelledData.subset`.
        seed: Seed of the selection, with a limit.
        progress: Receives each step and its progress.

    Raises:
        BundleError: If the bundle is missing or was altered.
        UsageError: If the model is not a single-label classifier, or an argument is invalid.
        InputError: If the data cannot be read or does not fit the model, or `resume` belongs to another evaluation.
        ImageError: If an image cannot be read.
        OutputError: If `resume` cannot be written.
    """
    bundle = Bundle.of(bundle)
    check_count("seed", seed, *SEEDS)
    source = data.source if isinstance(data, LabelledData) else data
    check_outputs({"resume": resume}, {"data": source}, bundle=bundle.path)
    with OpenRuntimes(bundle, device, options=BESIDE_OTHERS) as runtimes:
        return run_evaluation(
            runtimes, data, backends=backends, batch_size=batch_size, resume=resume, limit=limit, seed=seed,
            progress=progress,
        )  # fmt: skip


def run_evaluation(
    runtimes: OpenRuntimes,
    data: str | os.PathLike[str] | LabelledData,
    *,
    backends: Sequence[str] | None,
    batch_size: int,
    resume: str | os.PathLike[str] | None = None,
    limit: int | None = None,
    seed: int = 0,
    progress: Progress,
) -> Evaluation:
    """`evaluate` on shared runtimes."""
    bundle = runtimes.bundle
    check_batch_size(batch_size)
    if resume is not None:
        check_work_file(resume)
    labels = single_labels(bundle, "evaluate")
    selection = select(bundle, backends)
    if isinstance(data, LabelledData):
        whole = data
    else:
        progress.step(f"reading the labels of {data}")
        whole = open_data(data, labels)
    images = whole.subset(limit, seed)
    with contextlib.ExitStack() as stack:
        runs = []
        for selected in selection:
            progress.step(f"opening {selected}")
            runs.append(BackendRun(selected, runtimes, labels, len(images)))
            stack.callback(runs[-1].close)
        settings = {"batch_size": batch_size, "device": runtimes.device, "limit": limit}
        settings["seed"] = None if limit is None else seed
        work = None
        if resume is not None:
            work = stack.enter_context(WorkFile(resume, header(bundle, images, runs, settings)))
        progress.step(f"evaluating {len(images)} images")
        data_sha256 = run_all(runs, images, labels, runtimes.processor, batch_size, work, progress)
    return Evaluation(
        bundle=str(bundle.path),
        data=whole.source,
        labels=labels,
        images=images.names,
        targets=images.targets,
        data_sha256=data_sha256,
        results=tuple(run.predictions() for run in runs),
        settings={"kind": images.kind, "labels_matched": images.matched, "images": len(whole), **settings},
        processor=bundle.manifest.processor,
        left_out=images.left_out,
    )


def single_labels(bundle: Bundle, command: str) -> tuple[str, ...]:
    """Class names of a single-label classifier; for another model, a UsageError that names `command`."""
    config = bundle.read_config()
    labels, problem_type = config.labels, config.problem_type
    if not labels:
        hint = "export it as image-classification"
        raise UsageError(f"{command} needs a model with classes", what="task", found=bundle.manifest.task, hint=hint)
    if problem_type is not ProblemType.SINGLE_LABEL:
        if problem_type is ProblemType.REGRESSION:
            head = "is a regression"
        else:
            head = "has a single output" if len(labels) == 1 else "gives an image several labels"
        raise UsageError(
            f"{command} counts images by their best class, and this model {head}",
            what="problem_type", found=str(problem_type),
            hint=f"compare its outputs with the reference: {typed_line('compare', bundle.path)}",
        )  # fmt: skip
    return labels
