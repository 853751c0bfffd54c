"""Prove that a new artifact is the same model: the reference and the artifact on the same images."""

from __future__ import annotations

import dataclasses
import itertools
import operator
from typing import TYPE_CHECKING, Any

from vitdeploy.assess.data.images import feeds, fingerprint, synthetic_images
from vitdeploy.assess.metrics.outputs import LOGITS, compare_outputs, relative_error
from vitdeploy.assess.runs.reference import run_batches
from vitdeploy.bundle.scores import ProblemType
from vitdeploy.errors import CheckFailedError
from vitdeploy.images.open import open_image
from vitdeploy.specs import PixelFormat, PixelStage, attention_for

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy as np

    from vitdeploy.assess.data.folder_listing import FolderListing
    from vitdeploy.assess.metrics.cosine_bound import CosineBound
    from vitdeploy.assess.metrics.outputs import Difference
    from vitdeploy.images.processor import ImageProcessor
    from vitdeploy.models.config import ViTConfig
    from vitdeploy.models.vit import VisionTransformer
    from vitdeploy.runtimes.base import Runtime
    from vitdeploy.specs import AxisRange, ExportSpec

# Images by their index, in batches of 1, 2 and 4: alone, beside another, and beside several and itself again.
COUNT = 3
BATCHES = ([0], [1, 2], [0, 1, 2, 0])
OTHER_SIZE_BATCHES = ([0], [1, 2])  # where every image size is taken
LARGEST_SIZE_BATCHES = ([0], [1])  # whose attention may take gigabytes an image
OF_ONE = ([0], [0, 0])  # where no other image has its size
_REQUIRED_TOLERANCE = operator.attrgetter("required_tolerance")


@dataclasses.dataclass(frozen=True)
class Sample:
    """Images that can be compared together.

    Attributes:
        images: Of one size, as they are or as the processor makes them.
        processor: What makes the artifact's input of them.
        batches: By their index.
    """

    images: Sequence[Any]
    processor: ImageProcessor
    batches: Sequence[list[int]] = BATCHES

    def pixel_values(self, pixels: PixelFormat = PixelFormat()) -> np.ndarray:  # noqa: B008  (frozen)
        return self.processor(self.images, pixels=pixels)


def samples(
    config: ViTConfig,
    processor: ImageProcessor,
    axes: Mapping[str, AxisRange],
    stage: PixelStage,
    images: FolderListing | None,
    *,
    sizes: Sequence[tuple[int, int]] | None = None,
) -> list[Sample]:
    """Images to compare on, in each of the sizes to compare at: the usual one first.

    Args:
        axes: The sizes that the artifact takes; none where it takes the model's own alone.
        stage: Of the images that the artifact takes.
        images: Those of a folder, of which the first are used; None for synthetic ones.
        sizes: The (height, width) to compare at; by default three, where the artifact takes several.
    """
    native = processor.output_size or config.image_size
    if stage is PixelStage.DECODED:
        return _decoded_samples(processor, native, sizes, images)
    sources: list[Any] = (
        list(synthetic_images(COUNT, *native, mode=processor.mode)) if images is None else _first(images)
    )
    if sizes is not None:
        return [Sample(sources, processor.resized(*size)) for size in sizes]
    if not axes:
        return [Sample(sources, processor)]
    sizes = [native, *_other_sizes(native, config.patch_size, *axes.values())]
    batches = (BATCHES, OTHER_SIZE_BATCHES, LARGEST_SIZE_BATCHES)
    return [Sample(sources, processor.resized(*size), of_one) for size, of_one in zip(sizes, batches, strict=True)]


def _decoded_samples(
    processor: ImageProcessor,
    native: tuple[int, int],
    sizes: Sequence[tuple[int, int]] | None,
    images: FolderListing | None,
) -> list[Sample]:
    """Images in these sizes; where none are given, in sizes of their own, or one that stays, shrinks and grows."""
    if images is not None and sizes is None:
        return [Sample([file], processor, OF_ONE) for file in _first(images)]
    if images is not None and sizes is not None:
        photos = [open_image(file, mode=processor.mode) for file in _first(images)]
        return [Sample([photo.resize((width, height)) for photo in photos], processor) for height, width in sizes]
    height, width = native
    of_itself = [native, (2 * height + 3, width + 5), (height // 2 + 1, 3 * width // 4 + 1)]
    return [
        Sample(synthetic_images(COUNT, *size, mode=processor.mode), processor, OTHER_SIZE_BATCHES if index else BATCHES)
        for index, size in enumerate(sizes or of_itself)
    ]


def _first(images: FolderListing) -> list[Path]:
    """The first images of a folder, again from the start where there are fewer."""
    return list(itertools.islice(itertools.cycle(images.files), COUNT))


def _other_sizes(
    native: tuple[int, int], patch: tuple[int, int], height: AxisRange, width: AxisRange
) -> list[tuple[int, int]]:
    """A smaller and a larger size: the limits, where there are; else neither square nor whole numbers of patches."""
    down, across = native[0] // patch[0], native[1] // patch[1]
    smaller = max(down // 2, 1) * patch[0], (across // 2 + 1) * patch[1] + patch[1] // 2
    larger = (down + 2) * patch[0] + patch[0] // 2, (across + 1) * patch[1]
    if height.maximum is None or width.maximum is None:
        return [smaller, larger]
    return [(height.minimum, width.minimum), (height.maximum, width.maximum)]


def reference_runtime(model: VisionTransformer, spec: ExportSpec) -> Runtime:
    """The reference, with the outputs of an artifact."""
    from vitdeploy.models.signature import output_names
    from vitdeploy.runtimes.pytorch import PyTorchRuntime, PyTorchRuntimeOptions

    names = output_names(model, spec.outputs)
    twin = model.with_attention(attention_for(names))
    return PyTorchRuntime(twin, PyTorchRuntimeOptions(outputs=names, dynamic_image_size=spec.dynamic_image_size))


def reference_outputs(model: VisionTransformer, images: Sequence[Sample], spec: ExportSpec) -> list[dict[str, Any]]:
    """Outputs of the reference for each sample."""
    with reference_runtime(model, spec) as runtime:
        return [runtime.run(feeds(runtime.inputs, sample.pixel_values())) for sample in images]


def prove(
    runtime: Runtime,
    name: str,
    images: Sequence[Sample],
    expected: Sequence[Mapping[str, np.ndarray]],
    tolerance: float | None,
    problem_type: ProblemType = ProblemType.SINGLE_LABEL,
    cosine: CosineBound | None = None,
) -> dict[str, Any]:
    """Compare an artifact with the reference, in the batches of the samples.

    Args:
        images: See `samples`.
        expected: What the reference gives for each of them.
        tolerance: Largest difference allowed, relative to each output's largest value; None for any that is finite.
        cosine: How near each output must be at every image size; None for any nearness.

    Returns:
        The record of it, for the manifest.

    Raises:
        CheckFailedError: If the difference is larger.
    """
    pixel_values = [sample.pixel_values(runtime.pixels) for sample in images]
    measured = [
        _differences(runtime, pixels, sample.batches, want, problem_type)
        for sample, pixels, want in zip(images, pixel_values, expected, strict=True)
    ]
    # Of each output, its difference at the image size where that is largest.
    differences = [
        max((outcome for outcome, _ in of_one), key=_REQUIRED_TOLERANCE) for of_one in zip(*measured, strict=True)
    ]
    worst = max(differences, key=_REQUIRED_TOLERANCE)
    if not worst.finite:
        raise CheckFailedError(
            f"{worst.output} of {name} is not finite, so nothing was written: values exceed what its type holds",
            what=worst.output, where=name, hint="choose another precision, or float32 outputs",
        )  # fmt: skip
    if cosine is not None:
        for difference, error in itertools.chain.from_iterable(measured):
            of_values = difference.output == LOGITS and problem_type is not ProblemType.SINGLE_LABEL
            cosine.check_difference(name, difference, error, of_values=of_values)
    if tolerance is not None and not worst.within(tolerance):
        raise CheckFailedError(
            f"{worst.output} of {name}: max abs. difference {worst.max_abs:.3g} ({100 * worst.max_relative:.3g} % of "
            f"the largest value, allowed {100 * tolerance:.3g} %), so nothing was written; tolerance "
            f"{worst.required_tolerance:g} would have passed",
            what=worst.output, where=name, expected=tolerance, found=worst.required_tolerance,
        )  # fmt: skip
    return {
        "backend": runtime.backend,
        "engine": runtime.details["engine"],
        "batches": [len(rows) for rows in images[0].batches],
        "image_sizes": [list(runtime.pixels.size(pixels.shape)) for pixels in pixel_values],
        "pixel_values_sha256": fingerprint(*pixel_values),
        "tolerance": tolerance,
        "judged_by": "difference" if tolerance is not None else "cosine",
        "cosine_bound": None if cosine is None else dataclasses.asdict(cosine),
        "outputs": [_rounded(difference) for difference in differences],
    }


def _differences(
    runtime: Runtime,
    pixel_values: np.ndarray,
    batches: Sequence[list[int]],
    expected: Mapping[str, np.ndarray],
    problem_type: ProblemType,
) -> list[tuple[Difference, float]]:
    """Each output, in batches of these images, against the reference's, which ran every image once; and its error."""
    arrays = feeds(runtime.inputs, pixel_values)
    outputs = run_batches(runtime, [{name: array[rows] for name, array in arrays.items()} for rows in batches])
    rows = list(itertools.chain(*batches))
    wanted = {name: value[rows] for name, value in expected.items()}
    ranked = problem_type is ProblemType.SINGLE_LABEL
    return [
        (item, relative_error(wanted[item.output], outputs[item.output], of_classes=ranked and item.output == LOGITS))
        for item in compare_outputs(wanted, outputs, problem_type=problem_type)
    ]


def _rounded(difference: Difference) -> dict[str, Any]:
    """Two digits: enough to judge by, and the same wherever the artifact's bytes are."""
    return {
        key: float(f"{value:.2g}") if isinstance(value, float) and not key.endswith("_cosine") else value
        for key, value in difference.to_dict().items()
    }
