"""Accuracy bounds of a quantized artifact, and what measures it against them on images."""

from __future__ import annotations

import dataclasses
import numbers
from typing import TYPE_CHECKING, Any, Protocol

from vitdeploy.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vitdeploy.exporting.calibration_images import CalibrationImages
    from vitdeploy.runtimes.base import Runtime


@dataclasses.dataclass(frozen=True)
class Bound:
    """What is allowed; exactly one is given.

    Attributes:
        max_drop: of the top-1 accuracy on labelled images, against the reference's, in points (percent), from 0 up.
        min_agreement: the least share of images, from 0 to 1, of which the best class is the reference's.
        min_cosine: the least 5th percentile, over images, of the cosine similarity with the reference's vector, above 0
            and below 1; see `vitdeploy.assess.metrics.features`.
    """

    max_drop: float | None = None
    min_agreement: float | None = None
    min_cosine: float | None = None

    def __post_init__(self) -> None:
        given = {name: value for name, value in dataclasses.asdict(self).items() if value is not None}
        if len(given) != 1:
            raise UsageError(
                f"an accuracy bound must be one of max_drop, min_agreement and min_cosine, got "
                f"{' and '.join(f'{name} {value}' for name, value in given.items()) or 'none'}; give one"
            )
        if self.max_drop is not None and not (_is_number(self.max_drop) and 0 <= self.max_drop < 100):
            raise UsageError(f"max_drop must be points of accuracy from 0 up to 100, got {self.max_drop!r:.80}")
        if self.min_agreement is not None and not (_is_number(self.min_agreement) and 0 < self.min_agreement <= 1):
            raise UsageError(
                f"min_agreement must be a share above 0 and up to 1, such as 0.99, got {self.min_agreement!r:.80}"
            )
        if self.min_cosine is not None and not (_is_number(self.min_cosine) and 0 < self.min_cosine < 1):
            raise UsageError(f"min_cosine must be above 0 and below 1, such as 0.99, got {self.min_cosine!r:.80}")

    def __str__(self) -> str:
        ((name, value),) = ((name, value) for name, value in dataclasses.asdict(self).items() if value is not None)
        return f"{name} {value:.12g}"


class Goal(Protocol):
    """A bound, and the images on which it holds."""

    @property
    def bound(self) -> Bound: ...

    @property
    def images(self) -> CalibrationImages: ...

    def at(self, positions: Sequence[int]) -> Goal:
        """The same on some of the images."""

    def measure(self, runtime: Runtime) -> Any:
        """Measure an artifact: a `Measure`, which the others take."""

    def honoured_by(self, found: Any) -> bool:
        """Whether a search may end with this."""

    def check(self, name: str, found: Any) -> dict[str, Any]:
        """The record of an artifact, for the manifest, on the images of the search.

        Raises:
            CheckFailedError: it is farther than the bound.
        """

    def check_held_out(self, name: str, found: Any) -> dict[str, Any]:
        """The same on images that no search saw.

        Raises:
            CheckFailedError: the bound does not hold on them.
        """

    def without(self, found: Any) -> dict[str, Any]:
        """What was measured with no layer kept in float32, for the manifest."""


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)
