"""The checks of a gate: measurement, bound and message of each."""

from __future__ import annotations

import dataclasses
import math
import time
from typing import TYPE_CHECKING, Any, TypeVar, cast

from vitdeploy.assess.gate.baseline import labels_sha256, processor_sha256
from vitdeploy.assess.gate.plan import ALPHA, Planned, subject_of
from vitdeploy.assess.gate.retrieval import DROPS, FIGURE_TEXTS, FLOORS, figure_of
from vitdeploy.assess.metrics.accuracy import Accuracy
from vitdeploy.assess.metrics.cosine_bound import COSINE_BOUNDS, too_long
from vitdeploy.assess.metrics.features import FEWEST_SEARCHED, Nearness, shown
from vitdeploy.assess.metrics.shares import images_needed, mcnemar
from vitdeploy.errors import UnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vitdeploy.assess.compare.results import BackendComparison
    from vitdeploy.assess.compare.vector_run import VectorRun
    from vitdeploy.assess.debug.layer_results import ArtifactLayers
    from vitdeploy.assess.evaluate.embedding_run import Neighbours
    from vitdeploy.assess.gate.measured import Measured
    from vitdeploy.assess.runs.targets import Selected


@dataclasses.dataclass(frozen=True)
class Check:
    """The result of one rule for one subject, such as "onnxruntime fp32" or "bundle".

    `value` (measured, or None) and `bound` (allowed) are in the rule's unit. `status` is "passed", "failed", "skipped",
    or "new" for an artifact that the baseline lacks. `message` is a one-line result. `seconds` is the time of the
    check, including measurements that it was the first to request; it is ignored by `==`.
    """

    rule: str
    subject: str
    value: float | None
    bound: float
    status: str
    message: str
    seconds: float = dataclasses.field(default=0.0, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """The check without its time, so that equal gates give equal JSON."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name != "seconds"}


def judge(planned: Planned, measured: Measured) -> Check:
    """Run one check."""
    begin = time.perf_counter()
    check = _judged(planned, measured)
    return dataclasses.replace(check, seconds=time.perf_counter() - begin)


def _judged(planned: Planned, measured: Measured) -> Check:
    selected = planned.selected
    if selected is None:
        value, status, message = _OF_BUNDLE[planned.rule](planned, measured)
        return Check(planned.rule, planned.subject, value, planned.bound, status, message)
    reason = measured.why_skipped(selected)
    if reason is None:
        try:
            value, status, message = _OF_BACKEND[planned.rule](planned, measured, selected)
            return Check(planned.rule, planned.subject, value, planned.bound, status, message)
        except UnavailableError as exc:
            reason = str(exc)
    return Check(planned.rule, planned.subject, None, planned.bound, "skipped", f"it could not run: {reason}")


_R = TypeVar("_R", "VectorRun", "BackendComparison", "ArtifactLayers", "Neighbours")
_Outcome = tuple[float | None, str, str]
_NOT_ACCEPTED: _Outcome = (None, "new", "not in the baseline; run with --update to accept it")


def _word(passed: bool) -> str:
    return "passed" if passed else "failed"


def _ran(result: _R) -> _R:
    """The result, unless it was skipped; see `judge`."""
    if result.skipped is not None:
        raise UnavailableError(result.skipped)
    return result


def _same_labels(_planned: Planned, measured: Measured) -> _Outcome:
    same = measured.accepted.labels_sha256 == labels_sha256(measured.bundle)
    say = "the class names are" + ("" if same else " not")
    return float(not same), _word(same), f"{say} the baseline's{'' if same else '; accept them with --update'}"


def _same_processor(_planned: Planned, measured: Measured) -> _Outcome:
    old, new = measured.accepted.processor, processor_sha256(measured.bundle)
    changed = [name for name in sorted({*old, *new}) if old.get(name) != new.get(name)]
    if changed:
        return (
            float(len(changed)),
            "failed",
            f"{', '.join(changed)} changed since the baseline; accept it with --update",
        )
    return 0.0, "passed", "the image processor is the baseline's"


def _in_bundle(_planned: Planned, _measured: Measured) -> _Outcome:
    return None, "skipped", "the baseline has it, the bundle does not; export it, or drop it with --update"


def _finite(_planned: Planned, measured: Measured, selected: Selected) -> _Outcome:
    if measured.evaluation is None:
        count, what = _ran(measured.vectors[selected]).not_finite, "vectors"
    else:
        count, what = measured.predictions[selected].not_finite, "logits"
    total = len(measured.data)
    message = (
        f"the {what} of {count} of {total} images are not all finite"
        if count
        else f"all {what} are finite ({total} images)"
    )
    return float(count), _word(not count), message


def _min_accuracy(planned: Planned, measured: Measured, selected: Selected) -> _Outcome:
    return _share(planned, measured.classified.top1(measured.predictions[selected]), "top-1 accuracy")


def _min_agreement(planned: Planned, measured: Measured, selected: Selected) -> _Outcome:
    reference = measured.classified.reference
    if reference is None:
        return None, "skipped", "the reference did not run; let it, with --backend torch"
    return _share(
        planned,
        measured.classified.agreement(measured.predictions[selected], reference),
        "agreement with the reference",
    )


def _min_cosine(planned: Planned, measured: Measured, selected: Selected) -> _Outcome:
    run = _ran(measured.vectors[selected])
    worst = min(run.nearness, key=lambda near: near.p5_cosine)
    message = f"{worst.output}: {_cosines(worst)}; 5th percentile of at least {planned.bound:g} required"
    far = next(filter(None, (too_long(near, planned.bound) for near in run.nearness)), None)
    message += f"; {far}" if far else ""
    return worst.p5_cosine, _word(worst.p5_cosine >= planned.bound and far is None), message


def _min_neighbour_agreement(planned: Planned, measured: Measured, selected: Selected) -> _Outcome:
    for near in _ran(measured.vectors[selected]).nearness:
        if near.same_neighbours is not None:
            kept = Accuracy(near.same_neighbours, near.images)
            return _share(planned, kept, f"same nearest neighbour by {near.output}")
    return (
        None,
        "skipped",
        f"{FEWEST_SEARCHED} images or more are needed to search among, the data has {len(measured.data)}",
    )


def _cosine(planned: Planned, measured: Measured, selected: Selected) -> _Outcome:
    run = _ran(measured.vectors[selected])
    worst = min(run.nearness, key=lambda near: near.p5_cosine)
    bound = COSINE_BOUNDS[selected.precision]
    far = [why for near in run.nearness if (why := bound.why_not(near)) is not None]
    whole = measured.whole_outputs[selected.artifact, selected.backend]
    far += [
        f"{output.output} is another output than the reference's, with a mean cosine of {output.mean_cosine:.4f} "
        f"({output.count} images)"
        for output in whole.differences
        if not whole.passes(output)
    ]
    message = far[0] if far else f"{worst.output}: {_cosines(worst)}; mean of {bound.mean:g} and 5th percentile of "
    return worst.p5_cosine, _word(not far), message if far else f"{message}{planned.bound:g} required"


def _cosines(near: Nearness) -> str:
    return f"mean cosine {shown(near.mean_cosine)}, 5th percentile {shown(near.p5_cosine)} ({near.images} images)"


def _share(planned: Planned, accuracy: Accuracy, what: str) -> _Outcome:
    passed = 100 * accuracy.correct >= planned.bound * accuracy.total - 1e-9
    return 100 * accuracy.value, _word(passed), f"{what} {accuracy}, at least {planned.bound:.15g} % required"


def _min_retrieval(planned: Planned, measured: Measured, selected: Selected) -> _Outcome:
    figure = FLOORS[planned.rule]
    accuracy = figure_of(measured.searched, _ran(measured.neighbours[selected]), figure)
    return _share(planned, accuracy, FIGURE_TEXTS[figure])


def _max_drop(planned: Planned, measured: Measured, selected: Selected) -> _Outcome:
    if measured.embeddings is not None:
        return _max_retrieval_drop(planned, measured, selected)
    if planned.subject not in measured.accepted.wrong:
        return _NOT_ACCEPTED
    wrong = measured.classified.top1(measured.predictions[selected]).wrong
    return _drop(planned, measured, measured.accepted.wrong[planned.subject], wrong)


def _max_retrieval_drop(planned: Planned, measured: Measured, selected: Selected) -> _Outcome:
    """The figure with the worst status and the largest drop."""
    accepted = measured.accepted_retrieval.wrong.get(planned.subject)
    if accepted is None:
        return _NOT_ACCEPTED
    outcomes, neighbours = [], _ran(measured.neighbours[selected])
    for figure in DROPS[planned.rule]:
        wrong = figure_of(measured.searched, neighbours, figure).wrong
        drop, status, message = _drop(planned, measured, accepted[figure], wrong)
        outcomes.append((drop, status, f"{FIGURE_TEXTS[figure]}: {message}"))
    order = ("passed", "skipped", "failed")
    return max(outcomes, key=lambda outcome: (order.index(outcome[1]), outcome[0]))


def _drop(planned: Planned, measured: Measured, before: Iterable[str], after: Iterable[str]) -> tuple[float, str, str]:
    """Judge a drop by the images that were wrong before and are now."""
    old, new = {*before}, {*after}
    lost, gained, images = len(new - old), len(old - new), measured.accepted.images
    drop, p = 100 * (lost - gained) / images, mcnemar(lost, gained)
    message = f"{drop:+.2f} points of drop ({lost} lost and {gained} gained of {images}, McNemar p = {p:.2g}), "
    message = f"{message}{planned.bound:.4g} allowed"
    if 100 * (lost - gained) <= planned.bound * images + 1e-9:
        return drop, "passed", message
    if p <= ALPHA:
        return drop, "failed", message
    needed = images_needed(drop / 100, disagreement=(lost + gained) / images, alpha=ALPHA)
    return drop, "skipped", f"{message}; it may be chance: {needed} images would tell"


def _max_difference(planned: Planned, measured: Measured, selected: Selected) -> _Outcome:
    compared = _ran(measured.comparison[selected.artifact, selected.backend])
    worst = max(compared.differences, key=lambda difference: difference.max_relative)
    passed = all(difference.within(planned.bound) for difference in compared.differences)
    value = worst.max_relative if math.isfinite(worst.max_relative) else None
    message = f"{worst.output}: max relative difference {worst.max_relative:.2e} on {worst.count} images"
    return value, _word(passed), f"{message}, {planned.bound:g} allowed"


def _max_layer_difference(planned: Planned, measured: Measured, selected: Selected) -> _Outcome:
    compared = _ran(measured.layers[selected.artifact])
    worst = max(compared.parts, key=lambda part: part.worst.required_tolerance)
    first = next((part.part for part in compared.parts if not part.worst.within(planned.bound)), None)
    value = worst.worst.max_relative if math.isfinite(worst.worst.max_relative) else None
    message = f"{worst.part}: max relative difference {worst.worst.max_relative:.2e} on {worst.worst.count} images"
    message += f", {planned.bound:g} allowed" + (f"; {first} is the first that diverges" if first else "")
    return value, _word(first is None), message


def _max_latency_ratio(planned: Planned, measured: Measured, _selected: Selected) -> _Outcome:
    against = cast("Selected", planned.against)
    reason = measured.why_skipped(against)
    if reason is not None:
        return None, "skipped", f"{against} could not run: {reason}"
    for skipped in measured.benchmark.skipped:
        if skipped.backend and f"{skipped.backend} {skipped.precision}" in (planned.subject, subject_of(against)):
            return None, "skipped", f"{skipped.backend} {skipped.precision} could not be timed: {skipped.reason}"
    ratio = measured.benchmark.ratio(planned.subject, subject_of(against), 1)
    message = f"{ratio.against(subject_of(against))}, {planned.bound:g} allowed, for an image"
    return ratio.median, _word(ratio.median <= planned.bound), message


def _max_size(planned: Planned, measured: Measured, selected: Selected) -> _Outcome:
    (artifact,) = [candidate for candidate in measured.bundle.manifest.artifacts if candidate.name == selected.artifact]
    size = sum(file.size_bytes for file in artifact.files)
    return float(size), _word(size <= planned.bound), f"{size} bytes, {planned.bound:.0f} allowed"


_OF_BUNDLE = {"same_labels": _same_labels, "same_processor": _same_processor, "in_bundle": _in_bundle}
_OF_BACKEND = {
    "finite": _finite,
    "min_accuracy": _min_accuracy,
    "max_drop": _max_drop,
    **dict.fromkeys(FLOORS, _min_retrieval),
    "max_recall_drop": _max_retrieval_drop,
    "min_agreement": _min_agreement,
    "min_cosine": _min_cosine,
    "min_neighbour_agreement": _min_neighbour_agreement,
    "cosine": _cosine,
    "max_difference": _max_difference,
    "max_layer_difference": _max_layer_difference,
    "max_latency_ratio": _max_latency_ratio,
    "max_size": _max_size,
}
