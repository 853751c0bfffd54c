"""Calibration images, split into parts for ranges, for choosing a candidate, and for judging the artifact."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
from typing import TYPE_CHECKING

import numpy as np
import PIL

from vitdeploy.assess.data.dataset import chosen_names
from vitdeploy.assess.data.image_set import open_images
from vitdeploy.assess.data.images import feeds
from vitdeploy.assess.data.loader import prepare
from vitdeploy.assess.metrics.agreement import Agreement
from vitdeploy.assess.metrics.features import FEWEST_SEARCHED, TokenVector, same_neighbours, searched, with_vectors
from vitdeploy.assess.metrics.outputs import LOGITS, RelativeError, centred, compare_outputs, has_own_scales
from vitdeploy.assess.runs.reference import run_batches
from vitdeploy.bundle.scores import ProblemType
from vitdeploy.errors import check_count
from vitdeploy.system.cpu import usable_cpus
from vitdeploy.system.progress import SILENT, Progress

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from vitdeploy.assess.data.image_set import ImageSet
    from vitdeploy.images.processor import ImageProcessor
    from vitdeploy.runtimes.base import Runtime
    from vitdeploy.specs import PixelFormat

    # Arguments of `CalibrationImages.open`.
    Source = tuple[str | os.PathLike[str], ImageProcessor, int | None, int, Progress]

FEW = 32
BATCH = 8  # images of one shape in a batch
FEWEST_APART = 16  # with fewer, the parts would be too small
MOST_JUDGED = 64  # enough for a 5th percentile; more would take longer than they add
PARTS = ("ranges", "choice", "judge")
_AHEAD = 2  # images per core that may wait, preprocessed


@dataclasses.dataclass(frozen=True)
class CalibrationImages:
    """A seeded sample of a data set, iterated image by image."""

    images: ImageSet
    processor: ImageProcessor
    seed: int
    progress: Progress

    @classmethod
    def open(
        cls, path: str | os.PathLike[str], processor: ImageProcessor, limit: int | None, seed: int, progress: Progress
    ) -> CalibrationImages:
        """Open the images, ordered by the SHA-256 of seed and name.

        Args:
            path: See `open_images`.
            limit: Maximum number of images; None for all.

        Raises:
            UsageError: If the limit is not a valid number of images.
            InputError: If there are no images.
        """
        if limit is not None:
            check_count("calibration_images", limit)
        return cls(open_images(path).subset(limit, seed), processor, seed, progress)

    @functools.cached_property
    def contents(self) -> tuple[bytes, ...]:
        """SHA-256 of each image file, which identifies copies under other names."""
        return tuple(hashlib.sha256(self.images.load(position)).digest() for position in range(len(self.images)))

    def sha256(self) -> str:
        """Hash of the image files, in order, and of the preprocessing."""
        digest = hashlib.sha256(json.dumps([self.processor.to_dict(), PIL.__version__], sort_keys=True).encode())
        for content in self.contents:
            digest.update(content)
        return digest.hexdigest()

    def parts(self) -> CalibrationParts:
        """Split the images: a quarter to judge, a quarter to choose by, and the rest to measure ranges on.

        The split depends on the names and the seed. Duplicates are dropped: the same image must not be in two parts.
        With fewer than `FEWEST_APART` images, every part has all images.
        """
        distinct = sorted({content: position for position, content in reversed([*enumerate(self.contents)])}.values())
        if len(distinct) < len(self.images):
            return self.at(distinct).parts()
        count = len(self.images)
        quiet = dataclasses.replace(self, progress=SILENT)  # repeated measurements
        if count < FEWEST_APART:
            return CalibrationParts(self, quiet, self, self, held_out=False)
        judged, chosen_by = min(count // 4, MOST_JUDGED), min(count // 4, FEW)
        names = self.images.names
        judge = chosen_names(names, judged, self.seed)
        choice = sorted({*chosen_names(names, judged + chosen_by, self.seed)}.difference(judge))
        ranges = sorted({*range(count)}.difference(judge, choice))
        measured = self.at(sorted([*ranges, *choice]))
        return CalibrationParts(self.at(ranges), quiet.at(choice), self.at(judge), measured, held_out=True)

    def at(self, positions: Sequence[int]) -> CalibrationImages:
        """A subset of the images, in this order."""
        return dataclasses.replace(self, images=self.images.at(positions))

    def pixels(self, *formats: PixelFormat) -> Iterator[dict[PixelFormat, np.ndarray]]:
        """Yield each image in these formats, (1, ...)."""
        threads = usable_cpus().workers
        stream = prepare(self.images, self.processor, set(formats), threads=threads, ahead=_AHEAD * threads)
        with contextlib.closing(stream):
            for done, image in enumerate(stream, 1):
                yield image.pixels
                self.progress.advance(done, len(self.images))

    def batches(self, count: int, *formats: PixelFormat) -> Iterator[dict[PixelFormat, np.ndarray]]:
        """Yield batches in these formats, (N, ...): images of one shape, at most `count`."""
        waiting: list[dict[PixelFormat, np.ndarray]] = []
        for image in self.pixels(*formats):
            if waiting and (
                len(waiting) == count or any(waiting[0][name].shape != image[name].shape for name in image)
            ):
                yield _joined(waiting)
                waiting = []
            waiting.append(image)
        if waiting:
            yield _joined(waiting)

    def run(self, path: Path, pixels: PixelFormat) -> Iterator[Mapping[str, np.ndarray]]:
        """Run an ONNX file with inputs of this format on each image; yield the outputs by name."""
        from vitdeploy.runtimes.onnxrt.options import OnnxRuntimeOptions
        from vitdeploy.runtimes.onnxrt.runtime import OnnxRuntime

        with OnnxRuntime(path, OnnxRuntimeOptions(allow_spinning=False)) as runtime:
            for image in self.pixels(pixels):
                yield runtime.run(feeds(runtime.inputs, image[pixels]))

    def agreement(
        self,
        reference: Runtime,
        artifact: Runtime,
        token: TokenVector,
        problem_type: ProblemType = ProblemType.SINGLE_LABEL,
        *,
        one_by_one: bool,
    ) -> list[Agreement]:
        """Compare the artifact's outputs with the reference's on each image; one entry per output.

        Args:
            token: The vector of `last_hidden_state`.
            problem_type: The model's problem type; only a single-label classifier has a best class.
            one_by_one: True for batches of one image, if the artifact quantizes each batch with a single range.
        """
        ranked = problem_type.ranked
        error = None if ranked else RelativeError(by_output=has_own_scales(LOGITS, problem_type))
        cosines: dict[str, list[float | None]] = {}
        same: dict[str, list[float]] = {}
        errors: dict[str, RelativeError] = {}
        compared: list[tuple[np.ndarray, np.ndarray]] = []
        by: str | None = None
        for images in self.batches(BATCH, reference.pixels, artifact.pixels):
            wanted = with_vectors(reference.run(feeds(reference.inputs, images[reference.pixels])), token)
            pixels, together = images[artifact.pixels], 1 if one_by_one else BATCH
            parts = (pixels[at : at + together] for at in range(0, len(pixels), together))
            given = with_vectors(run_batches(artifact, (feeds(artifact.inputs, part) for part in parts)), token)
            by = searched(wanted)
            if by is not None:
                compared.append((wanted[by], given[by]))
            if error is not None and LOGITS in wanted:
                error.add(wanted[LOGITS], given[LOGITS])
            for name, value in wanted.items():
                pair = (value, given[name])
                errors.setdefault(name, RelativeError(by_output=False)).add(
                    *(map(centred, pair) if ranked and name == LOGITS else pair)
                )
            for row in range(len(pixels)):
                one = ({name: value[row : row + 1] for name, value in of.items()} for of in (wanted, given))
                for difference in compare_outputs(*one, problem_type=problem_type):
                    cosines.setdefault(difference.output, []).append(difference.min_cosine)
                    if difference.top1_agreement is not None:
                        same.setdefault(difference.output, []).append(difference.top1_agreement)
        entries = [
            Agreement.of(
                name, cosine, same.get(name), errors[name].value, error.value if error and name == LOGITS else None
            )
            for name, cosine in cosines.items()
        ]
        if len(self.images) < FEWEST_SEARCHED or not compared:
            return entries
        kept = int(same_neighbours(*map(np.concatenate, zip(*compared, strict=True))).sum())
        return [dataclasses.replace(entry, same_neighbours=kept if entry.output == by else None) for entry in entries]


@dataclasses.dataclass(frozen=True)
class CalibrationParts:
    """Calibration images by purpose.

    Attributes:
        ranges: Images for measuring activations.
        choice: Images for comparing candidates.
        judge: Images for judging the artifact.
        measured: `ranges` and `choice` together, whose activations the artifact's final ranges cover.
        held_out: True if the parts are disjoint.
    """

    ranges: CalibrationImages
    choice: CalibrationImages
    judge: CalibrationImages
    measured: CalibrationImages
    held_out: bool


def _joined(images: Sequence[Mapping[PixelFormat, np.ndarray]]) -> dict[PixelFormat, np.ndarray]:
    return {name: np.concatenate([image[name] for image in images]) for name in images[0]}
