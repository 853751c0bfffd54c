"""What a quantized artifact is measured on, before and after it is made."""

from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING, Any

from vitdeploy.assess.data.dataset import chosen_names
from vitdeploy.exporting.calibration_images import FEWEST_APART, CalibrationImages, CalibrationParts
from vitdeploy.exporting.cosine_target import CosineGoal
from vitdeploy.exporting.options import MinCosine
from vitdeploy.exporting.quantization_choice import Chooser
from vitdeploy.exporting.top1_target import AccuracyGoal

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from vitdeploy.assess.data.folder_listing import LeftOut
    from vitdeploy.assess.metrics.cosine_bound import CosineBound
    from vitdeploy.bundle.manifest import Artifact
    from vitdeploy.bundle.scores import ProblemType
    from vitdeploy.exporters.quantization.ranges.calibration import CalibrationData
    from vitdeploy.exporting.accuracy_bound import Goal
    from vitdeploy.exporting.options import Quantization
    from vitdeploy.images.processor import ImageProcessor
    from vitdeploy.runtimes.base import Runtime
    from vitdeploy.system.progress import Progress

DYNAMIC = "dynamic"  # the scheme that quantizes a batch by one range


@dataclasses.dataclass(frozen=True)
class QuantizationRun:
    """The reference, and the images that it and a quantized artifact run on.

    Attributes:
        reference: its runtime.
        calibration: all images.
        parts: which of them are for what.
        data: what exporters take of them.
        goal: how accurate the artifact must be, and the images on which layers are kept in float32 until it is; None
            where that is not said.
        held_out: the same on images that no search sees, on which the artifact is judged; None where there are none.
        choose: see `vitdeploy.exporters.quantization.choice`.
        problem_type: of the model.
    """

    reference: Runtime
    calibration: CalibrationImages
    parts: CalibrationParts
    data: CalibrationData
    goal: Goal | None
    held_out: Goal | None
    choose: Chooser
    problem_type: ProblemType

    @classmethod
    def open(
        cls,
        options: Quantization,
        reference: Runtime,
        processor: ImageProcessor,
        labels: Sequence[str],
        problem_type: ProblemType,
        progress: Progress,
    ) -> QuantizationRun:
        """Read the images, and run the reference on those of the goal.

        Args:
            options: with calibration images.
            reference: its runtime.
            processor: of the bundle.
            labels: the model's class names.
            problem_type: of the model.
            progress: told each step, and how far it has come.

        Raises:
            UsageError: an argument is not what it must be, or a bound does not fit the model.
            InputError: there are no images, or they have no labels.
        """
        asked = options.calibration
        if asked is None:
            raise TypeError("calibration images must be given")
        progress.step(f"reading the images of {asked.images}")
        calibration = CalibrationImages.open(asked.images, processor, asked.count, asked.seed, progress)
        parts = calibration.parts()
        copies = len(calibration.images) - len({*calibration.contents})
        if copies:
            progress.step(f"{copies} of {len(calibration.images)} images are copies of others and are left out")
        data = _data(parts, asked.cache_folder)
        goal: Goal | None = None
        held_out: Goal | None = None
        if options.accuracy is not None:
            own = options.accuracy_data
            path, limit = (asked.images, asked.count) if own is None else (own, None)
            progress.step(f"running the reference on the images of {path}")
            kind = CosineGoal if isinstance(options.accuracy, MinCosine) else AccuracyGoal
            whole: Goal = kind.open(
                options.accuracy, path, reference, processor, labels, limit, asked.seed, problem_type, progress
            )
            goal, held_out = apart(whole, parts)
        choose = Chooser(parts.choice, goal, progress, problem_type)
        return cls(reference, calibration, parts, data, goal, held_out, choose, problem_type)

    @property
    def left_out(self) -> dict[str, LeftOut]:
        """The files of each folder that are not among its images, by the argument that named the folder."""
        found = {"calibration_data": self.calibration.images.left_out}
        if self.goal is not None and self.goal.images.images.source != self.calibration.images.source:
            found["accuracy_data"] = self.goal.images.images.left_out
        return {name: left_out for name, left_out in found.items() if left_out is not None}

    def check(
        self, runtime: Runtime, artifact: Artifact, bound: CosineBound | None, progress: Progress
    ) -> dict[str, Any]:
        """Measure the artifact on images that neither ranges nor the choice come from.

        Args:
            runtime: the artifact's.
            artifact: with the options that it was made with.
            bound: how near it must be to the reference; None for any nearness.
            progress: told each step, and how far it has come.

        Returns:
            The record of it, for the manifest.

        Raises:
            CheckFailedError: it is too far from the reference, or not accurate enough.
        """
        name, judge, held_out = artifact.name, self.parts.judge, self.parts.held_out
        progress.step(f"comparing {name} with the reference on {len(judge.images)} images")
        one_by_one = artifact.options["scheme"] == DYNAMIC
        found = judge.agreement(self.reference, runtime, self.problem_type, one_by_one=one_by_one)
        if bound is not None:
            for output in found:
                bound.check(name, output, held_out=held_out)
        record: dict[str, Any] = {
            "calibration_sha256": self.calibration.sha256(),
            "calibration_seed": self.calibration.seed,
            "calibration_parts": self.parts.counts(),
            "calibration_bound": None if bound is None else dataclasses.asdict(bound),
            "calibration_images": [{**output.to_dict(), "held_out": held_out} for output in found],
        }
        if self.goal is not None:
            progress.step(f"measuring the accuracy of {name} on {len(self.goal.images.images)} images")
            record["accuracy"] = self.goal.check(name, self.goal.measure(runtime))
        if self.held_out is not None:
            progress.step(f"judging {name} on {len(self.held_out.images.images)} held-out images")
            record["accuracy"]["held_out"] = self.held_out.check_held_out(name, self.held_out.measure(runtime))
        return record


def apart(whole: Goal, parts: CalibrationParts) -> tuple[Goal, Goal | None]:
    """The images of a bound that a search may see, and those that judge what it found: a quarter.

    None of the latter is one that ranges or candidates were measured on, whatever its name or folder. What no search
    sees of the calibration images is what judges all artifacts. A cosine is higher on images that ranges were measured
    on: its search sees none of them, where there are others, but those of the choice, which widen the ranges of what
    was chosen by them. Of fewer than 16 images, or where no image is left to judge, all are for all.
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


def _data(parts: CalibrationParts, cache: Path | None) -> CalibrationData:
    """What exporters take of the images."""
    from vitdeploy.exporters.quantization.ranges.calibration import CalibrationData, MeasuredImages

    ranges = MeasuredImages(parts.ranges.sha256(), parts.ranges.run)
    choice = MeasuredImages(parts.choice.sha256(), parts.choice.run) if parts.held_out else ranges
    measured = parts.measured
    return CalibrationData(len(measured.images), measured.sha256(), ranges, choice, cache)
