"""Pass or fail: a bundle's artifacts against rules and a baseline."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vitdeploy.assess.compare.vector_run import VectorRun, images_sha256
from vitdeploy.assess.data.dataset import LabelledData, open_data
from vitdeploy.assess.data.image_set import ImageSet, open_images
from vitdeploy.assess.evaluate.embeddings import EmbeddingEvaluation, open_labelled, run_embedding_evaluation
from vitdeploy.assess.evaluate.evaluate import Evaluation, run_evaluation, single_labels
from vitdeploy.assess.gate.baseline import Baseline
from vitdeploy.assess.gate.checks import Check, judge
from vitdeploy.assess.gate.measured import Measured
from vitdeploy.assess.gate.plan import Planned, plan
from vitdeploy.assess.gate.retrieval import needs_labels
from vitdeploy.assess.gate.rules import GateRules, read_rules
from vitdeploy.assess.metrics.neighbours import DEFAULT_NEIGHBOURS, check_neighbours
from vitdeploy.assess.metrics.status import Assessment, CheckResult, counted, overall
from vitdeploy.assess.runs.open_runtimes import OpenRuntimes
from vitdeploy.bundle.bundle import Bundle
from vitdeploy.bundle.output_paths import check_outputs
from vitdeploy.bundle.retry import retry_if_changed
from vitdeploy.errors import InputError, UsageError, readable
from vitdeploy.files.output_files import check_writable
from vitdeploy.runtimes import BESIDE_OTHERS, check_reference
from vitdeploy.specs import Task
from vitdeploy.system.argument_types import typed
from vitdeploy.system.progress import SILENT, Progress

if TYPE_CHECKING:
    from vitdeploy.assess.benchmark.result import Benchmark

__all__ = ["Check", "GateResult", "gate", "planned_checks"]


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class GateResult(Assessment):
    """Result of a gate.

    Attributes:
        data: Folder or file of the images.
        checks: All checks, in a stable order.
        images: Number of images.
        evaluation: Evaluation of the images; None for a model without classes.
        embeddings: Evaluation of the images' nearest neighbours, for a model that extracts features and images with
            labels; None without rules about them.
        vectors: Vectors of all images, one entry per artifact and backend; measured if a rule requires them, or for a
            model without classes.
        benchmark: Benchmark with one image; None without a latency rule.
        baseline: Baseline file; None without one.
        changes: Differences from the baseline, one line each.
        updated: True if the baseline was written.
    """

    data: str
    checks: tuple[Check, ...]
    images: int
    evaluation: Evaluation | None
    vectors: tuple[VectorRun, ...] = ()
    benchmark: Benchmark | None = None
    baseline: Path | None = None
    changes: tuple[str, ...] = ()
    updated: bool = False
    embeddings: EmbeddingEvaluation | None = None

    @property
    def brief(self) -> str:
        """The result in a few words."""
        return f"{self.status} on {self.images} images; {counted([check.status for check in self.checks], 'check')}"

    @property
    def status(self) -> str:
        """Outcome, "failed" if any check is, "passed" if every check is, else "skipped"."""
        return overall(check.status for check in self.checks)

    @property
    def check_results(self) -> tuple[CheckResult, ...]:
        """All checks, for a report."""
        return tuple(
            CheckResult(check.subject, check.rule, check.status, check.message, check.seconds) for check in self.checks
        )

    def to_dict(self) -> dict[str, Any]:
        return {
            "status": self.status,
            "bundle": self.bundle,
            "processor": self.processor,
            "data": self.data,
            "baseline": None if self.baseline is None else str(self.baseline),
            "updated": self.updated,
            "changes": list(self.changes),
            "checks": [check.to_dict() for check in self.checks],
            "evaluation": None if self.evaluation is None else self.evaluation.to_dict(),
            **({} if self.embeddings is None else {"embeddings": self.embeddings.to_dict()}),
            "vectors": [run.to_dict() for run in self.vectors],
            "benchmark": None if self.benchmark is None else self.benchmark.to_dict(),
        }


@typed
@retry_if_changed
def gate(
    bundle: str | os.PathLike[str] | Bundle,
    *,
    data: str | os.PathLike[str],
    baseline: str | os.PathLike[str] | None = None,
    rules: GateRules | str | os.PathLike[str] | None = None,
    update: bool = False,
    backends: Sequence[str] | None = None,
    gallery: str | os.PathLike[str] | None = None,
    neighbours: int | None = None,
    batch_size: int = 32,
    device: str = "cpu",
    progress: Progress = SILENT,
) -> GateResult:
    """Check the reference and every artifact against rules, on labelled images; unlabelled for a model without classes.

    1. Always checked, without any rule: each backend's logits are finite and within its precision's tolerance of the
       reference, and so is each layer of a half-precision artifact on the reference's layer input.
    2. With a baseline, labels and image processor must be the baseline's, and no backend's top-1 accuracy may have
       dropped. A drop fails if it exceeds `max_drop` and McNemar's exact test on the same images gives p <= 0.05; if it
       exceeds `max_drop` but is not significant, the check is skipped, which is not a pass.
    3. A `max_drop` is refused unless the images detect a drop of twice its size with 90 % power: larger than allowed,
       and significant. The two classifiers are assumed to disagree as often as artifact and reference did in the
       baseline, or as the drop requires.
    4. For a model without classes, vectors must be finite, and a quantized artifact is judged by their cosines and
       nearest neighbours, see `vitdeploy.assess.metrics.cosine_bound`, not by the largest difference. `min_cosine`
       needs 20 images, for a 5th percentile; `min_neighbour_agreement` needs enough to show one lost neighbour.
    5. With a rule about kNN accuracy or recall, or a baseline that has them, the images of a model that extracts
       features need labels, see `evaluate_embeddings`; their drops are judged as in 2 and 3.
    6. All checks of a backend that cannot run are skipped. A gate passes only if every check passes.

    Args:
        bundle: The bundle or its folder; a classifier must be single-label.
        data: Labelled images, see `open_data`; for a model without classes, images, see `open_images`.
        baseline: File with an accepted evaluation of the same images.
        rules: Rules, or a TOML file; see `read_rules`.
        update: Write the baseline instead of comparing with it; not written if another check does not pass.
        backends: As for `evaluate`.
        gallery: Labelled images that neighbours are searched among; see `evaluate_embeddings`.
        neighbours: Number of neighbours that vote. Default: the baseline's, or 5.
        batch_size: Images per run, at least 1.
        device: Device of every backend: "cpu", "cuda" or "cuda:1"; layers are compared on the CPU.
        progress: Receives each step and its progress.

    Raises:
        UsageError: If a rule is invalid, or too fine for the number of images.
        InputError: If the baseline is missing, damaged or of other images; or as `evaluate`.
        OutputError: If the baseline cannot be written.
        BundleError, ImageError: As `evaluate`.
    """
    prepared = _prepare(bundle, data, baseline, rules, update, backends, gallery, neighbours)
    bundle, images, file, accepted, planned = prepared[:5]
    evaluation = embeddings = None
    with OpenRuntimes(bundle, device, keep=True, options=BESIDE_OTHERS, progress=progress) as runtimes:
        run: dict[str, Any] = {"backends": backends, "batch_size": batch_size, "progress": progress}
        if prepared.neighbours is not None and isinstance(images, LabelledData):
            searched, count = prepared.gallery, prepared.neighbours
            embeddings = run_embedding_evaluation(runtimes, images, searched, neighbours=count, **run)
        elif isinstance(images, LabelledData):
            evaluation = run_evaluation(runtimes, images, **run)
        measured_on = evaluation or embeddings
        sha256 = images_sha256(images) if measured_on is None else measured_on.data_sha256
        if accepted is not None and file is not None and not update:
            if accepted.data_sha256 != sha256:
                raise _other_data(file, "the names, labels or bytes differ", sha256)
            accepted.check_images(images.names, file)
        measured = Measured(runtimes, images, evaluation, accepted, planned, progress, batch_size, embeddings)
        checks = tuple(judge(check, measured) for check in planned)
    result = GateResult(
        bundle=str(bundle.path),
        data=str(data),
        checks=checks,
        images=len(images),
        evaluation=evaluation,
        vectors=measured.measured_vectors,
        processor=bundle.manifest.processor,
        left_out=images.left_out,
        benchmark=measured.benchmarked,
        baseline=file,
        embeddings=embeddings,
    )
    if embeddings is not None:
        new = Baseline.of_embeddings(bundle, embeddings, result.vectors)
    elif evaluation is None:
        new = Baseline.of_vectors(bundle, sha256, len(images), result.vectors)
    else:
        new = Baseline.of(bundle, evaluation).with_vectors(run for run in result.vectors if run.skipped is None)
    if accepted is not None:
        result = dataclasses.replace(result, changes=accepted.changes(new))
    if update and file is not None and result.status == "passed":
        new.write(file)
        changes = result.changes if accepted is not None else (f"baseline: made, of {new.images} images",)
        result = dataclasses.replace(result, updated=True, changes=changes)
    return result


@typed
@retry_if_changed
def planned_checks(
    bundle: str | os.PathLike[str] | Bundle,
    *,
    data: str | os.PathLike[str],
    baseline: str | os.PathLike[str] | None = None,
    rules: GateRules | str | os.PathLike[str] | None = None,
    backends: Sequence[str] | None = None,
    gallery: str | os.PathLike[str] | None = None,
    neighbours: int | None = None,
) -> tuple[Planned, ...]:
    """The checks of `gate`, in order, without reading an image or opening a backend. Raises as `gate`."""
    return _prepare(bundle, data, baseline, rules, False, backends, gallery, neighbours).checks


class _Prepared(NamedTuple):
    """Checked arguments and planned checks of a gate; `neighbours` is None if they are not searched."""

    bundle: Bundle
    images: LabelledData | ImageSet
    file: Path | None
    accepted: Baseline | None
    checks: tuple[Planned, ...]
    gallery: LabelledData | None
    neighbours: int | None


def _prepare(
    bundle: str | os.PathLike[str] | Bundle,
    data: str | os.PathLike[str],
    baseline: str | os.PathLike[str] | None,
    rules: GateRules | str | os.PathLike[str] | None,
    update: bool,
    backends: Sequence[str] | None,
    gallery: str | os.PathLike[str] | None,
    neighbours: int | None,
) -> _Prepared:
    bundle = Bundle.of(bundle)
    check_reference(bundle)  # the baseline of every comparison
    source_of_rules = rules
    if rules is None:
        rules = GateRules()
    elif not isinstance(rules, GateRules):
        rules = read_rules(rules)
    if baseline is None and update:
        raise UsageError("--update has no file to write", what="baseline", hint="name it: --baseline FILE")
    if backends is not None and update:
        raise UsageError(
            "--update writes a baseline of every backend", what="backends", found=backends, hint="leave --backend out"
        )
    file = None if baseline is None else Path(baseline)
    if file is not None and update:
        check_outputs(
            {"baseline": file}, {"data": data, "gallery": gallery, "rules": source_of_rules}, bundle=bundle.path
        )
        check_writable(file)
    accepted = None if file is None or (update and not _exists(file)) else Baseline.read(file)
    searched: LabelledData | None = None
    count = _neighbours(bundle, rules, accepted, gallery, neighbours, update)
    images: LabelledData | ImageSet
    if bundle.manifest.task == Task.CLASSIFICATION:
        images = open_data(data, single_labels(bundle, "gate"))
    elif count is not None:
        images, searched = open_labelled(data, gallery)
    else:
        images = open_images(data)
    if accepted is not None and not update and accepted.images != len(images):
        raise _other_data(file, f"it has {accepted.images}, the data {len(images)}", len(images))
    compared = None if update else accepted
    checks = plan(bundle, rules, compared, len(images), backends, update=update, labelled=count is not None)
    return _Prepared(bundle, images, file, accepted, checks, searched, count)


def _neighbours(
    bundle: Bundle,
    rules: GateRules,
    accepted: Baseline | None,
    gallery: str | os.PathLike[str] | None,
    neighbours: int | None,
    update: bool,
) -> int | None:
    """Number of neighbours that vote; None if no rule and no baseline is about them."""
    held = None if accepted is None else accepted.retrieval
    if bundle.manifest.task != Task.FEATURES or (held is None and not needs_labels(rules)):
        for name, value in (("gallery", gallery), ("neighbours", neighbours)):
            if value is not None:
                raise UsageError(
                    f"{name} applies to rules about kNN accuracy or recall, and there are none", what=name,
                    found=value, hint="add one, such as min_knn_accuracy, or leave it out",
                )  # fmt: skip
        return None
    if neighbours is not None:
        check_neighbours(neighbours)
    if held is not None and not update and neighbours not in (None, held.neighbours):
        raise UsageError(
            f"the baseline has the votes of {held.neighbours} neighbours, got {neighbours}", what="neighbours",
            expected=held.neighbours, found=neighbours, hint="leave it out, or create the baseline again with --update",
        )  # fmt: skip
    return neighbours or (DEFAULT_NEIGHBOURS if held is None else held.neighbours)


def _exists(file: Path) -> bool:
    with readable(file, "a baseline"):
        return file.exists()


def _other_data(file: Path | None, reason: str, found: object) -> InputError:
    return InputError(
        f"{file} is a baseline of other images than the data ({reason})",
        what="data", where=file, found=found, hint="restore the data, or accept the new images with --update",
    )  # fmt: skip
