"""Results of a layer-by-layer comparison."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from vitdeploy.assess.metrics.status import ByResult, CheckResult, ImageAssessment, counted

if TYPE_CHECKING:
    from vitdeploy.assess.metrics.outputs import Difference


@dataclasses.dataclass(frozen=True)
class PartDifference:
    """One part of a model, run on the same input as the reference's.

    Attributes:
        part: "embeddings", "layers.0" ..., "head".
        differences: Differences of the part's result; one per output for the head. Hidden states are in units of their
            channel's scale, see `_scale`.
    """

    part: str
    differences: tuple[Difference, ...]

    @property
    def worst(self) -> Difference:
        """The difference that requires the largest tolerance."""
        return max(self.differences, key=lambda difference: difference.required_tolerance)

    def to_dict(self) -> dict[str, Any]:
        return {"part": self.part, "differences": [difference.to_dict() for difference in self.differences]}


@dataclasses.dataclass(frozen=True)
class ArtifactLayers:
    """One artifact, compared part by part.

    Attributes:
        artifact: Name, such as "onnx-fp32".
        tolerance: Largest difference allowed, relative to the largest value of a channel, or of an output.
        parts: Parts, in the order of computation; empty if the artifact was skipped.
        skipped: Reason why it could not be compared; None if it was.
    """

    artifact: str
    tolerance: float
    parts: tuple[PartDifference, ...] = ()
    skipped: str | None = None

    @property
    def first(self) -> str | None:
        """The first part whose own difference exceeds the tolerance."""
        return next((part.part for part in self.parts if not part.worst.within(self.tolerance)), None)

    @property
    def status(self) -> str:
        """Outcome, "passed", "failed" or "skipped"."""
        if self.skipped is not None:
            return "skipped"
        return "passed" if self.parts and self.first is None else "failed"

    @property
    def check_results(self) -> tuple[CheckResult, ...]:
        """One check per part; one if the artifact was skipped."""
        if self.skipped is not None:
            return (CheckResult(self.artifact, "debug layers", "skipped", self.skipped),)
        return tuple(
            CheckResult(
                self.artifact,
                part.part,
                "passed" if part.worst.within(self.tolerance) else "failed",
                f"max relative difference {part.worst.max_relative:.2e}, {self.tolerance:g} allowed"
                + ("; the first part that diverges" if part.part == self.first else ""),
            )
            for part in self.parts
        )

    def to_dict(self) -> dict[str, Any]:
        parts = [part.to_dict() for part in self.parts]
        return {**dataclasses.asdict(self), "parts": parts, "first": self.first, "status": self.status}


@dataclasses.dataclass(frozen=True, repr=False)
class LayerComparison(ByResult, ImageAssessment):
    """Comparison of a bundle's artifacts with the reference, part by part; see `compare_layers`.

    Attributes:
        against: Baseline of the comparison: "reference", or an artifact's name.
        results: One per artifact.
    """

    against: str
    results: tuple[ArtifactLayers, ...]

    @property
    def brief(self) -> str:
        """The result in a few words."""
        return f"{self.status} on {self.images_text}; {counted([result.status for result in self.results], 'result')}"

    def to_dict(self) -> dict[str, Any]:
        results = [result.to_dict() for result in self.results]
        return {**dataclasses.asdict(self), "status": self.status, "results": results}
