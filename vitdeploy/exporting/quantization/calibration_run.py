"""The calibration run of an export, and the checks of its artifact on held-out images."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from vitdeploy.exporting.options import MinCosine
from vitdeploy.exporting.quantization.accuracy_target import split_target
from vitdeploy.exporting.quantization.calibration_images import PARTS, CalibrationImages, CalibrationParts
from vitdeploy.exporting.quantization.cosine_target import open_cosine_target
from vitdeploy.exporting.quantization.top1_target import open_top1_target

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from vitdeploy.assess.data.folder_listing import LeftOut
    from vitdeploy.assess.metrics.cosine_bound import CosineBound
    from vitdeploy.assess.metrics.features import TokenVector
    from vitdeploy.bundle.manifest import Artifact
    from vitdeploy.bundle.scores import ProblemType
    from vitdeploy.exporting.options import Quantization
    from vitdeploy.exporting.quantization.accuracy_target import AccuracyTarget
    from vitdeploy.images.processor import ImageProcessor
    from vitdeploy.runtimes.base import Runtime
    from vitdeploy.system.progress import Progress

DYNAMIC = "dynamic"  # the scheme that quantizes each batch with a single range


@dataclasses.dataclass(frozen=True)
class QuantizationRun:
    """The reference, and the images for it and for the quantized artifact.

    Attributes:
        parts: The images by purpose.
        cache: Folder of cached measurements; None for no cache.
        accuracy: Target of the mixed-precision search; None without a bound.
        held_out: The same target on held-out images, for judging the artifact; None if there are none.
        token: The vector of `last_hidden_state` that the artifact is judged by.
    """

    reference: Runtime
    calibration: CalibrationImages
    parts: CalibrationParts
    cache: Path | None
    accuracy: AccuracyTarget | None
    held_out: AccuracyTarget | None
    token: TokenVector
    problem_type: ProblemType

    @classmethod
    def open(
        cls,
        options: Quantization,
        reference: Runtime,
        processor: ImageProcessor,
        labels: Sequence[str],
        token: TokenVector,
        problem_type: ProblemType,
        progress: Progress,
    ) -> QuantizationRun:
        """Read the images, and run the reference on the accuracy target's.

        Args:
            options: Options with calibration images, which are also the accuracy bound's unless others are named.

        Raises:
            UsageError: If an argument is invalid, or a bound does not fit the model.
            InputError: If there are no images or no labels.
            CheckpointError: If the reference's outputs are not finite.
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
        bound, own = options.accuracy, options.accuracy_data
        path, limit = (asked.images, asked.count) if own is None else (own, None)
        source = path, processor, limit, asked.seed, progress
        if bound is not None:
            progress.step(f"running the reference on the images of {path}")
        target: AccuracyTarget | None = None
        if isinstance(bound, MinCosine):
            target = open_cosine_target(bound, reference, token, problem_type, source)
        elif bound is not None:
            target = open_top1_target(bound, reference, problem_type, labels, source)
        accuracy, held_out = (None, None) if target is None else split_target(target, parts)
        return cls(reference, calibration, parts, asked.cache_folder, accuracy, held_out, token, problem_type)

    @property
    def left_out(self) -> dict[str, LeftOut]:
        """Files in each folder that are not among its images, by the argument that named the folder."""
        listed = {"calibration_data": self.calibration.images.left_out}
        if self.accuracy is not None and self.accuracy.images.images.source != self.calibration.images.source:
            listed["accuracy_data"] = self.accuracy.images.images.left_out
        return {name: left_out for name, left_out in listed.items() if left_out is not None}

    def check(
        self, runtime: Runtime, artifact: Artifact, bound: CosineBound | None, progress: Progress
    ) -> dict[str, Any]:
        """Measure the artifact on images that were used neither for ranges nor for the choice.

        Args:
            artifact: The artifact, with its export options.
            bound: Smallest cosine similarity with the reference; None for no bound.

        Returns:
            The record for the manifest.

        Raises:
            CheckFailedError: If the artifact is too far from the reference, or not accurate enough.
        """
        name, judge, held_out = artifact.name, self.parts.judge, self.parts.held_out
        progress.step(f"comparing {name} with the reference on {len(judge.images)} images")
        one_by_one = artifact.options["scheme"] == DYNAMIC
        agreements = judge.agreement(self.reference, runtime, self.token, self.problem_type, one_by_one=one_by_one)
        if bound is not None:
            for output in agreements:
                bound.check(name, output, held_out=held_out)
        record: dict[str, Any] = {
            "calibration_sha256": self.calibration.sha256(),
            "calibration_seed": self.calibration.seed,
            "calibration_parts": {name: len(getattr(self.parts, name).images) for name in PARTS},
            "calibration_bound": None if bound is None else dataclasses.asdict(bound),
            "calibration_images": [{**output.to_dict(), "held_out": held_out} for output in agreements],
        }
        if self.accuracy is not None:
            progress.step(f"measuring the accuracy of {name} on {len(self.accuracy.images.images)} images")
            record["accuracy"] = self.accuracy.check(name, self.accuracy.measure(runtime))
        if self.held_out is not None:
            progress.step(f"judging {name} on {len(self.held_out.images.images)} held-out images")
            record["accuracy"]["held_out"] = self.held_out.check_held_out(name, self.held_out.measure(runtime))
        return record
