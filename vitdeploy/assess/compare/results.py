"""Results of a comparison, for each artifact on each backend."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from vitdeploy.assess.metrics.cosine_bound import LOOSE_BOUND, CosineBound
from vitdeploy.assess.metrics.status import ByResult, CheckResult, ImageAssessment, counted
from vitdeploy.bundle.scores import ProblemType

if TYPE_CHECKING:
    from vitdeploy.assess.compare.worst_images import WorstImage
    from vitdeploy.assess.metrics.features import Nearness
    from vitdeploy.assess.metrics.logits import LogitsDifference
    from vitdeploy.assess.metrics.outputs import Difference


@dataclasses.dataclass(frozen=True)
class BackendComparison:
    """The comparison of one artifact on one backend.

    Attributes:
        artifact: Name, such as "onnx-fp32".
        backend: Backend that ran it; "" if no backend of this version runs it.
        tolerance: Largest difference allowed, relative to each output's largest value.
        differences: One per output; empty if the backend was skipped.
        details: Engine, device and settings that ran.
        skipped: Reason why it could not run; None if it ran.
        logits: Further metrics of a single-label classifier's logits; None for other models, or if some are not finite.
        not_finite: Zero-based positions of the images with NaN or infinite outputs.
        furthest: Images with the largest differences, largest first; single-label classifiers only.
        nearness: Vectors compared with the reference's, for a model without classes, see
            `vitdeploy.assess.metrics.features`; neighbours are searched among given images only.
        cosine_bound: Bound of `nearness`, used instead of a tolerance for a quantized artifact of a model without
            classes if no tolerance was given.
    """

    artifact: str
    backend: str
    tolerance: float
    differences: tuple[Difference, ...] = ()
    details: dict[str, Any] = dataclasses.field(default_factory=dict)
    skipped: str | None = None
    logits: LogitsDifference | None = None
    not_finite: tuple[int, ...] = ()
    furthest: tuple[WorstImage, ...] = ()
    nearness: tuple[Nearness, ...] = ()
    cosine_bound: CosineBound | None = None

    @property
    def status(self) -> str:
        """Outcome, "passed", "failed" or "skipped"."""
        if self.skipped is not None:
            return "skipped"
        passed = bool(self.differences) and all(map(self.passes, self.differences))
        return "passed" if passed and not self._far else "failed"

    def passes(self, difference: Difference) -> bool:
        """True if an output passes by itself; if vectors are judged, true if it resembles the reference's."""
        return difference.within(self.tolerance) if self.cosine_bound is None else LOOSE_BOUND.resembles(difference)

    @property
    def judged_by(self) -> str:
        """The rule, as text."""
        if self.cosine_bound is None:
            return f"largest difference, {self.tolerance:g} of the largest value allowed"
        bound = self.cosine_bound
        text = f"cosine, mean {bound.mean:g} and 5th percentile {bound.p5:g} required"
        if any(near.same_neighbours is not None for near in self.nearness):
            text += f"; same nearest neighbour, {bound.neighbours:.0%} required"
        return f"{text}; relative error, {bound.relative_error:.0%} allowed"

    @property
    def _far(self) -> list[str]:
        bound = self.cosine_bound
        return [] if bound is None else [far for near in self.nearness if (far := bound.why_not(near)) is not None]

    @property
    def check_results(self) -> tuple[CheckResult, ...]:
        """One check per output; one if the artifact was skipped."""
        subject = f"{self.artifact} on {self.backend or 'no backend'}"
        if self.skipped is not None:
            return (CheckResult(subject, "compare", "skipped", self.skipped),)
        if self.cosine_bound is not None:
            broken = tuple(
                CheckResult(
                    subject, output.output, "failed", f"{output.output} has a mean cosine of {output.mean_cosine:.4f}"
                )
                for output in self.differences
                if output.finite and not self.passes(output)
            )
            return broken + tuple(
                CheckResult(
                    subject, near.output, "failed" if far else "passed", far or f"{near} ({near.images} images)"
                )
                for near in self.nearness
                for far in (self.cosine_bound.why_not(near) if self._finite else "not all values are finite",)
            )
        return tuple(
            CheckResult(
                subject,
                difference.output,
                "passed" if difference.within(self.tolerance) else "failed",
                f"max relative difference {difference.max_relative:.2e}, {self.tolerance:g} allowed; "
                f"{difference.required_tolerance:g} would pass",
            )
            for difference in self.differences
        )

    @property
    def _finite(self) -> bool:
        return all(difference.finite for difference in self.differences)

    def to_dict(self) -> dict[str, Any]:
        return {
            **dataclasses.asdict(self),
            "status": self.status,
            "judged_by": "difference" if self.cosine_bound is None else "cosine",
            "differences": [difference.to_dict() for difference in self.differences],
            "nearness": [near.to_dict() for near in self.nearness],
        }


@dataclasses.dataclass(frozen=True, repr=False)
class Comparison(ByResult, ImageAssessment):
    """The comparison of a bundle's artifacts with the reference.

    Attributes:
        results: One per artifact and backend.
        problem_type: Meaning of the logits; only a single-label classifier's are compared as classes, too.
    """

    results: tuple[BackendComparison, ...]
    problem_type: ProblemType = ProblemType.SINGLE_LABEL

    @property
    def brief(self) -> str:
        """The result in a few words."""
        return f"{self.status} on {self.images_text}; {counted([result.status for result in self.results], 'result')}"

    @property
    def note(self) -> str:
        """A remark about figures that do not apply to the model; empty if all apply."""
        if self.problem_type.ranked:
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
