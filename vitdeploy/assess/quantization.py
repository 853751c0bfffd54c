"""What a quantized artifact is measured on, before and after it is made."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from vitdeploy.assess.accuracy_goal import AccuracyGoal, Bound
from vitdeploy.assess.calibration_images import CalibrationImages
from vitdeploy.assess.quantization_choice import Chooser

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from vitdeploy.assess.folder_listing import LeftOut
    from vitdeploy.exporters.quantization.calibration import CalibrationData
    from vitdeploy.processor import ImageProcessor
    from vitdeploy.runtimes.base import Runtime
    from vitdeploy.scores import ProblemType


@dataclasses.dataclass(frozen=True)
class QuantizationRequest:
    """What is to be measured.

    Attributes:
        images: to measure activations on, and the artifact; see `vitdeploy.assess.image_set.open_images`.
        limit: how many of them, at most.
        seed: which ones.
        cache: a folder that keeps ranges; None for none.
        bound: how accurate the artifact must be; None where that is not said.
        accuracy_data: the images on which it must be; None for `images`.
    """

    images: str | os.PathLike[str]
    limit: int
    seed: int
    cache: Path | None
    bound: Bound | None = None
    accuracy_data: str | os.PathLike[str] | None = None


@dataclasses.dataclass(frozen=True)
class Quantization:
    """The reference, and the images that it and a quantized artifact run on.

    Attributes:
        reference: its runtime.
        calibration: the images to measure activations on.
        data: what exporters take of them.
        goal: how accurate the artifact must be; None where that is not said.
        choose: see `vitdeploy.exporters.quantization.choice`.
        problem_type: of the model.
    """

    reference: Runtime
    calibration: CalibrationImages
    data: CalibrationData
    goal: AccuracyGoal | None
    choose: Chooser
    problem_type: ProblemType

    @classmethod
    def open(
        cls,
        request: QuantizationRequest,
        reference: Runtime,
        processor: ImageProcessor,
        labels: Sequence[str],
        problem_type: ProblemType,
        on_step: Callable[[str], None],
        on_progress: Callable[[int, int], None],
    ) -> Quantization:
        """Read the images, and run the reference on those of the goal.

        Args:
            request: what is to be measured.
            reference: its runtime.
            processor: of the bundle.
            labels: the model's class names.
            problem_type: of the model.
            on_step: called with what is being done.
            on_progress: called with the number of images, or layers, that are done, and of all.

        Raises:
            UsageError: an argument is not what it must be, or a bound does not fit the model.
            InputError: there are no images, or they have no labels.
        """
        on_step(f"reading the images of {request.images}")
        calibration = CalibrationImages.open(request.images, processor, request.limit, request.seed, on_progress)
        data = _data(calibration, request.cache)
        goal = None
        if request.bound is not None:
            own = request.accuracy_data
            path, limit = (request.images, request.limit) if own is None else (own, None)
            on_step(f"running the reference on the images of {path}")
            goal = AccuracyGoal.open(
                request.bound, path, reference, processor, labels, limit, request.seed, problem_type, on_progress
            )
        choose = Chooser(reference, calibration.few(), goal, on_step, on_progress, problem_type)
        return cls(reference, calibration, data, goal, choose, problem_type)

    @property
    def left_out(self) -> dict[str, LeftOut]:
        """The files of each folder that are not among its images, by the argument that named the folder."""
        found = {"calibration_data": self.calibration.images.left_out}
        if self.goal is not None and self.goal.images.images.source != self.calibration.images.source:
            found["accuracy_data"] = self.goal.images.images.left_out
        return {name: left_out for name, left_out in found.items() if left_out is not None}

    def check(
        self, runtime: Runtime, name: str, tolerance: float | None, on_step: Callable[[str], None]
    ) -> dict[str, Any]:
        """Measure the artifact.

        Args:
            runtime: the artifact's.
            name: the artifact's.
            tolerance: see `CalibrationImages.agreement`.
            on_step: called with what is being done.

        Returns:
            The record of it, for the manifest.

        Raises:
            CheckFailedError: it is too far from the reference, or not accurate enough.
        """
        on_step(f"comparing {name} with the reference on {self.data.count} images")
        record: dict[str, Any] = {
            "calibration_sha256": self.data.sha256,
            "calibration_seed": self.calibration.seed,
            "calibration_images": self.calibration.agreement(
                self.reference, runtime, name, tolerance, self.problem_type
            ),
        }
        if self.goal is not None:
            on_step(f"measuring the accuracy of {name} on {len(self.goal.images.images)} images")
            record["accuracy"] = self.goal.check(name, self.goal.measure(runtime))
        return record


def _data(images: CalibrationImages, cache: Path | None) -> CalibrationData:
    """What exporters take of the images."""
    from vitdeploy.exporters.quantization.calibration import CalibrationData

    return CalibrationData(len(images.images), images.sha256(), images.run, images.few().run, cache)
