"""Accuracy targets of a quantized artifact: a bound, and the images on which it must hold."""

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
    """A bound, and the images on which it must hold."""

    @property
    def bound(self) -> AccuracyBound: ...

    @property
    def images(self) -> CalibrationImages: ...

    def at(self, positions: Sequence[int]) -> AccuracyTarget:
        """The same on some of the images."""

    def measure(self, runtime: Runtime) -> Any:
        """The accuracy of an artifact, which the other methods take."""

    def reached_by(self, accuracy: Any) -> bool:
        """Whether a search may end with this accuracy."""

    def check(self, name: str, accuracy: Any) -> dict[str, Any]:
        """The record of an artifact on the images of the search, for the manifest.

        Raises:
            CheckFailedError: If the bound does not hold.
        """

    def check_held_out(self, name: str, accuracy: Any) -> dict[str, Any]:
        """The record of an artifact on images that no search saw, for the manifest.

        Raises:
            CheckFailedError: If the bound does not hold.
        """

    def record_without(self, accuracy: Any) -> dict[str, Any]:
        """The record of the accuracy with no layer kept in float32, for the manifest."""


def split_target(whole: AccuracyTarget, parts: CalibrationParts) -> tuple[AccuracyTarget, AccuracyTarget | None]:
    """Hold out a quarter of the images of a bound, to judge what a search on the others found.

    No range or candidate was measured on a held-out image, whatever its name or folder; of the calibration images,
    those that judge every artifact are held out. A cosine is higher on images that ranges were measured on: its search
    sees those of the choice and new ones, where there are any. Of fewer than 16 images, or if none could be held out,
    all serve for everything.
    """
    names, contents = whole.images.images.names, whole.images.contents
    same = os.path.realpath(whole.images.images.source) == os.path.realpath(parts.judge.images.source)
    if len(names) < FEWEST_APART or (same and not parts.held_out):
        return whole, None
    measured, chosen_by = {*parts.ranges.contents}, {*parts.choice.contents}
    unseen = {content: at for at, content in enumerate(contents) if content not in measured | chosen_by}
    free = sorted(unseen.values())  # each once, however many copies there are
    kept = chosen_names([names[position] for position in free], len(names) // 4, whole.images.seed)
    judged = sorted(free[position] for position in kept)
    judging = {contents[position] for position in judged}
    search = [position for position, content in enumerate(contents) if content not in judging]
    if not judged or not search:
        return whole, None
    unmeasured = [position for position in search if contents[position] not in measured]
    return whole.at(unmeasured if isinstance(whole.bound, MinCosine) and unmeasured else search), whole.at(judged)
