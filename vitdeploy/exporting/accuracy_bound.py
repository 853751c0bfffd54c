"""Accuracy bounds of a quantized artifact, and what measures it against them on images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vitdeploy.exporting.calibration_images import CalibrationImages
    from vitdeploy.exporting.options import AccuracyBound
    from vitdeploy.runtimes.base import Runtime


class Goal(Protocol):
    """A bound, and the images on which it holds."""

    @property
    def bound(self) -> AccuracyBound: ...

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
