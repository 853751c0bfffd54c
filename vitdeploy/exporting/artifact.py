"""Export the reference to an artifact, validate it on the same images, and add it to a bundle."""

from __future__ import annotations

import dataclasses
import gc
import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitdeploy._version import __version__
from vitdeploy.assess.data.folder_listing import list_images
from vitdeploy.assess.metrics.cosine_bound import COSINE_BOUNDS, LOOSE_BOUND, CosineBound
from vitdeploy.assess.metrics.features import TokenVector
from vitdeploy.assess.metrics.outputs import default_tolerance
from vitdeploy.bundle.bundle import Bundle
from vitdeploy.bundle.manifest import MANIFEST, Artifact, FileRecord, Manifest
from vitdeploy.bundle.staging import check_same_model, commit
from vitdeploy.errors import CheckpointError, UsageError, readable
from vitdeploy.exporters import EXPORTERS
from vitdeploy.exporting.quantization.calibration_run import QuantizationRun
from vitdeploy.exporting.quantize import export_model
from vitdeploy.exporting.validation import reference_outputs, reference_runtime, samples, validate
from vitdeploy.files.atomic import staged_folder
from vitdeploy.files.regular_file import open_regular
from vitdeploy.runtimes import BESIDE_OTHERS, open_recorded
from vitdeploy.specs import EMBEDDING_KEYS, EMBEDS, AxisRange, ExportSpec, Task
from vitdeploy.system.progress import SILENT, Progress

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from vitdeploy.exporting.graph_options import GraphOptions
    from vitdeploy.exporting.options import Quantization, SourceOptions, ValidationOptions
    from vitdeploy.images.processor import ImageProcessor
    from vitdeploy.models.config import ViTConfig
    from vitdeploy.sources.architectures.weights_options import WeightsFile
    from vitdeploy.sources.read import Checkpoint
    from vitdeploy.specs import TensorSpec

_WEIGHTS = "model.safetensors"
# The session runs a few batches only: prepacking the weights would take longer than it saves, and twice their memory.
_FOR_A_FEW_RUNS: dict[str, dict[str, Any]] = {"onnxruntime": {"prepack": False}, "openvino": {"memory_map": True}}


@dataclasses.dataclass(frozen=True)
class ArtifactRequest:
    """A request for one artifact.

    Attributes:
        model: A Hub id, a path, or weights of a named architecture; None for random weights or an existing bundle.
        spec: The artifact's specification, derived from `graph` and `quantization`.
        quantization: The options of int8 and fp8.
    """

    model: str | Path | WeightsFile | None
    format: str
    spec: ExportSpec
    graph: GraphOptions
    quantization: Quantization | None
    source: SourceOptions
    validation: ValidationOptions

    @property
    def names_model(self) -> bool:
        return self.model is not None or self.source.random_weights is not None

    def read(self) -> Checkpoint:
        """Read the checkpoint and the reference; see `vitdeploy.sources.read`."""
        from vitdeploy.models.layers.pooling import Pooling
        from vitdeploy.models.signature import output_specs
        from vitdeploy.sources.class_embeddings import ClassEmbeddings
        from vitdeploy.sources.embeddings import with_embedding, zero_shot
        from vitdeploy.sources.read import random_checkpoint, read_checkpoint

        source, task = self.source, None if self.source.task is None else Task(self.source.task)
        settings: dict[str, Any] = {
            "processor": source.processor,
            "image_size": self.graph.size,
            "dynamic_image_size": self.graph.any_size,
            "token": source.token,
            "cache_dir": source.cache_dir,
            "offline": source.offline,
        }
        if self.model is not None and source.class_embeddings is not None:
            classes = ClassEmbeddings.read(Path(source.class_embeddings))  # before anything is downloaded
            checkpoint = read_checkpoint(self.model, Task.FEATURES, revision=source.revision, **settings)
            return zero_shot(checkpoint, classes, self.graph.pool)
        if self.model is not None:
            checkpoint = read_checkpoint(self.model, task, revision=source.revision, **settings)
        else:
            task = task or Task.CLASSIFICATION
            checkpoint = random_checkpoint(str(source.random_weights), task, source.seed, **settings)
        if self.graph.pool is None and not self.graph.normalize:
            return checkpoint
        checkpoint = with_embedding(checkpoint, self.graph.pool, normalize=self.graph.normalize)
        if self.graph.outputs is not None:  # the vectors may be made of them outside the artifact, or not at all
            config = json.loads(checkpoint.files["config.json"])
            Pooling.choose(config, output_specs(checkpoint.model, self.graph.outputs))
        return checkpoint


def add_artifact(request: ArtifactRequest, place: Path, *, progress: Progress = SILENT) -> Bundle:
    """Export the reference, validate the artifact against it, and store both in a bundle.

    Args:
        place: Absolute path of the bundle's folder, unchanged on failure.

    Raises:
        UsageError: If the exporter does not support this artifact, or it would replace one quantized for another
            target.
        CheckpointError: If the checkpoint cannot be used, or the reference's outputs are not finite.
        CheckFailedError: If the artifact differs from the reference.
        OutputError: If the bundle cannot be written.
    """
    from vitdeploy.models.checkpoint import save_model

    exporter, spec = EXPORTERS[request.format], request.spec
    progress.step("reading the checkpoint")
    checkpoint = request.read()
    if (place / MANIFEST).exists():
        _check_added_to(Bundle.open(place), f"{request.format}-{spec.precision}", spec.target, checkpoint)
    reference, processor = checkpoint.model, checkpoint.processor
    problem_type = reference.problem_type
    axes = _axes(reference.config, processor, request.graph.bounds) if spec.dynamic_image_size else {}
    listing = None if request.validation.images is None else list_images(request.validation.images)
    sample = samples(reference.config, processor, axes, spec.pixels.stage, listing)
    quantization = early = None
    if request.quantization is not None and request.quantization.calibration is not None:
        early = reference_outputs(reference, sample, spec)  # fails early on non-finite values
        _check_finite(early, checkpoint.source.id)
        beside = reference_runtime(reference, spec)
        labels, token = reference.config.labels, TokenVector.of(reference.config)
        quantization = QuantizationRun.open(
            request.quantization, beside, processor, labels, token, problem_type, progress
        )
    title = f"{request.format} {spec.precision}"
    with staged_folder(place) as staging:
        progress.step(f"exporting to {title}")
        exported, measured = export_model(
            exporter, reference, staging, spec, processor=processor, samples=sample, run=quantization, progress=progress
        )
        # Files are written and hashed meanwhile. Nothing is traced: torch's tracer has global state.
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(list, early) if early else pool.submit(reference_outputs, reference, sample, spec)
            for name, content in checkpoint.files.items():
                (staging / name).write_bytes(content)
            save_model(reference, staging / _WEIGHTS)
            artifact = Artifact(
                format=request.format,
                precision=spec.precision,
                files=_records(staging, exported.files),
                inputs=exported.inputs,
                outputs=exported.outputs,
                pixels=spec.pixels,
                axes=axes,
                options={**exported.options, **_embedding(reference.config, exported.outputs)},
                tools={"vitdeploy": __version__, **exported.tools},
                validation={},
            )
            manifest = Manifest(
                source=checkpoint.source,
                task=str(reference.task),
                files=_records(staging, sorted((*checkpoint.files, _WEIGHTS))),
                artifacts=(artifact,),
            )
            gc.collect()  # the traced graph, whose reference cycles hold the weights
            expected = running.result()
        _check_finite(expected, checkpoint.source.id)
        del checkpoint, reference  # frees these weights before the artifact's are loaded
        progress.step(f"comparing {title} with the reference")
        files = _records(staging, exported.emulation) if exported.emulation else artifact.files
        to_prove = dataclasses.replace(artifact, files=files)
        bundle = Bundle(staging, dataclasses.replace(manifest, artifacts=(to_prove,)))
        options = (_FOR_A_FEW_RUNS if quantization is None else BESIDE_OTHERS).get(exporter.backend)
        with open_recorded(bundle, exporter.backend, options, precision=spec.precision) as runtime:
            allowed, bound = request.validation.tolerance, None
            if allowed is None and (quantization is None or quantization.accuracy is None):  # judges by itself
                bound = COSINE_BOUNDS.get(artifact.precision)
                allowed = default_tolerance(artifact) if bound is None else None
            elif allowed is not None and quantization is not None:
                bound = CosineBound.of_tolerance(allowed)
            judge = bound
            if quantization is not None:  # the accuracy bound has its own images
                judge = LOOSE_BOUND if allowed is None else None
            record = validate(runtime, artifact.name, sample, expected, allowed, problem_type, judge)
            if quantization is not None:
                record |= quantization.check(runtime, artifact, bound, progress)
        for name in exported.emulation:
            (staging / name).unlink()
        left_out = {} if listing is None else {"images": listing.left_out}
        left_out |= {} if quantization is None else quantization.left_out
        validation = {
            "images": "synthetic" if listing is None else "given",
            **({"left_out": {name: listed.to_dict() for name, listed in left_out.items()}} if left_out else {}),
            **record,
            **measured,
            "emulated": bool(exported.emulation),
        }
        artifact = dataclasses.replace(artifact, validation=validation)
        progress.step("writing the bundle")
        return commit(staging, place, dataclasses.replace(manifest, artifacts=(artifact,)))


def _axes(
    config: ViTConfig, processor: ImageProcessor, bounds: tuple[tuple[int, int], tuple[int, int]] | None
) -> dict[str, AxisRange]:
    """Ranges of the height and the width of a model that takes several image sizes, within `bounds`."""
    from vitdeploy.models.signature import size_ranges

    if bounds is not None:
        dataclasses.replace(config, image_size=bounds[1])  # refuses a size with more patches than any machine can hold
    usual = processor.output_size or config.image_size
    ranges = size_ranges(config, usual)
    if bounds is None:
        return ranges
    for (name, every), smallest, size, largest in zip(ranges.items(), bounds[0], usual, bounds[1], strict=True):
        if smallest < every.minimum:
            raise UsageError(
                f"image_size has a {name} of {smallest} pixels, less than one patch of {config.patch_size}",
                what="image_size", expected=config.patch_size, found=smallest,
            )  # fmt: skip
        ranges[name] = AxisRange(smallest, size, largest)
    return ranges


def _check_added_to(bundle: Bundle, name: str, target: str | None, checkpoint: Checkpoint) -> None:
    """Raise UsageError if the bundle has another model, or this artifact for another quantization target.

    A user who needs both targets needs both artifacts.
    """
    from vitdeploy.models.checkpoint import is_saved

    files = {path: hashlib.sha256(content).hexdigest() for path, content in checkpoint.files.items()}
    task = str(checkpoint.model.task)
    check_same_model(bundle, files, task)
    saved = bundle.path / _WEIGHTS
    if saved.exists():
        with readable(saved, "the weights of the bundle"):
            open_regular(saved).close()  # the library would block on a pipe
        if not is_saved(checkpoint.model, saved):
            check_same_model(bundle, files | {_WEIGHTS: "other"}, task)
    for artifact in bundle.manifest.artifacts:
        other = artifact.options.get("target")
        if artifact.name == name and None not in (target, other) and other != target:
            raise UsageError(
                f"{name} of {bundle.path} was quantized for {other}, and one for {target} does not replace it",
                what="target", where=bundle.path, expected=other, found=target, hint="choose another output",
            )  # fmt: skip


def _check_finite(outputs: Iterable[Mapping[str, np.ndarray]], source: str) -> None:
    if not all(np.isfinite(value).all() for values in outputs for value in values.values()):
        raise CheckpointError(
            f"{source} gives values that are not finite", where=source,
            hint="check its weights, and the numbers of its image processor",
        )  # fmt: skip


def _embedding(config: ViTConfig, outputs: Iterable[TensorSpec]) -> dict[str, Any]:
    """The pooling of `image_embeds`, for the manifest."""
    if config.embedding_pool is None or EMBEDS not in [spec.name for spec in outputs]:
        return {}
    return {name: getattr(config, name) for name in EMBEDDING_KEYS}


def _records(folder: Path, names: Iterable[str]) -> tuple[FileRecord, ...]:
    return tuple(FileRecord.of(folder, name) for name in names)
