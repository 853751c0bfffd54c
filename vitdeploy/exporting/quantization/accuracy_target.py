"""Accuracy targets of a quantized artifact: a bound, and the images on which it must hold."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Protocol

from vitdeploy.assess.data.dataset import chosen_names
from vitdeploy.exporting.options import MinCosine
from vitdeploy.exporting.quantization.calibration_images import FEWEST_APART
from vitdeploy.exporting.quantization.cosine_target import open_cosine_target
from vitdeploy.exporting.quantization.top1_target import open_top1_target

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vitdeploy.bundle.scores import ProblemType
    from vitdeploy.exporting.options import AccuracyBound, Quantization
    from vitdeploy.exporting.quantization.calibration_images import CalibrationImages, CalibrationParts
    from vitdeploy.images.processor import ImageProcessor
    from vitdeploy.runtimes.base import Runtime
    from vitdeploy.system.progress import Progress


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
            CheckFailedError: the bound does not hold.
        """

    def check_held_out(self, name: str, accuracy: Any) -> dict[str, Any]:
        """The record of an artifact on images that no search saw, for the manifest.

        Raises:
            CheckFailedError: the bound does not hold.
        """

    def record_without(self, accuracy: Any) -> dict[str, Any]:
        """The record of the accuracy with no layer kept in float32, for the manifest."""


def open_target(
    options: Quantization,
    reference: Runtime,
    processor: ImageProcessor,
    labels: Sequence[str],
    problem_type: ProblemType,
    progress: Progress,
) -> AccuracyTarget | None:
    """Open the images of an accuracy bound; None without a bound.

    Args:
        options: with calibration images, which serve where no others are named.
        progress: told the step, and how far it has come.

    Raises:
        UsageError: the bound does not fit the model.
        InputError: there are no images, or they have no labels.
        CheckpointError: the reference gives values that are not finite.
    """
    calibration, bound = options.calibration, options.accuracy
    if bound is None or calibration is None:
        return None
    images = options.accuracy_data
    path, limit = (calibration.images, calibration.count) if images is None else (images, None)
    progress.step(f"running the reference on the images of {path}")
    source = path, processor, limit, calibration.seed, progress
    if isinstance(bound, MinCosine):
        return open_cosine_target(bound, reference, problem_type, source)
    return open_top1_target(bound, reference, problem_type, labels, source)


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
