"""The images that a quantized artifact is calibrated on, and measured on before it is written."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import operator
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL

from vitdeploy.assess.difference import LOGITS, RelativeError, compare_outputs, has_own_scales, least_cosine
from vitdeploy.assess.image_set import open_images
from vitdeploy.assess.prepare import prepare
from vitdeploy.assess.samples import feeds
from vitdeploy.cpu import usable_cpus
from vitdeploy.errors import CheckFailedError, UsageError
from vitdeploy.scores import ProblemType

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from vitdeploy.assess.image_set import ImageSet
    from vitdeploy.processor import ImageProcessor
    from vitdeploy.runtimes.base import Runtime
    from vitdeploy.specs import PixelFormat

DEFAULT_COUNT = 512  # TensorRT's and NNCF's guides ask for some hundreds
FEW = 32
_AHEAD = 2  # images a core that may be ready before they are run


@dataclasses.dataclass(frozen=True)
class CalibrationImages:
    """A seeded part of a data set, gone through an image at a time.

    Attributes:
        images: them.
        processor: of the bundle.
        seed: which part.
        on_progress: called with the number of images that are done, and of all.
    """

    images: ImageSet
    processor: ImageProcessor
    seed: int
    on_progress: Callable[[int, int], None]

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        processor: ImageProcessor,
        limit: int | None,
        seed: int,
        on_progress: Callable[[int, int], None],
    ) -> CalibrationImages:
        """The images whose SHA-256 of seed and name comes first.

        Args:
            path: see `open_images`.
            processor: of the bundle.
            limit: how many, at most; None for all.
            seed: which ones.
            on_progress: see `CalibrationImages`.

        Raises:
            UsageError: the limit is no number of images.
            InputError: there are no images.
        """
        if limit is not None and (type(limit) is not int or limit < 1):
            raise UsageError(f"calibration_images must be an integer from 1 up, got {limit!r:.80}")
        return cls(open_images(path).subset(limit, seed), processor, seed, on_progress)

    def sha256(self) -> str:
        """Of the bytes of the images, in order, and of what makes pixels of them."""
        digest = hashlib.sha256(json.dumps([self.processor.to_dict(), PIL.__version__], sort_keys=True).encode())
        for position in range(len(self.images)):
            digest.update(hashlib.sha256(self.images.load(position)).digest())
        return digest.hexdigest()

    def few(self, count: int = FEW) -> CalibrationImages:
        """Some of them, chosen alike, for what is measured again and again; their progress is not told."""
        return dataclasses.replace(self, images=self.images.subset(count, self.seed), on_progress=lambda *_: None)

    def pixels(self, *formats: PixelFormat) -> Iterator[dict[PixelFormat, np.ndarray]]:
        """Each image in these formats, (1, ...)."""
        threads = usable_cpus().workers
        stream = prepare(self.images, self.processor, set(formats), threads=threads, ahead=_AHEAD * threads)
        with contextlib.closing(stream):
            for done, image in enumerate(stream, 1):
                yield image.pixels
                self.on_progress(done, len(self.images))

    def run(self, path: Path, pixels: PixelFormat) -> Iterator[Mapping[str, np.ndarray]]:
        """See `vitdeploy.exporters.quantization.calibration.Run`."""
        from vitdeploy.runtimes.onnxrt import OnnxRuntime

        with OnnxRuntime(path, allow_spinning=False) as runtime:
            for image in self.pixels(pixels):
                yield runtime.run(feeds(runtime.inputs, image[pixels]))

    def agreement(
        self,
        reference: Runtime,
        artifact: Runtime,
        name: str,
        tolerance: float | None,
        problem_type: ProblemType = ProblemType.SINGLE_LABEL,
    ) -> list[dict[str, Any]]:
        """What the artifact gives for each image beside what the reference gives, an entry an output.

        Each entry holds the output's name, how many images there are, the share of those with the same best class (of
        a single-label classifier's logits alone), and the mean and the lowest cosine of an image. The logits of another
        head have no best class, and the cosine of a single value is that of its sign: their entry holds the relative
        error, the length of the difference over that of the reference's values, of all images together. Of a
        regression, whose values have units of their own, it is that of its worst output.

        Args:
            reference: its runtime.
            artifact: its runtime.
            name: the artifact's.
            tolerance: the largest relative error, or see `least_cosine`; None for any.
            problem_type: of the model.

        Raises:
            CheckFailedError: the relative error of the logits is larger, or the mean cosine of another output is lower.
        """
        ranked = problem_type is ProblemType.SINGLE_LABEL
        error = None if ranked else RelativeError(by_output=has_own_scales(LOGITS, problem_type))
        found: dict[str, list[tuple[float | None, float | None]]] = {}
        for image in self.pixels(reference.pixels, artifact.pixels):
            wanted, given = (
                runtime.run(feeds(runtime.inputs, image[runtime.pixels])) for runtime in (reference, artifact)
            )
            if error is not None and LOGITS in wanted:
                error.add(wanted[LOGITS], given[LOGITS])
            for difference in compare_outputs(wanted, given, problem_type=problem_type):
                found.setdefault(difference.output, []).append((difference.min_cosine, difference.top1_agreement))
        entries: list[dict[str, Any]] = []
        for output, each in found.items():
            cosines = [cosine for cosine, _ in each if cosine is not None]
            agree = [share for _, share in each if share is not None]
            entries.append(
                {
                    "output": output,
                    "images": len(each),
                    "top1_agreement": round(float(np.mean(agree)), 6) if agree else None,
                    "mean_cosine": round(float(np.mean(cosines)), 6) if cosines else None,
                    "min_cosine": round(min(cosines), 6) if cosines else None,
                }
            )
        by_error = {LOGITS} if error is not None and LOGITS in found else set()
        if error is not None and by_error:
            entry = next(each for each in entries if each["output"] == LOGITS)
            entry["relative_error"] = float(f"{error.value:.3g}")
        if tolerance is None:
            return entries
        if error is not None and by_error and not error.value <= tolerance:
            raise CheckFailedError(
                f"{LOGITS} of {name}: relative error {100 * error.value:.3g} % on the calibration images, at most "
                f"{100 * tolerance:g} % allowed; keep nodes in float32, see vitdeploy compare --bisect; "
                f"nothing was written"
            )
        cosines_of = [(each["output"], each["mean_cosine"]) for each in entries if each["output"] not in by_error]
        if not cosines_of:
            return entries
        worst, lowest = min(cosines_of, key=operator.itemgetter(1))
        if not lowest >= least_cosine(tolerance):
            raise CheckFailedError(
                f"{name} must have a mean cosine of {least_cosine(tolerance):.4g} with the reference on the "
                f"calibration images (tolerance {tolerance:g}), has {lowest:.4g} in {worst}; keep nodes in float32, "
                f"see vitdeploy compare --bisect; nothing was written"
            )
        return entries
