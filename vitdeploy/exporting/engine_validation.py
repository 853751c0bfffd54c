"""Validate an engine against the reference: the same images, on the GPU that runs the engine."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from vitdeploy.assess.data.folder_listing import list_images
from vitdeploy.assess.data.images import feeds
from vitdeploy.assess.metrics.cosine_bound import COSINE_BOUNDS, CosineBound
from vitdeploy.assess.metrics.outputs import default_tolerance
from vitdeploy.assess.runs.targets import reference_backend
from vitdeploy.bundle.bundle import Bundle
from vitdeploy.bundle.manifest import MANIFEST
from vitdeploy.errors import (
    BundleError,
    CheckFailedError,
    InputError,
    MissingDependencyError,
    NoReferenceError,
    UnavailableError,
    UsageError,
    VitDeployError,
)
from vitdeploy.exporters import EXPORTERS
from vitdeploy.exporting.options import ValidationOptions
from vitdeploy.exporting.validation import samples, validate
from vitdeploy.files.atomic import write_file
from vitdeploy.files.locks import locked
from vitdeploy.models.config import ViTConfig
from vitdeploy.predictor import load_processor
from vitdeploy.runtimes import open_recorded
from vitdeploy.specs import PixelStage, attention_for, read_range
from vitdeploy.system.progress import SILENT, Progress

if TYPE_CHECKING:
    from collections.abc import Collection

    from vitdeploy.assess.data.folder_listing import FolderListing
    from vitdeploy.bundle.manifest import Artifact
    from vitdeploy.exporting.validation import Sample
    from vitdeploy.runtimes.base import Runtime

NOT_RUN = "not yet run on a GPU"


def judge_of(artifact: Artifact, tolerance: float | None) -> tuple[float | None, CosineBound | None]:
    """The tolerance of an artifact; the cosine bound instead for int8 and fp8 without a given tolerance."""
    bound = COSINE_BOUNDS.get(artifact.precision)
    if tolerance is None and bound is not None:
        return None, bound
    return default_tolerance(artifact) if tolerance is None else tolerance, None


def is_pending(artifact: Artifact) -> bool:
    """True for an engine that was built but not yet compared with the reference."""
    return artifact.validation.get("status") == NOT_RUN


def pending(artifact: Artifact, validation: ValidationOptions) -> dict[str, Any]:
    """The validation record of an engine that has not run yet."""
    return {
        "status": NOT_RUN,
        "images": "none",
        "engine": " ".join(next(item for item in artifact.tools.items() if item[0] != "vitdeploy")),
        "tolerance": judge_of(artifact, validation.tolerance)[0],
        "outputs": [],
    }


def open_engine(bundle: Bundle, artifact: Artifact) -> Runtime:
    """The runtime of an engine on the first GPU, without a cache of compiled kernels: the engine may yet be refused."""
    backend = EXPORTERS[artifact.format].backend
    return open_recorded(bundle, backend, {"runtime_cache": False}, precision=artifact.precision)


def validate_engine(
    engine: Runtime, artifact: Artifact, of: Bundle, validation: ValidationOptions, progress: Progress
) -> dict[str, Any]:
    """Compare an engine with the reference at the minimum, optimum and maximum of its profiles.

    Args:
        engine: The runtime; it is closed.
        of: The bundle that has the reference.

    Returns:
        The validation record for the manifest.

    Raises:
        CheckFailedError: If the engine differs from the reference.
        MissingDependencyError: If neither torch nor onnxruntime is installed.
    """
    with engine as runtime:
        progress.step(f"comparing {artifact.name} with the reference")
        listing = None if validation.images is None else list_images(validation.images)
        images, expected, against = _expected(of, artifact, listing)
        allowed, cosine = judge_of(artifact, validation.tolerance)
        record = validate(runtime, artifact.name, images, expected, allowed, of.read_config().problem_type, cosine)
        device = runtime.details["device"]
    return {
        "images": "synthetic" if listing is None else "given",
        **({} if listing is None else {"left_out": {"images": listing.left_out.to_dict()}}),
        **record,
        "against": against,
        "device": device,
    }


def validate_engines(
    bundle: Bundle,
    *,
    names: Collection[str] = (),
    validation: ValidationOptions = ValidationOptions(),  # noqa: B008  (frozen)
    progress: Progress = SILENT,
) -> tuple[Bundle, tuple[str, ...]]:
    """Compare every engine that has not run yet with the reference, on the machine that will run it.

    Each result is written at once. An engine that fails, or cannot run here, does not stop the others.

    Args:
        names: Names of the artifacts. Default: all pending ones.
        validation: Options of the comparison. The default tolerance is the export's.

    Returns:
        The bundle, and the names of the validated engines.

    Raises:
        UsageError: If there is no such engine.
        CheckFailedError: If an engine differs from the reference.
        InputError: If none differs, but a file that one needs, or an image, is damaged.
        UnavailableError: If an engine cannot run here.
        OutputError: If the manifest cannot be written.
    """
    waiting = {artifact.name: artifact for artifact in bundle.manifest.artifacts if is_pending(artifact)}
    for name in names:
        if name not in waiting:
            raise UsageError(
                f"{name} is no engine that waits to be run; those are: {', '.join(waiting) or 'none'}",
                what="artifact", where=bundle.path, expected=tuple(waiting), found=name,
            )  # fmt: skip
    if validation.images is not None:
        list_images(validation.images)  # before an engine is opened, which can take minutes
    validated: list[str] = []
    problems: list[VitDeployError] = []
    for artifact in (waiting[name] for name in dict.fromkeys(names or waiting)):
        asked = validation
        if validation.tolerance is None:
            asked = dataclasses.replace(validation, tolerance=artifact.validation["tolerance"])
        try:
            record = validate_engine(open_engine(bundle, artifact), artifact, bundle, asked, progress)
            bundle = _written(bundle, dataclasses.replace(artifact, validation=record))
        except VitDeployError as exc:
            problems.append(exc)
        else:
            validated.append(artifact.name)
    if problems:
        kinds = (CheckFailedError, InputError, UsageError, UnavailableError)  # the worst first
        worst = next(problem for kind in kinds for problem in problems if isinstance(problem, kind))
        others = [f"{len(problems) - 1} more cannot be validated either"] if len(problems) > 1 else []
        done = [f"validated: {', '.join(validated)}"] if validated else []
        raise worst.with_message("; ".join([str(worst), *others, *done])) from worst
    return bundle, tuple(validated)


def _written(bundle: Bundle, validated: Artifact) -> Bundle:
    """The current bundle, with the validation of the files that `validated` names.

    Raises:
        BundleError: If the bundle now names other files.
    """
    with locked(bundle.path.resolve().parent):
        now = Bundle.open(bundle.path)
        if validated.files not in [
            artifact.files for artifact in now.manifest.artifacts if artifact.name == validated.name
        ]:
            raise BundleError(
                f"{bundle.path} no longer has the {validated.name} that was run",
                what=validated.name, where=bundle.path, hint="run it again",
            )  # fmt: skip
        artifacts = tuple(
            validated if artifact.name == validated.name else artifact for artifact in now.manifest.artifacts
        )
        manifest = dataclasses.replace(now.manifest, artifacts=artifacts)
        write_file(bundle.path / MANIFEST, manifest.to_json().encode(), follow_link=False)
    return Bundle(bundle.path, manifest)


def _expected(
    bundle: Bundle, artifact: Artifact, listing: FolderListing | None
) -> tuple[list[Sample], list[dict[str, Any]], str]:
    """Samples at every image size and batch size of the profiles, their expected outputs, and the source of those."""
    config, processor = ViTConfig.from_dict(bundle.read_config().model), load_processor(bundle)
    images = samples(config, processor, {}, artifact.pixels.stage, listing, sizes=_sizes(artifact))
    ranges = [read_range(text) for text in artifact.options["batch"]]
    counts = sorted({size for axis in ranges for size in (axis.minimum, axis.optimum, axis.maximum or axis.optimum)})
    images = [
        dataclasses.replace(sample, batches=[[index % len(sample.images) for index in range(n)] for n in counts])
        for sample in images
    ]
    try:
        return images, _of_reference(bundle, artifact, images), "the reference"
    except (MissingDependencyError, NoReferenceError) as exc:
        return images, _of_artifact(bundle, artifact, images, exc), f"onnx-{artifact.precision}"


def _sizes(artifact: Artifact) -> list[tuple[int, int]] | None:
    """The optimal, smallest and largest (height, width) of each profile; None for a single size."""
    names = artifact.pixels.free_size(artifact.inputs[0].shape)
    if not names:
        return None
    heights, widths = ([read_range(text) for text in artifact.options[name]] for name in names)
    edges = ("optimum", "minimum", "maximum")
    pairs = [(getattr(h, edge), getattr(w, edge)) for h, w in zip(heights, widths, strict=True) for edge in edges]
    return list(dict.fromkeys(pairs))


def _of_reference(bundle: Bundle, artifact: Artifact, images: list[Sample]) -> list[dict[str, Any]]:
    names = tuple(output.name for output in artifact.outputs)
    resized = artifact.pixels.stage is not PixelStage.DECODED
    dynamic = resized and _sizes(artifact) is not None
    options = {"outputs": names, "attention": attention_for(names), "dynamic_image_size": dynamic}
    return _outputs(open_recorded(bundle, reference_backend(), options, device="cpu"), images)


def _of_artifact(
    bundle: Bundle, artifact: Artifact, images: list[Sample], no_reference: VitDeployError
) -> list[dict[str, Any]]:
    """Outputs of the ONNX artifact that the engine was built from; that one was compared with the reference itself."""
    built_from = artifact.options.get("onnx_sha256")
    sources = [candidate for candidate in bundle.manifest.artifacts if candidate.name == f"onnx-{artifact.precision}"]
    if [[file.sha256 for file in source.files] for source in sources] != [built_from]:
        raise no_reference
    return _outputs(open_recorded(bundle, "onnxruntime", precision=artifact.precision), images)


def _outputs(opened: Runtime, images: list[Sample]) -> list[dict[str, Any]]:
    """Outputs of a runtime for each sample; the runtime is then closed."""
    with opened as runtime:
        return [runtime.run(feeds(runtime.inputs, sample.pixel_values(runtime.pixels))) for sample in images]
