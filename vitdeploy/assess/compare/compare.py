"""Compare every artifact of a bundle with the reference, on the same images."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from vitdeploy._version import __version__
from vitdeploy.assess.compare.golden import Golden
from vitdeploy.assess.compare.worst_images import FarImage, furthest
from vitdeploy.assess.data.images import chosen_images
from vitdeploy.assess.metrics.cosine_bound import COSINE_BOUNDS, LOOSE_BOUND, CosineBound
from vitdeploy.assess.metrics.features import Nearness, nearness, vectors
from vitdeploy.assess.metrics.logits import LogitsDifference, compare_logits
from vitdeploy.assess.metrics.outputs import LOGITS, Difference, check_tolerance, compare_outputs, default_tolerance
from vitdeploy.assess.metrics.status import ByResult, Verdict
from vitdeploy.assess.runs.reference import Batches, run_batches, run_reference
from vitdeploy.assess.runs.targets import artifacts
from vitdeploy.bundle.bundle import Bundle, retry_if_changed
from vitdeploy.bundle.output_paths import check_outputs, check_writable
from vitdeploy.bundle.scores import ProblemType
from vitdeploy.errors import UnavailableError, UsageError
from vitdeploy.predictor import check_batch_size, load_processor
from vitdeploy.specs import Task
from vitdeploy.system.progress import SILENT, Progress

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    from vitdeploy.assess.data.folder_listing import LeftOut
    from vitdeploy.assess.runs.targets import Selected
    from vitdeploy.bundle.manifest import Artifact


@dataclasses.dataclass(frozen=True)
class BackendComparison:
    """One artifact on one backend.

    Attributes:
        artifact: such as "onnx-fp32".
        backend: what ran it; "" where no backend of this version does.
        tolerance: the largest difference allowed, relative to each output's largest value.
        differences: one an output; none where the backend was skipped.
        details: what really ran.
        skipped: why it could not run; None where it did.
        logits: what else is said of the logits of a single-label classifier; None where there are none, or some are
            not finite.
        not_finite: the positions of the images for which a value of the artifact is NaN or infinite, from 0.
        furthest: of a single-label classifier, the images that differ most, the furthest first.
        nearness: of a model without classes, its vectors beside the reference's, see
            `vitdeploy.assess.metrics.features`; neighbours are looked for among images that were given.
        cosine_bound: judges `nearness`, and no tolerance; of a quantized artifact of a model without classes, where no
            tolerance was given.
    """

    artifact: str
    backend: str
    tolerance: float
    differences: tuple[Difference, ...] = ()
    details: dict[str, Any] = dataclasses.field(default_factory=dict)
    skipped: str | None = None
    logits: LogitsDifference | None = None
    not_finite: tuple[int, ...] = ()
    furthest: tuple[FarImage, ...] = ()
    nearness: tuple[Nearness, ...] = ()
    cosine_bound: CosineBound | None = None

    @property
    def status(self) -> str:
        """The outcome: "passed", "failed" or "skipped"."""
        if self.skipped is not None:
            return "skipped"
        passed = bool(self.differences) and all(map(self.passes, self.differences))
        return "passed" if passed and not self._far else "failed"

    def passes(self, difference: Difference) -> bool:
        """Whether one of the outputs does, by itself; of several whose vectors judge, it is not another altogether."""
        return difference.within(self.tolerance) if self.cosine_bound is None else LOOSE_BOUND.resembles(difference)

    @property
    def judged_by(self) -> str:
        """The rule, for people."""
        if self.cosine_bound is None:
            return f"largest difference, {self.tolerance:g} of the largest value allowed"
        bound = self.cosine_bound
        text = f"cosine, mean {bound.mean:g} and 5th percentile {bound.p5:g} required"
        if any(each.same_neighbours is not None for each in self.nearness):
            text += f"; same nearest neighbour, {bound.neighbours:.0%} required"
        return f"{text}; relative error, {bound.relative_error:.0%} allowed"

    @property
    def _far(self) -> list[str]:
        bound = self.cosine_bound
        return [] if bound is None else [far for each in self.nearness if (far := bound.why_not(each)) is not None]

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """One an output, for a report; one where it was skipped."""
        subject = f"{self.artifact} on {self.backend or 'no backend'}"
        if self.skipped is not None:
            return (Verdict(subject, "compare", "skipped", self.skipped),)
        if self.cosine_bound is not None:
            broken = tuple(
                Verdict(subject, each.output, "failed", f"{each.output} has a mean cosine of {each.mean_cosine:.4f}")
                for each in self.differences
                if each.finite and not self.passes(each)
            )
            return broken + tuple(
                Verdict(subject, each.output, "failed" if far else "passed", far or f"{each} ({each.images} images)")
                for each in self.nearness
                for far in (self.cosine_bound.why_not(each) if self._finite else "not all values are finite",)
            )
        return tuple(
            Verdict(
                subject,
                each.output,
                "passed" if each.within(self.tolerance) else "failed",
                f"differs by {each.max_relative:.2e} of the largest value, {self.tolerance:g} allowed; "
                f"{each.required_tolerance:g} would pass",
            )
            for each in self.differences
        )

    @property
    def _finite(self) -> bool:
        return all(each.finite for each in self.differences)

    def to_dict(self) -> dict[str, Any]:
        return {
            **dataclasses.asdict(self),
            "status": self.status,
            "judged_by": "difference" if self.cosine_bound is None else "cosine",
            "differences": [difference.to_dict() for difference in self.differences],
            "nearness": [each.to_dict() for each in self.nearness],
        }


@dataclasses.dataclass(frozen=True)
class Comparison(ByResult):
    """Every artifact of a bundle against the reference.

    Attributes:
        bundle: the folder.
        images: how many were compared.
        synthetic: whether they were made up, none having been given.
        results: one an artifact and backend.
        problem_type: how logits are read; only those of a single-label classifier are compared as classes, too.
        processor: where the image processor came from, in a line; None where the bundle does not say.
        left_out: the files of the folder that are not among its images; None where no folder was listed.
    """

    bundle: str
    images: int
    synthetic: bool
    results: tuple[BackendComparison, ...]
    problem_type: ProblemType = ProblemType.SINGLE_LABEL
    processor: str | None = None
    left_out: LeftOut | None = None

    @property
    def note(self) -> str:
        """Which figures do not apply to the model, for people; empty where all do."""
        if self.problem_type is ProblemType.SINGLE_LABEL:
            return ""
        if self.problem_type is ProblemType.REGRESSION:
            return "regression: each value is compared by itself, relative to its own largest one; the worst is shown"
        return f"{self.problem_type}: outputs are compared as numbers, as no class of an image is the best one"

    def to_dict(self) -> dict[str, Any]:
        return {
            **dataclasses.asdict(self),
            "problem_type": str(self.problem_type),
            "status": self.status,
            "results": [result.to_dict() for result in self.results],
        }


@retry_if_changed
def compare(
    bundle: str | os.PathLike[str] | Bundle,
    *,
    images: str | os.PathLike[str] | Sequence[Any] | None = None,
    tolerance: float | None = None,
    batch_size: int = 8,
    backends: Sequence[str] | None = None,
    device: str = "cpu",
    golden: str | os.PathLike[str] | None = None,
    save_golden: str | os.PathLike[str] | None = None,
    progress: Progress = SILENT,
) -> Comparison:
    """Run the reference and every artifact on the same processed images, and compare all outputs.

    Golden outputs take the reference to a machine without torch: it runs once, where they are saved, and they stand in
    for it elsewhere, on the same images.

    Args:
        bundle: the bundle or its folder.
        images: a folder, every image below it; or the images. By default 16 seeded synthetic ones.
        tolerance: largest difference allowed, relative to each output's largest value; by default by precision. A
            quantized artifact of a model without classes is judged by the cosines of its vectors and by its nearest
            neighbours instead, where no tolerance is given; see `vitdeploy.assess.metrics.cosine_bound`.
        batch_size: images that run together, from 1 up.
        backends: as for `evaluate`; by default every artifact.
        device: of the artifacts and the reference: "cpu", "cuda" or "cuda:1".
        golden: a file of golden outputs to compare with; the reference does not run.
        save_golden: a file to write them to; nothing is written where the images or the bundle are at fault.
        progress: told each step, and how far it has come.

    Raises:
        BundleError: the bundle is absent or was altered.
        UsageError: the bundle has no artifact, an argument is not what it must be, or golden outputs are of something
            else.
        ImageError: an image cannot be read.
        InputError: the file of golden outputs cannot be read, or is damaged.
        OutputError: it cannot be written.
        MissingDependencyError: torch, which runs the reference, is not installed.
    """
    check_batch_size(batch_size)
    check_tolerance(tolerance)
    bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    if not bundle.manifest.artifacts:
        raise UsageError(f"{bundle.path} must hold an artifact to compare, holds none; make one: vitdeploy export")
    if golden is not None and save_golden is not None:
        raise UsageError(f"compare saves golden outputs or compares with them, got both: {save_golden} and {golden}")
    check_outputs({"save_golden": save_golden}, {"images": images}, bundle=bundle.path)
    if save_golden is not None:
        check_writable(Path(save_golden))
    processor, problem_type = load_processor(bundle), bundle.read_config().problem_type
    chosen_sources = chosen_images(processor, images)
    sources = chosen_sources.images
    if not sources:
        raise UsageError("compare needs at least one image, got none")
    batches = Batches(processor, sources, batch_size)
    by_name = {artifact.name: artifact for artifact in bundle.manifest.artifacts}
    chosen = artifacts(bundle, backends)
    names = {selected.artifact for selected in chosen}
    allowed = {name: default_tolerance(by_name[name]) if tolerance is None else tolerance for name in names}
    tools: dict[str, str] = {}
    if golden is not None:
        progress.step(f"reading golden outputs of {len(sources)} images")
        found = Golden.read(golden)
        found.check(bundle, batches.pixels_sha256(), len(sources), batch_size)
        expected = found.outputs
    else:
        progress.step(f"running the reference on {len(sources)} images")
        expected, engine = run_reference(bundle, batches, _reference_outputs(bundle), device, progress)
        tools = {"vitdeploy": __version__, "engine": engine}
    results = tuple(
        _result(
            bundle,
            selected,
            by_name[selected.artifact],
            batches,
            expected,
            _Judge(allowed[selected.artifact], by_cosine=tolerance is None, search=images is not None),
            device,
            progress,
        )
        for selected in chosen
    )
    if save_golden is not None:
        Golden(expected, bundle.manifest.reference, batches.pixels_sha256(), batch_size, tools).write(save_golden)
    return Comparison(
        bundle=str(bundle.path),
        images=len(sources),
        synthetic=images is None,
        results=results,
        problem_type=problem_type,
        processor=bundle.manifest.processor,
        left_out=chosen_sources.left_out,
    )


def _reference_outputs(bundle: Bundle) -> tuple[str, ...] | None:
    """All that any artifact gives; None where nothing runs one."""
    runnable = {selected.artifact for selected in artifacts(bundle) if selected.backend}
    specs = [spec for artifact in bundle.manifest.artifacts if artifact.name in runnable for spec in artifact.outputs]
    return tuple(dict.fromkeys(spec.name for spec in specs)) or None


class _Judge(NamedTuple):
    """The tolerance of an artifact, whether cosines may judge instead, and whether neighbours are looked for."""

    tolerance: float
    by_cosine: bool
    search: bool


def _result(
    bundle: Bundle,
    selected: Selected,
    artifact: Artifact,
    batches: Batches,
    expected: Mapping[str, np.ndarray],
    judge: _Judge,
    device: str,
    progress: Progress,
) -> BackendComparison:
    head = (artifact.name, selected.backend, judge.tolerance)
    with_classes = bundle.manifest.task == Task.CLASSIFICATION
    problem_type = bundle.read_config().problem_type
    ranked = problem_type is ProblemType.SINGLE_LABEL
    progress.step(f"running {selected}")
    try:
        with selected.open(bundle, device=device) as runtime:
            wanted = {spec.name: expected[spec.name] for spec in artifact.outputs}
            found = run_batches(runtime, batches.feeds(runtime))
            return BackendComparison(
                *head,
                compare_outputs(wanted, found, problem_type=problem_type),
                runtime.details,
                logits=_compare_logits(wanted, found, judge.tolerance) if ranked else None,
                not_finite=_not_finite(found),
                furthest=_furthest(bundle, wanted, found, batches.sources) if ranked else (),
                nearness=() if with_classes else nearness(vectors(wanted), vectors(found), search=judge.search),
                cosine_bound=COSINE_BOUNDS.get(artifact.precision) if judge.by_cosine and not with_classes else None,
            )
    except UnavailableError as exc:
        return BackendComparison(*head, skipped=str(exc))


def _compare_logits(
    wanted: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray], tolerance: float
) -> LogitsDifference | None:
    if LOGITS not in wanted or not all(np.isfinite(run[LOGITS]).all() for run in (wanted, found)):
        return None
    return compare_logits(wanted[LOGITS], found[LOGITS], tolerance)


def _furthest(
    bundle: Bundle, wanted: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray], sources: Sequence[Any]
) -> tuple[FarImage, ...]:
    if LOGITS not in wanted or wanted[LOGITS].ndim != 2:
        return ()
    return furthest(wanted[LOGITS], found[LOGITS], sources, bundle.read_config().labels)


def _not_finite(outputs: Mapping[str, np.ndarray]) -> tuple[int, ...]:
    bad = [~np.isfinite(value.reshape(len(value), -1)).all(axis=1) for value in outputs.values()]
    return tuple(np.flatnonzero(np.any(bad, axis=0)).tolist())
