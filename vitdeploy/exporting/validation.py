"""Validate a new artifact: the reference and the artifact on the same images."""

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

# Image indices, in batches of 1, 2 and 4: alone, beside another, and beside several and itself again.
COUNT = 3
BATCHES = ([0], [1, 2], [0, 1, 2, 0])
OTHER_SIZE_BATCHES = ([0], [1, 2])  # if every image size is accepted
LARGEST_SIZE_BATCHES = ([0], [1])  # attention may take gigabytes per image
OF_ONE = ([0], [0, 0])  # if no other image has this size
_REQUIRED_TOLERANCE = operator.attrgetter("required_tolerance")


@dataclasses.dataclass(frozen=True)
class Sample:
    """Images of one size, for comparison in batches.

    Attributes:
        images: Images of one size, original or preprocessed.
        processor: Processor that turns them into the artifact's input.
        batches: Image indices of each batch.
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
    """Images for the comparison at each image size, the usual size first.

    Args:
        axes: Sizes that the artifact takes; empty for the model's only.
        stage: Preprocessing stage of the artifact's input.
        images: A folder, whose first images are used; None for synthetic images.
        sizes: Each (height, width) to compare at. Default: three, if the artifact takes several.
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
    """Images in these sizes. Default: the folder's own sizes, or synthetic images that the resize keeps or scales."""
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
    """The first images of a folder, repeated if there are too few."""
    return list(itertools.islice(itertools.cycle(images.files), COUNT))


def _other_sizes(
    native: tuple[int, int], patch: tuple[int, int], height: AxisRange, width: AxisRange
) -> list[tuple[int, int]]:
    """A smaller and a larger size: the limits, or else sizes that are neither square nor whole numbers of patches."""
    down, across = native[0] // patch[0], native[1] // patch[1]
    smaller = max(down // 2, 1) * patch[0], (across // 2 + 1) * patch[1] + patch[1] // 2
    larger = (down + 2) * patch[0] + patch[0] // 2, (across + 1) * patch[1]
    if height.maximum is None or width.maximum is None:
        return [smaller, larger]
    return [(height.minimum, width.minimum), (height.maximum, width.maximum)]


def reference_runtime(model: VisionTransformer, spec: ExportSpec) -> Runtime:
    """The reference with an artifact's outputs."""
    from vitdeploy.models.signature import output_names
    from vitdeploy.runtimes.pytorch import PyTorchRuntime, PyTorchRuntimeOptions

    names = output_names(model, spec.outputs)
    twin = model.with_attention(attention_for(names))
    return PyTorchRuntime(twin, PyTorchRuntimeOptions(outputs=names, dynamic_image_size=spec.dynamic_image_size))


def reference_outputs(model: VisionTransformer, images: Sequence[Sample], spec: ExportSpec) -> list[dict[str, Any]]:
    with reference_runtime(model, spec) as runtime:
        return [runtime.run(feeds(runtime.inputs, sample.pixel_values())) for sample in images]


def validate(
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
        images: Samples; see `samples`.
        expected: Outputs of the reference for each sample.
        tolerance: Largest difference allowed, relative to each output's largest value; None for any finite one.
        cosine: Smallest cosine similarity of each output at every image size; None for no bound.

    Returns:
        The record for the manifest.

    Raises:
        CheckFailedError: If the difference is larger.
    """
    pixel_values = [sample.pixel_values(runtime.pixels) for sample in images]
    measured = [
        _differences(runtime, pixels, sample.batches, want, problem_type)
        for sample, pixels, want in zip(images, pixel_values, expected, strict=True)
    ]
    # For each output, the difference at the image size with the largest one.
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
            of_values = difference.output == LOGITS and not problem_type.ranked
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
    """Difference and error of each output in these batches, against the reference, which ran every image once."""
    arrays = feeds(runtime.inputs, pixel_values)
    outputs = run_batches(runtime, [{name: array[rows] for name, array in arrays.items()} for rows in batches])
    rows = list(itertools.chain(*batches))
    wanted = {name: value[rows] for name, value in expected.items()}
    ranked = problem_type.ranked
    return [
        (item, relative_error(wanted[item.output], outputs[item.output], of_classes=ranked and item.output == LOGITS))
        for item in compare_outputs(wanted, outputs, problem_type=problem_type)
    ]


def _rounded(difference: Difference) -> dict[str, Any]:
    """Two digits: enough to judge by, and reproducible wherever the artifact's bytes are."""
    return {
        key: float(f"{value:.2g}") if isinstance(value, float) and not key.endswith("_cosine") else value
        for key, value in difference.to_dict().items()
    }
