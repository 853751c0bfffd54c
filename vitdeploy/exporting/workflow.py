"""Export: checkpoint -> reference -> artifact -> validation -> bundle."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from pathlib import Path

from vitdeploy.assess.data.folder_listing import list_images
from vitdeploy.bundle.bundle import Bundle
from vitdeploy.bundle.manifest import MANIFEST
from vitdeploy.bundle.output_paths import check_outputs
from vitdeploy.bundle.staging import check_target
from vitdeploy.errors import UnavailableError, UsageError, shown
from vitdeploy.exporters import EXPORTERS, export_function
from vitdeploy.exporters.engine.build import check_request
from vitdeploy.exporting.artifact import ArtifactRequest, add_artifact
from vitdeploy.exporting.engine import add_engine
from vitdeploy.exporting.graph_options import GraphOptions, spec_of
from vitdeploy.exporting.options import PathLike, Quantization, SourceOptions, ValidationOptions
from vitdeploy.exporting.output_folder import place_of
from vitdeploy.specs import QUANTIZED
from vitdeploy.system.argument_types import typed
from vitdeploy.system.option_fields import changed
from vitdeploy.system.progress import SILENT, Progress
from vitdeploy.trt.options import EngineOptions

_ANY_MODEL = {"seed", "token", "cache_dir", "offline"}  # options that apply to random weights only


@typed
def export(
    model: PathLike | None = None,
    *,
    to: str = "onnx",
    precision: str = "fp32",
    output: PathLike | None = None,
    graph: GraphOptions = GraphOptions(),  # noqa: B008  (frozen)
    quantization: Quantization | PathLike | None = None,
    engine: EngineOptions | None = None,
    source: SourceOptions = SourceOptions(),  # noqa: B008
    validation: ValidationOptions = ValidationOptions(),  # noqa: B008
    progress: Progress = SILENT,
) -> Bundle:
    """Export a checkpoint, validate the artifact against the reference, and store both in a bundle.

    The artifact is compared with the reference on three images, in batches of 1, 2 and 4; with dynamic image sizes,
    also at a smaller and a larger size. An existing bundle at `output` keeps its other artifacts and is unchanged on
    failure.

    An engine ("tensorrt", "tensorrt-rtx") is built from the ONNX artifact of the same precision, which is exported
    first and stays in the bundle. An ONNX artifact already at `output` is reused if `model` is None or the same Hub
    model, and if `graph`, `quantization` (except its target) and `source` (except the seed and the access to the Hub)
    have their defaults. Without a model, an `image_size` of three sizes applies to the engine. The engine is compared
    with the reference if a GPU here runs it. Otherwise the manifest records that it has not run yet, and `vitdeploy
    verify --run` completes the validation.

    Args:
        model: A Hub id, a local transformers or timm folder, or a Google `.npz` file. A PEFT LoRA adapter is merged
            into its base model.
        to: Format: "onnx", "torchscript", "tensorrt" or "tensorrt-rtx".
        precision: "fp32", "fp16" or "bf16"; for ONNX and engines also "int8" or "fp8".
        output: The bundle's folder. Default: named after the model, in the working directory; "-vitdeploy" is appended
            if that name is taken by the checkpoint or by anything that is not a bundle.
        graph: Options of the graph's inputs, outputs and form.
        quantization: Options of int8 and fp8. A path means `Quantization(Calibration(path))`.
        engine: Batch sizes and builder options of an engine.
        source: Options for reading the checkpoint; or, instead of `model`, weights without a configuration, or random
            weights.
        validation: Images and tolerance for the comparison with the reference.
        progress: Receives each step and its progress.

    Raises:
        UsageError: If an argument is invalid, or `output` has other content.
        CheckpointError: If the checkpoint cannot be used, has no image processor and `source` defines none, or its
            outputs are not finite.
        HubError: If the Hub cannot be reached.
        MissingDependencyError: If a library is not installed. If it is an engine's, the ONNX artifact was written.
        DeviceError: If building an engine needs a GPU and there is none. The ONNX artifact was written.
        CheckFailedError: If the artifact differs from the reference, misses the accuracy bound even with a single layer
            in 8 bits, or cannot be built as an engine. It was not written.
        OutputError: If the bundle cannot be written.
    """
    quantization = Quantization.of(quantization)
    spec = spec_of(to, precision, graph, quantization, engine)
    for name, value in (("random_weights", source.random_weights), ("weights", source.weights)):
        if model is not None and value is not None:
            raise UsageError(
                f"model {model} and {name} {value} exclude each other",
                what=name, found=value, hint="leave one out",
            )  # fmt: skip
    calibration = None if quantization is None else quantization.calibration
    check_outputs(
        {"timing_cache": None if engine is None else engine.timing_cache},
        {
            "the checkpoint": model,
            "the weights": None if source.weights is None else source.weights.path,
            "the class names": None if source.weights is None else source.weights.labels,
            "images": validation.images,
            "calibration_data": None if calibration is None else calibration.images,
            "accuracy_data": None if quantization is None else quantization.accuracy_data,
            "class_embeddings": source.class_embeddings,
            "the image processor": None if source.processor is None else source.processor.source,
        },
        bundle=output,
    )
    model = Path(model) if isinstance(model, os.PathLike) else model
    request = ArtifactRequest(
        model or source.weights, EXPORTERS[to].made_from or to, spec, graph, quantization, source, validation
    )
    if request.format == to:
        return _add_artifact(request, output, progress)
    engine = engine or EngineOptions()
    if validation.images is not None:
        list_images(validation.images)  # nothing else reads it without a GPU
    elif calibration is not None and Path(calibration.images).is_dir():
        validation = dataclasses.replace(validation, images=calibration.images)
    with contextlib.suppress(UnavailableError):  # raised again when the ONNX artifact is exported
        check_request(to, engine)
    if not request.names_model and graph.bounds is not None and graph.size is not None:
        within = (graph.bounds[0], graph.size, graph.bounds[1])
        engine = dataclasses.replace(engine, image_sizes=engine.image_sizes or (within,))
        request = dataclasses.replace(request, graph=dataclasses.replace(graph, image_size=None))
    bundle = _reusable(request, output)
    if bundle is None:
        if not request.names_model:
            raise UsageError(
                f"an engine needs a model, or the {request.format}-{precision} of a bundle with nothing asked of its "
                f"graph, got {shown(output, 400)}",
                what="model", where=output, hint="name the model that the engine is made of",
            )  # fmt: skip
        engine.check_limits(free=graph.any_size or graph.embed_resize, limited=graph.bounds is not None)
        bundle = _add_artifact(request, output, progress)
    try:
        return add_engine(bundle, to, precision, engine, validation=validation, progress=progress)
    except UnavailableError as exc:
        raise exc.with_message(f"{exc}; {bundle.path} has the ONNX artifact in {precision}") from exc


def _add_artifact(request: ArtifactRequest, output: PathLike | None, progress: Progress) -> Bundle:
    source = request.source
    export_function(EXPORTERS[request.format])  # imports torch and onnx, or says what to install
    if not request.names_model:
        raise UsageError("export needs a model, or random_weights", what="model")
    quantization = request.quantization
    if request.spec.precision in QUANTIZED:
        from vitdeploy.exporters.quantization.schemes.lookup import scheme_for

        # Raises UsageError before anything is measured, unless the options can apply to int8 or fp8.
        scheme_for(request.spec, calibrated=quantization is not None and quantization.calibration is not None)
    place = place_of(output, request.model, source.random_weights, source.seed)
    return add_artifact(request, place, progress=progress)


def _reusable(request: ArtifactRequest, output: PathLike | None) -> Bundle | None:
    """The bundle at `output`, if it has the requested artifact and all graph options are defaults."""
    quantization = {} if request.quantization is None else changed(request.quantization)
    asked = {*changed(request.graph), *quantization, *changed(request.source)} - {"target", *_ANY_MODEL}
    if asked or output is None or not (Path(output) / MANIFEST).exists():
        return None
    bundle = Bundle.open(output)
    if f"{request.format}-{request.spec.precision}" not in [artifact.name for artifact in bundle.manifest.artifacts]:
        return None
    # A folder of the model's name may have changed since; a Hub model's commit is in the bundle.
    source, model = bundle.manifest.source, request.model
    if model is not None and (source.revision is None or model != source.id or Path(model).exists()):
        return None
    check_target(bundle.path)
    return bundle
