"""The checks of a gate: what each measures, and what it says."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import TYPE_CHECKING, Any, cast

from vitdeploy.assess.baseline import labels_sha256, processor_sha256
from vitdeploy.assess.benchmark import benchmark
from vitdeploy.assess.compare import compare
from vitdeploy.assess.gate_plan import ALPHA, subject_of
from vitdeploy.assess.layers import compare_layers
from vitdeploy.assess.selection import Selected
from vitdeploy.assess.statistics import images_needed, mcnemar
from vitdeploy.errors import UnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from vitdeploy.assess.accuracy import Accuracy, Predictions
    from vitdeploy.assess.baseline import Baseline
    from vitdeploy.assess.compare import BackendComparison
    from vitdeploy.assess.dataset import LabelledData
    from vitdeploy.assess.evaluate import Evaluation
    from vitdeploy.assess.gate_plan import Planned
    from vitdeploy.assess.latency import Benchmark
    from vitdeploy.assess.layers import ArtifactLayers
    from vitdeploy.bundle import Bundle

# Enough to show any layer that differs; what differs on few images only, min_agreement sees on all of them.
COMPARED_IMAGES = 64


@dataclasses.dataclass(frozen=True)
class Check:
    """One rule held against one subject.

    Attributes:
        rule: its name.
        subject: such as "onnxruntime fp32", or "bundle".
        value: what was measured, in the rule's unit; None where nothing was.
        bound: what the rule allows.
        status: "passed", "failed" or "skipped".
        message: what was found, on one line.
    """

    rule: str
    subject: str
    value: float | None
    bound: float
    status: str
    message: str

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True, eq=False)
class Measured:
    """What the checks look at; a comparison and latencies are measured when the first check asks for them."""

    bundle: Bundle
    data: LabelledData
    evaluation: Evaluation
    baseline: Baseline | None
    planned: tuple[Planned, ...]
    device: str = "cpu"
    on_step: Callable[[str], None] = lambda _: None

    @property
    def accepted(self) -> Baseline:
        """The baseline, for checks that are planned only where there is one."""
        return cast("Baseline", self.baseline)

    @functools.cached_property
    def predictions(self) -> Mapping[Selected, Predictions]:
        """What became of the images, by what ran."""
        return {
            Selected(result.artifact, result.backend, result.precision): result for result in self.evaluation.results
        }

    @functools.cached_property
    def comparison(self) -> Mapping[tuple[str, str], BackendComparison]:
        """By artifact and backend, on some of the images.

        Raises:
            UnavailableError: the reference cannot run.
        """
        loosest = max(check.bound for check in self.planned if check.rule == "max_difference")
        result = compare(
            self.bundle, images=self._images, tolerance=loosest, backends=self._names("max_difference"),
            device=self.device, on_step=self.on_step,
        )  # fmt: skip
        return {(each.artifact, each.backend): each for each in result.results}

    @functools.cached_property
    def layers(self) -> Mapping[str, ArtifactLayers]:
        """By artifact, on some of the images.

        Raises:
            UnavailableError: the reference cannot run.
        """
        names = self._names("max_layer_difference")
        result = compare_layers(self.bundle, images=self._images, backends=names, on_step=self.on_step)
        return {each.artifact: each for each in result.results}

    @functools.cached_property
    def benchmark(self) -> Benchmark:
        """Of one image, for every backend that a ratio of latencies is about."""
        asked = [each for check in self.planned if check.against for each in (check.against, check.selected) if each]
        names = [f"{each.backend}:{each.precision}" for each in asked if self.why_skipped(each) is None]
        return benchmark(
            self.bundle, batch_sizes=(1,), backends=list(dict.fromkeys(names)), device=self.device, on_step=self.on_step
        )

    @property
    def benchmarked(self) -> Benchmark | None:
        """The benchmark, if a check asked for it."""
        return self.benchmark if "benchmark" in vars(self) else None

    @functools.cached_property
    def _images(self) -> list[bytes]:
        data = self.data.subset(COMPARED_IMAGES)
        return [data.load(position) for position in range(len(data))]

    def _names(self, rule: str) -> list[str]:
        """Those that a rule is about and that ran, as `backends`."""
        asked = [check.selected for check in self.planned if check.rule == rule and check.selected]
        return [f"{each.backend}:{each.precision}" for each in asked if self.why_skipped(each) is None]

    def why_skipped(self, selected: Selected) -> str | None:
        """Why an artifact did not run in the evaluation; None where it did, or was not asked to."""
        found = self.predictions.get(selected)
        return None if found is None else found.skipped


def judge(planned: Planned, measured: Measured) -> Check:
    """Make one check."""
    selected = planned.selected
    if selected is None:
        value, status, message = _OF_BUNDLE[planned.rule](planned, measured)
        return Check(planned.rule, planned.subject, value, planned.bound, status, message)
    reason = measured.why_skipped(selected)
    if reason is None:
        try:
            result = measured.predictions[selected]
            value, status, message = _OF_BACKEND[planned.rule](planned, measured, result)
            return Check(planned.rule, planned.subject, value, planned.bound, status, message)
        except UnavailableError as exc:
            reason = str(exc)
    return Check(planned.rule, planned.subject, None, planned.bound, "skipped", f"it could not run: {reason}")


_Found = tuple[float | None, str, str]


def _word(passed: bool) -> str:
    return "passed" if passed else "failed"


def _same_labels(_planned: Planned, measured: Measured) -> _Found:
    same = measured.accepted.labels_sha256 == labels_sha256(measured.bundle)
    say = "the class names are" + ("" if same else " not")
    return float(not same), _word(same), f"{say} the baseline's{'' if same else '; accept them with --update'}"


def _same_processor(_planned: Planned, measured: Measured) -> _Found:
    old, new = measured.accepted.processor, processor_sha256(measured.bundle)
    changed = [name for name in sorted({*old, *new}) if old.get(name) != new.get(name)]
    if changed:
        return (
            float(len(changed)),
            "failed",
            f"{', '.join(changed)} changed since the baseline; accept it with --update",
        )
    return 0.0, "passed", "the image processor is the baseline's"


def _in_bundle(_planned: Planned, _measured: Measured) -> _Found:
    return None, "skipped", "the baseline has it, the bundle does not; export it, or drop it with --update"


def _finite(_planned: Planned, measured: Measured, result: Predictions) -> _Found:
    count, total = result.not_finite, len(measured.evaluation.images)
    return float(count), _word(not count), f"the logits of {count} of {total} images are not all finite"


def _min_accuracy(planned: Planned, measured: Measured, result: Predictions) -> _Found:
    return _share(planned, measured.evaluation.top1(result), "correct")


def _min_agreement(planned: Planned, measured: Measured, result: Predictions) -> _Found:
    reference = measured.evaluation.reference
    if reference is None:
        return None, "skipped", "the reference did not run; let it, with --backend torch"
    return _share(planned, measured.evaluation.agreement(result, reference), "as the reference")


def _share(planned: Planned, found: Accuracy, what: str) -> _Found:
    passed = 100 * found.correct >= planned.bound * found.total - 1e-9
    return 100 * found.value, _word(passed), f"{found} {what}, at least {planned.bound:g} % allowed"


def _max_drop(planned: Planned, measured: Measured, result: Predictions) -> _Found:
    if planned.subject not in measured.accepted.wrong:
        return None, "skipped", "the baseline does not have it; accept it with --update"
    old, new = {*measured.accepted.wrong[planned.subject]}, {*measured.evaluation.top1(result).wrong}
    lost, gained, images = len(new - old), len(old - new), measured.accepted.images
    drop, p = 100 * (lost - gained) / images, mcnemar(lost, gained)
    found = f"{drop:+.2f} points of drop ({lost} lost and {gained} gained of {images}, McNemar p = {p:.2g}), "
    found = f"{found}{planned.bound:.4g} allowed"
    if 100 * (lost - gained) <= planned.bound * images + 1e-9:
        return drop, "passed", found
    if p <= ALPHA:
        return drop, "failed", found
    needed = images_needed(drop / 100, disagreement=(lost + gained) / images, alpha=ALPHA)
    return drop, "skipped", f"{found}; it may be chance: {needed} images would tell"


def _max_difference(planned: Planned, measured: Measured, result: Predictions) -> _Found:
    compared = measured.comparison[result.artifact, result.backend]
    if compared.skipped is not None:
        return None, "skipped", f"it could not run: {compared.skipped}"
    worst = max(compared.differences, key=lambda each: each.max_relative)
    passed = all(each.within(planned.bound) for each in compared.differences)
    value = worst.max_relative if math.isfinite(worst.max_relative) else None
    found = f"{worst.max_relative:.2e} of the largest {worst.output} from the reference, on {worst.count} images, "
    return value, _word(passed), f"{found}{planned.bound:g} allowed"


def _max_layer_difference(planned: Planned, measured: Measured, result: Predictions) -> _Found:
    compared = measured.layers[result.artifact]
    if compared.skipped is not None:
        return None, "skipped", compared.skipped
    worst = max(compared.parts, key=lambda part: part.worst.required_tolerance)
    first = next((part.part for part in compared.parts if not part.worst.within(planned.bound)), None)
    value = worst.worst.max_relative if math.isfinite(worst.worst.max_relative) else None
    found = (
        f"{worst.part} differs by {worst.worst.max_relative:.2e} from the reference's, on {worst.worst.count} images, "
    )
    found += f"{planned.bound:g} allowed" + (f"; {first} is the first that diverges" if first else "")
    return value, _word(first is None), found


def _max_latency_ratio(planned: Planned, measured: Measured, _result: Predictions) -> _Found:
    against = cast("Selected", planned.against)
    reason = measured.why_skipped(against)
    if reason is not None:
        return None, "skipped", f"{against} could not run: {reason}"
    for each in measured.benchmark.skipped:
        if each.backend and f"{each.backend} {each.precision}" in (planned.subject, subject_of(against)):
            return None, "skipped", f"{each.backend} {each.precision} could not be timed: {each.reason}"
    ratio = measured.benchmark.ratio(planned.subject, subject_of(against), 1)
    found = f"{ratio.median:.2f} times as long as {subject_of(against)} for an image, {planned.bound:g} allowed"
    return ratio.median, _word(ratio.median <= planned.bound), found


def _max_size(planned: Planned, measured: Measured, result: Predictions) -> _Found:
    (artifact,) = [each for each in measured.bundle.manifest.artifacts if each.name == result.artifact]
    size = sum(file.size_bytes for file in artifact.files)
    return float(size), _word(size <= planned.bound), f"{size} bytes, {planned.bound:.0f} allowed"


_OF_BUNDLE = {"same_labels": _same_labels, "same_processor": _same_processor, "in_bundle": _in_bundle}
_OF_BACKEND = {
    "finite": _finite,
    "min_accuracy": _min_accuracy,
    "max_drop": _max_drop,
    "min_agreement": _min_agreement,
    "max_difference": _max_difference,
    "max_layer_difference": _max_layer_difference,
    "max_latency_ratio": _max_latency_ratio,
    "max_size": _max_size,
}
