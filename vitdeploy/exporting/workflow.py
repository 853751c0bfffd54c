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

_ANY_MODEL = {"seed", "token", "cache_dir", "offline"}  # options that say nothing of a model that is not random


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
    """Export a checkpoint, check that the artifact is the same model, and keep both in a bundle.

    The artifact is compared with the reference on three images, in batches of 1, 2 and 4; one that takes every image
    size, also at a smaller and a larger size. A bundle that exists at `output` keeps its other artifacts; it stays as
    it was on any failure.

    An engine ("tensorrt", "tensorrt-rtx") is built from the ONNX artifact of its precision, which is made first and
    stays in the bundle. An ONNX artifact that is at `output` already is used if no model is named, or the same model of
    the Hub, and nothing is asked of the graph: `graph`, `quantization` (but for its target) and `source` (but for the
    seed and the access to the Hub) are the defaults. Without a model, an `image_size` of three sizes is the engine's.
    The engine is compared with the reference where a GPU runs it; elsewhere the manifest says that it has not run yet,
    and `vitdeploy verify --run` completes it.

    Args:
        model: A Hub id, a local folder of transformers or timm, or one of Google's `.npz` files. A LoRA adapter of PEFT
            is merged into its base.
        to: The format, "onnx", "torchscript", "tensorrt" or "tensorrt-rtx".
        precision: "fp32", "fp16" or "bf16"; for ONNX and engines also "int8" or "fp8".
        output: The bundle's folder; by default named after the model, in the working directory, with "-vitdeploy" added
            where that is the checkpoint or something else that is no bundle.
        graph: Inputs, outputs and form of the graph.
        quantization: How int8 and fp8 are made; a path stands for `Quantization(Calibration(path))`.
        engine: Batch sizes of an engine, and options of its builder.
        source: How the checkpoint is read; or random weights, instead of `model`.
        validation: Images and tolerance of the comparison with the reference.
        progress: Told each step, and how far it has come.

    Raises:
        UsageError: If an argument is wrong, or `output` holds something else.
        CheckpointError: If the checkpoint cannot be used, has no image processor and `source` defines none, or gives
            values that are not finite.
        HubError: If the Hub cannot be reached.
        MissingDependencyError: If a library is not installed; where it is an engine's, the ONNX artifact was made.
        DeviceError: If an engine needs a GPU to be built, and there is none; the ONNX artifact was made.
        CheckFailedError: If the artifact differs from the reference, or is not as accurate as is asked for with any
            layer in 8 bits, or an engine cannot be built; it was not written.
        OutputError: If the bundle cannot be written.
    """
    quantization = Quantization.of(quantization)
    spec = spec_of(to, precision, graph, quantization, engine)
    if model is not None and source.random_weights is not None:
        raise UsageError(
            f"model {model} and random_weights {source.random_weights} exclude each other",
            what="random_weights", found=source.random_weights, hint="leave one out",
        )  # fmt: skip
    calibration = None if quantization is None else quantization.calibration
    check_outputs(
        {"timing_cache": None if engine is None else engine.timing_cache},
        {
            "the checkpoint": model,
            "images": validation.images,
            "calibration_data": None if calibration is None else calibration.images,
            "accuracy_data": None if quantization is None else quantization.accuracy_data,
            "the image processor": None if source.processor is None else source.processor.source,
        },
        bundle=output,
    )
    model = Path(model) if isinstance(model, os.PathLike) else model
    request = ArtifactRequest(model, EXPORTERS[to].made_from or to, spec, graph, quantization, source, validation)
    if request.format == to:
        return _add_artifact(request, output, progress)
    engine = engine or EngineOptions()
    if validation.images is not None:
        list_images(validation.images)  # which without a GPU nothing else reads
    elif calibration is not None and Path(calibration.images).is_dir():
        validation = dataclasses.replace(validation, images=calibration.images)
    with contextlib.suppress(UnavailableError):  # raised again when the ONNX artifact is made, and kept
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

        # Raises UsageError before anything is measured, unless int8 or fp8 can be what the options ask for.
        scheme_for(request.spec, calibrated=quantization is not None and quantization.calibration is not None)
    place = place_of(output, request.model, source.random_weights, source.seed)
    return add_artifact(request, place, progress=progress)


def _reusable(request: ArtifactRequest, output: PathLike | None) -> Bundle | None:
    """The bundle at `output`, if it has the artifact that is requested, and nothing is asked of the graph."""
    quantization = {} if request.quantization is None else changed(request.quantization)
    asked = {*changed(request.graph), *quantization, *changed(request.source)} - {"target", *_ANY_MODEL}
    if asked or output is None or not (Path(output) / MANIFEST).exists():
        return None
    bundle = Bundle.open(output)
    if f"{request.format}-{request.spec.precision}" not in [artifact.name for artifact in bundle.manifest.artifacts]:
        return None
    # A folder of the model's name may hold others by now; of the Hub's the bundle has the commit.
    source, model = bundle.manifest.source, request.model
    if model is not None and (source.revision is None or model != source.id or Path(model).exists()):
        return None
    check_target(bundle.path)
    return bundle
