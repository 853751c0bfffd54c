"""Plan of a gate: its checks in order, refused if there are too few images."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

from vitdeploy.assess.debug.layers import LAYER_TOLERANCES, SPLITTERS
from vitdeploy.assess.gate.retrieval import DROPS, FLOORS
from vitdeploy.assess.metrics.cosine_bound import COSINE_BOUNDS
from vitdeploy.assess.metrics.features import PERCENTILE, searchable
from vitdeploy.assess.metrics.outputs import default_tolerance
from vitdeploy.assess.metrics.shares import images_needed, mcnemar_power, smallest_bound
from vitdeploy.assess.runs.targets import REFERENCE, Selected, no_artifact, reference_backend, select
from vitdeploy.errors import UsageError
from vitdeploy.specs import Task
from vitdeploy.system.shares import in_percent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vitdeploy.assess.gate.baseline import Baseline
    from vitdeploy.assess.gate.rules import GateRules, Rules
    from vitdeploy.bundle.bundle import Bundle

ALPHA = 0.05  # largest p-value of McNemar's test that counts as a drop
POWER = 0.9  # power to detect a drop of `SEEN` times the allowed size
SEEN = 2.0
_BUNDLE = "bundle"


@dataclasses.dataclass(frozen=True)
class Planned:
    """A planned check: a rule, its subject, such as "onnxruntime fp32" or "bundle", and its bound, in the rule's unit.

    `selected` is None for a check of the bundle, or of something no longer in it; `against` is the other backend of a
    latency ratio.
    """

    rule: str
    subject: str
    bound: float
    selected: Selected | None = None
    against: Selected | None = None


def subject_of(selected: Selected) -> str:
    """Name of an artifact on its backend, as in `Predictions.name`; without a backend, the artifact's name."""
    return f"{selected.backend} {selected.precision}" if selected.backend else selected.artifact


def plan(
    bundle: Bundle,
    rules: GateRules,
    baseline: Baseline | None,
    images: int,
    backends: Sequence[str] | None,
    *,
    update: bool = False,
    labelled: bool = False,
) -> tuple[Planned, ...]:
    """The checks of a gate, in order: the bundle's, then each backend's.

    Args:
        bundle: The bundle.
        rules: Rules of its artifacts.
        baseline: Baseline to compare with; None for no comparison.
        images: Number of images.
        backends: As for `evaluate`.
        update: True to write the baseline: a drop is then not checked, but its bound must be valid later.
        labelled: True if the images of a model without classes have labels.

    Raises:
        UsageError: If a rule applies to nothing in the bundle, requires a baseline, or is too fine for the number of
            images.
    """
    selection = select(bundle, backends)
    if not bundle.manifest.artifacts:
        raise no_artifact(bundle, "gate")
    rules.check_names([REFERENCE, *(artifact.name for artifact in bundle.manifest.artifacts)])
    checks = []
    if baseline is not None:
        checks += [Planned("same_labels", _BUNDLE, 0.0), Planned("same_processor", _BUNDLE, 0.0)]
        if backends is None:  # named backends exclude others on purpose
            subjects = {subject_of(selected) for selected in selection}
            checks += [Planned("in_bundle", name, 0.0) for name in baseline.subjects if name not in subjects]
    for selected in selection:
        held = rules.of(selected.artifact)
        if labelled:
            checks += _of_retrieval(selected, held, baseline, images, subject_of(select(bundle)[0]), update)
        checks += _of_artifact(bundle, selected, held, baseline, images, update)
    _check_held(rules, checks, {selected.artifact for selected in selection}, update)
    return tuple(checks)


def _check_held(rules: GateRules, checks: Sequence[Planned], artifacts: set[str], update: bool) -> None:
    """Refuse a rule that applies to nothing: it would seem to pass."""
    present = {name: held for name, held in rules.artifacts.items() if name in artifacts}
    for name, of_one in {"": rules.every, **present}.items():
        given = {rule for rule, bound in dataclasses.asdict(of_one).items() if bound is not None}
        if "latency_against" in given:
            given.add("max_latency_ratio")
        held = {check.rule for check in checks if check.selected and name in ("", check.selected.artifact)}
        for rule in sorted(given - held - {"latency_against"} - ({*DROPS} if update else set())):
            raise UsageError(
                f"{rule} applies to nothing in {name or 'this bundle'}",
                what=rule, where=name or None, hint="remove it, or choose another --backend",
            )  # fmt: skip


def _of_artifact(
    bundle: Bundle, selected: Selected, rules: Rules, baseline: Baseline | None, images: int, update: bool
) -> list[Planned]:
    subject = subject_of(selected)

    def planned(rule: str, bound: float, against: Selected | None = None) -> Planned:
        return Planned(rule, subject, bound, selected, against)

    with_classes = bundle.manifest.task == Task.CLASSIFICATION
    if not with_classes and selected.artifact == REFERENCE:
        return []  # the baseline of every comparison
    checks = [planned("finite", 0.0)]
    _check_classes(rules, with_classes=with_classes, features=bundle.manifest.task == Task.FEATURES)
    if rules.min_accuracy is not None:
        _check_share("min_accuracy", subject, in_percent(rules.min_accuracy), images)
        checks.append(planned("min_accuracy", in_percent(rules.min_accuracy)))
    if baseline is not None and with_classes:
        disagreement = baseline.disagreement(subject, subject_of(select(bundle)[0]))
        checks.append(planned("max_drop", _allowed_drop("max_drop", subject, rules.max_drop, images, disagreement)))
    elif rules.max_drop is not None and with_classes:
        _check_later_drop("max_drop", subject, rules.max_drop, images, update)
    if selected.artifact == REFERENCE:
        return checks
    if rules.min_agreement is not None:
        _check_share("min_agreement", subject, in_percent(rules.min_agreement), images)
        checks.append(planned("min_agreement", in_percent(rules.min_agreement)))
    (artifact,) = [candidate for candidate in bundle.manifest.artifacts if candidate.name == selected.artifact]
    if rules.min_cosine is not None:
        _check_percentile(subject, rules.min_cosine, images)
        checks.append(planned("min_cosine", rules.min_cosine))
    if rules.min_neighbour_agreement is not None and searchable([spec.name for spec in artifact.outputs]):
        _check_share("min_neighbour_agreement", subject, in_percent(rules.min_neighbour_agreement), images)
        checks.append(planned("min_neighbour_agreement", in_percent(rules.min_neighbour_agreement)))
    if rules.max_difference is None and not with_classes and artifact.precision in COSINE_BOUNDS:
        checks.append(planned("cosine", COSINE_BOUNDS[artifact.precision].p5))
    else:
        bound = default_tolerance(artifact) if rules.max_difference is None else rules.max_difference
        checks.append(planned("max_difference", bound))
    of_layer = rules.max_layer_difference
    if of_layer is None and artifact.format in SPLITTERS:
        of_layer = LAYER_TOLERANCES.get(artifact.precision)
    if of_layer is not None:
        checks.append(planned("max_layer_difference", of_layer))
    if rules.max_latency_ratio is not None:
        (against,) = select(bundle, [rules.latency_against or f"{reference_backend()}:fp32"])
        if against != selected:
            checks.append(planned("max_latency_ratio", rules.max_latency_ratio, against))
    if rules.max_size is not None:
        checks.append(planned("max_size", float(rules.max_size)))
    return checks


def _check_share(rule: str, subject: str, percent: float, images: int) -> None:
    """Refuse a bound above 1 - 1/N other than 1: with N images, it allows no wrong one."""
    if percent < 100 and images * (100 - percent) < 100 - 1e-9:
        needed = math.ceil(100 / (100 - percent) - 1e-9)
        raise UsageError(
            f"{rule} of {percent:.15g} % for {subject} needs {needed} images, of which one may be wrong; the data has "
            f"{images}",
            what=rule, where=subject, expected=needed, found=images, hint="add images, or demand 100%",
        )  # fmt: skip


def _of_retrieval(
    selected: Selected, rules: Rules, baseline: Baseline | None, images: int, reference: str, update: bool
) -> list[Planned]:
    """Checks of the classes of an artifact's, or the reference's, nearest neighbours."""
    subject, checks = subject_of(selected), []
    for rule in FLOORS:
        share = getattr(rules, rule)
        if share is not None:
            _check_share(rule, subject, in_percent(share), images)
            checks.append(Planned(rule, subject, in_percent(share), selected))
    accepted = None if baseline is None else baseline.retrieval
    for rule, figures in DROPS.items():
        share = getattr(rules, rule)
        if accepted is not None:
            disagreement = accepted.disagreement(subject, reference, figures, images)
            checks.append(Planned(rule, subject, _allowed_drop(rule, subject, share, images, disagreement), selected))
        elif share is not None and baseline is not None:
            raise UsageError(
                f"{rule} needs kNN accuracy and recall in the baseline, which has none", what=rule, found=share,
                hint="create it again with --update",
            )  # fmt: skip
        elif share is not None:
            _check_later_drop(rule, subject, share, images, update)
    return checks


def _check_later_drop(rule: str, subject: str, share: float, images: int, update: bool) -> None:
    """Without a baseline, refuse a drop; with `update`, only one that could not be checked later."""
    if not update:
        hint = "name one with --baseline; --update creates it"
        raise UsageError(f"{rule} needs a baseline", what=rule, found=share, hint=hint)
    _allowed_drop(rule, subject, share, images, 0.0)


def _check_classes(rules: Rules, *, with_classes: bool, features: bool) -> None:
    """Refuse rules that need another kind of model."""
    of_classes = ("min_accuracy", "min_agreement", *(() if features else ("max_drop",)))
    of_features = () if features else (*FLOORS, "max_recall_drop")
    for rule in of_features if with_classes else (*of_classes, *of_features):
        if getattr(rules, rule) is None:
            continue
        if rule in of_features:
            hint = "use min_accuracy and max_drop" if with_classes else "use min_cosine"
            raise UsageError(f"{rule} needs a model that extracts features", what=rule, hint=hint)
        hint = "use min_cosine and min_neighbour_agreement"
        raise UsageError(f"{rule} needs a model with classes", what=rule, hint=hint)


def _check_percentile(subject: str, cosine: float, images: int) -> None:
    """Raise UsageError for too few images for a percentile: it would be the lowest value."""
    needed = 100 // PERCENTILE
    if images < needed:
        raise UsageError(
            f"min_cosine of {cosine:g} for {subject} needs {needed} images, of which the {PERCENTILE}th percentile is "
            f"one; the data has {images}",
            what="min_cosine", where=subject, expected=needed, found=images, hint="add images",
        )  # fmt: skip


def _allowed_drop(rule: str, subject: str, share: float | None, images: int, disagreement: float) -> float:
    """Largest drop that passes, in points. A drop of `SEEN` times the size must fail with probability `POWER`."""
    if share is None:
        return 100 * smallest_bound(images, SEEN, disagreement=disagreement, alpha=ALPHA, power=POWER)
    points, drop = in_percent(share), min(SEEN * share, 1.0)
    differing = max(drop, disagreement)
    if mcnemar_power(images, (differing + drop) / 2, (differing - drop) / 2, ALPHA, share) < POWER:
        needed = images_needed(drop, disagreement=differing, alpha=ALPHA, power=POWER, beyond=share)
        least = smallest_bound(images, SEEN, disagreement=disagreement, alpha=ALPHA, power=POWER)
        raise UsageError(
            f"{rule} of {points:g} points for {subject} needs {needed} images, so that a drop of {100 * drop:g} is "
            f"seen (McNemar, p <= {ALPHA:g}, with {POWER:.0%} power); the data has {images}",
            what=rule, where=subject, expected=needed, found=images,
            hint=f"add images, or allow {math.ceil(1e4 * least) / 100:g} points",
        )  # fmt: skip
    return points
