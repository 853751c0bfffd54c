"""Accuracy of every backend on labelled images, in one pass."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vitdeploy.assess.data.dataset import LabelledData, open_data
from vitdeploy.assess.evaluate.backend_run import BackendRun
from vitdeploy.assess.evaluate.labelled import LabelledAssessment, check_ran
from vitdeploy.assess.evaluate.loop import header, run_all
from vitdeploy.assess.evaluate.resume_file import WorkFile, check_work_file
from vitdeploy.assess.metrics.accuracy import Accuracy, Calibration, Predictions, calibration
from vitdeploy.assess.runs.open_runtimes import OpenRuntimes
from vitdeploy.assess.runs.targets import select
from vitdeploy.bundle.bundle import Bundle
from vitdeploy.bundle.output_paths import check_outputs
from vitdeploy.bundle.retry import retry_if_changed
from vitdeploy.bundle.scores import ProblemType
from vitdeploy.errors import UsageError, check_count, typed_line
from vitdeploy.predictor import check_batch_size
from vitdeploy.runtimes import BESIDE_OTHERS
from vitdeploy.specs import SEEDS
from vitdeploy.system.argument_types import typed
from vitdeploy.system.progress import SILENT, Progress

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Evaluation(LabelledAssessment[Predictions]):
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

    def best(self, result: Predictions) -> NDArray[np.int32]:
        """The top-1 class of each image, (N,); -1 for non-finite logits."""
        check_ran(result)
        return result.classes[:, 0]

    def top1(self, result: Predictions) -> Accuracy:
        """Images whose top-1 class is their label."""
        return self.accuracy(self.best(result) == self.targets)

    def top5(self, result: Predictions) -> Accuracy:
        """Images whose label is among the top-5 classes."""
        check_ran(result)
        return self.accuracy((result.classes == self.targets[:, None]).any(axis=1))

    def calibration(self, result: Predictions) -> Calibration:
        """Calibration of the scores, in 15 bins of equal width."""
        return calibration(result.scores, self.best(result) == self.targets)

    def figures(self, result: Predictions) -> dict[str, Any]:
        reference = self.reference
        return {
            "top1": self.top1(result).to_dict(),
            "top5": self.top5(result).to_dict(),
            "agreement": None if reference is None else self.agreement(result, reference).to_dict(),
            "not_finite": result.not_finite,
            "calibration": self.calibration(result).to_dict(),
        }


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
    if not problem_type.ranked:
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
