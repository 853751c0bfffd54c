"""Plan of a gate: its checks in order, refused if there are too few images."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

from vitdeploy.assess.debug.layers import LAYER_TOLERANCES, SPLITTERS
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
) -> tuple[Planned, ...]:
    """The checks of a gate, in order: the bundle's, then each backend's.

    Args:
        bundle: The bundle.
        rules: Rules of its artifacts.
        baseline: Baseline to compare with; None for no comparison.
        images: Number of images.
        backends: As for `evaluate`.
        update: True to write the baseline: a drop is then not checked, but its bound must be valid later.

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
        checks += _of_artifact(bundle, selected, rules.of(selected.artifact), baseline, images, update)
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
        for rule in sorted(given - held - {"latency_against"} - ({"max_drop"} if update else set())):
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
    if not with_classes:
        _check_no_classes(rules)
    if rules.min_accuracy is not None:
        _check_share("min_accuracy", subject, in_percent(rules.min_accuracy), images)
        checks.append(planned("min_accuracy", in_percent(rules.min_accuracy)))
    if baseline is not None and with_classes:
        disagreement = baseline.disagreement(subject, subject_of(select(bundle)[0]))
        checks.append(planned("max_drop", _allowed_drop(subject, rules.max_drop, images, disagreement)))
    elif rules.max_drop is not None and update:
        _allowed_drop(subject, rules.max_drop, images, 0.0)
    elif rules.max_drop is not None:
        hint = "name one with --baseline; --update creates it"
        raise UsageError("max_drop needs a baseline", what="max_drop", found=rules.max_drop, hint=hint)
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


def _check_no_classes(rules: Rules) -> None:
    for rule in ("min_accuracy", "max_drop", "min_agreement"):
        if getattr(rules, rule) is not None:
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


def _allowed_drop(subject: str, share: float | None, images: int, disagreement: float) -> float:
    """Largest drop that passes, in points. A drop of `SEEN` times the size must fail with probability `POWER`."""
    if share is None:
        return 100 * smallest_bound(images, SEEN, disagreement=disagreement, alpha=ALPHA, power=POWER)
    points, drop = in_percent(share), min(SEEN * share, 1.0)
    differing = max(drop, disagreement)
    if mcnemar_power(images, (differing + drop) / 2, (differing - drop) / 2, ALPHA, share) < POWER:
        needed = images_needed(drop, disagreement=differing, alpha=ALPHA, power=POWER, beyond=share)
        least = smallest_bound(images, SEEN, disagreement=disagreement, alpha=ALPHA, power=POWER)
        raise UsageError(
            f"max_drop of {points:g} points for {subject} needs {needed} images, so that a drop of {100 * drop:g} is "
            f"seen (McNemar, p <= {ALPHA:g}, with {POWER:.0%} power); the data has {images}",
            what="max_drop", where=subject, expected=needed, found=images,
            hint=f"add images, or allow {math.ceil(1e4 * least) / 100:g} points",
        )  # fmt: skip
    return points
