"""Accuracy targets of a quantized artifact: a bound and its images."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Protocol

from vitdeploy.assess.data.dataset import chosen_names
from vitdeploy.exporting.options import MinCosine
from vitdeploy.exporting.quantization.calibration_images import FEWEST_APART

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vitdeploy.exporting.options import AccuracyBound
    from vitdeploy.exporting.quantization.calibration_images import CalibrationImages, CalibrationParts
    from vitdeploy.runtimes.base import Runtime


class AccuracyTarget(Protocol):
    """An accuracy bound, and the images on which it must hold."""

    @property
    def bound(self) -> AccuracyBound: ...

    @property
    def images(self) -> CalibrationImages: ...

    def at(self, positions: Sequence[int]) -> AccuracyTarget:
        """The same target on a subset of the images."""

    def measure(self, runtime: Runtime) -> Any:
        """Measure an artifact's accuracy, in the form that the other methods take."""

    def reached_by(self, accuracy: Any) -> bool:
        """True if a search may end with this accuracy."""

    def met_by(self, accuracy: Any) -> bool:
        """True if this accuracy meets the bound."""

    def check(self, name: str, accuracy: Any) -> dict[str, Any]:
        """The artifact's accuracy on the search images, as a manifest record.

        Raises:
            CheckFailedError: If the bound does not hold.
        """

    def check_held_out(self, name: str, accuracy: Any) -> dict[str, Any]:
        """The artifact's accuracy on held-out images, as a manifest record.

        Raises:
            CheckFailedError: If the bound does not hold.
        """

    def record_without(self, accuracy: Any) -> dict[str, Any]:
        """The accuracy with no layer kept in float32, as a manifest record."""


def split_target(whole: AccuracyTarget, parts: CalibrationParts) -> tuple[AccuracyTarget, AccuracyTarget | None]:
    """Hold out a quarter of the bound's images, to judge the result of a search on the others.

    No range or candidate is measured on a held-out image, whatever its name or folder; among calibration images, the
    judging part is held out. Cosine is higher on images that ranges were measured on, so its search uses the choice
    part and new images, if there are any. With fewer than 16 images, or if none can be held out, all are used for
    everything.
    """
    names, contents = whole.images.images.names, whole.images.contents
    same = os.path.realpath(whole.images.images.source) == os.path.realpath(parts.judge.images.source)
    if len(names) < FEWEST_APART or (same and not parts.held_out):
        return whole, None
    measured, chosen_by = {*parts.ranges.contents}, {*parts.choice.contents}
    unseen = {content: at for at, content in enumerate(contents) if content not in measured | chosen_by}
    free = sorted(unseen.values())  # each once, however many copies exist
    kept = chosen_names([names[position] for position in free], len(names) // 4, whole.images.seed)
    judged = sorted(free[position] for position in kept)
    judging = {contents[position] for position in judged}
    search = [position for position, content in enumerate(contents) if content not in judging]
    if not judged or not search:
        return whole, None
    unmeasured = [position for position in search if contents[position] not in measured]
    return whole.at(unmeasured if isinstance(whole.bound, MinCosine) and unmeasured else search), whole.at(judged)
