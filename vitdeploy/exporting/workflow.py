"""Export: checkpoint -> reference -> artifact -> proof -> bundle."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vitdeploy.assess.data.dataset import check_seed
from vitdeploy.assess.metrics.outputs import check_tolerance
from vitdeploy.bundle.bundle import Bundle
from vitdeploy.bundle.manifest import MANIFEST
from vitdeploy.bundle.output_paths import check_outputs
from vitdeploy.errors import UnavailableError, UsageError, shown
from vitdeploy.exporters import EXPORTERS, export_function, find_exporter, quantization_target
from vitdeploy.exporters.engine.build import check_request
from vitdeploy.exporting.artifact import ArtifactRequest, add_artifact
from vitdeploy.exporting.calibration_images import DEFAULT_COUNT
from vitdeploy.exporting.engine import add_engine
from vitdeploy.exporting.engine_validation import ProofRequest
from vitdeploy.exporting.options import (
    bound_of,
    cache_folder,
    check_optimize,
    check_quantization,
    check_scheme,
    image_size_of,
    names_of,
    pixels_of,
    rest_of,
    task_of,
)
from vitdeploy.exporting.output_folder import place_of
from vitdeploy.exporting.quantize import QuantizationRequest
from vitdeploy.images.processor_options import ProcessorOptions
from vitdeploy.specs import ExportSpec, Precision, Task
from vitdeploy.system.progress import SILENT, Progress
from vitdeploy.trt.options import EngineOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from vitdeploy.sources.read import Checkpoint

    Size = int | tuple[int, int]


def export(
    model: str | Path | None = None,
    *,
    to: str = "onnx",
    precision: str = "fp32",
    output: str | os.PathLike[str] | None = None,
    task: str | None = None,
    opset: int | None = None,
    optimize: str | None = None,
    keep_fp32: Sequence[str] | None = None,
    outputs: Sequence[str] | None = None,
    image_size: Size | tuple[Size, Size, Size] | None = None,
    dynamic_image_size: bool = False,
    processor: ProcessorOptions | None = None,
    input: str = "float32",  # noqa: A002  (the command line's word)
    layout: str | None = None,
    embed_resize: bool = False,
    io_dtype: str = "float32",
    random_weights: str | None = None,
    seed: int = 0,
    images: str | os.PathLike[str] | None = None,
    tolerance: float | None = None,
    engine: EngineOptions | None = None,
    target: str | None = None,
    scheme: str | None = None,
    reduce_range: bool = False,
    rest: str | None = None,
    calibration_data: str | os.PathLike[str] | None = None,
    calibration: str | None = None,
    calibration_images: int | None = None,
    calibration_cache: str | os.PathLike[str] | Literal[False] | None = None,
    smooth_quant: float | str | None = None,
    max_drop: float | None = None,
    min_agreement: float | None = None,
    min_cosine: float | None = None,
    accuracy_data: str | os.PathLike[str] | None = None,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    offline: bool = False,
    progress: Progress = SILENT,
) -> Bundle:
    """Export a checkpoint, prove that the artifact is the same model, and keep both in a bundle.

    The artifact is compared with the reference on three images, in batches of 1, 2 and 4, and where it takes every
    image size, at a smaller and a larger one too. A bundle that exists at `output` keeps its other artifacts; on any
    failure it stays as it was.

    An engine ("tensorrt", "tensorrt-rtx") is built from the ONNX artifact of its precision, which is made and proven
    first, and stays in the bundle. One that is at `output` already is taken where no model is named, or the model is
    the same one of the Hub, and nothing else is said of the graph; one that was quantized for a CPU is neither taken
    nor replaced. The engine is compared with the reference where a
    GPU runs it; elsewhere the manifest says that it has not run yet, and `vitdeploy verify --run` completes it.

    Args:
        model: a Hub id, a local folder of transformers or timm, or one of Google's `.npz` files. A LoRA adapter of
            PEFT is merged into its base.
        to: the format, "onnx", "torchscript", "tensorrt" or "tensorrt-rtx".
        precision: the number format, "fp32", "fp16" or "bf16"; of ONNX and engines also "int8" or "fp8".
        output: the bundle's folder; by default named after the model, in the working directory, with "-vitdeploy" added
            where that is the checkpoint or something else that is no bundle.
        task: a value of `vitdeploy.specs.Task`; by default what the checkpoint was made for.
        opset: ONNX opset, 18 to 23; 20 by default, and 21 for fp8, which has none below.
        optimize: "onnxruntime" for an ONNX graph with the operators that ONNX Runtime fuses, which opens sooner, and
            nowhere else; in float32 alone.
        keep_fp32: nodes of an ONNX graph that stay float32 in a lower precision, beside those that do anyway; by the
            names that `vitdeploy.bisect` and `vitdeploy.sensitivity` give.
        outputs: what the artifact gives: names such as "logits"; "hidden_states" and "attentions" stand for those of
            all layers. By default the outputs of the task.
        image_size: (height, width), or one number for both, that the model is to take; by default what its image
            processor gives. Positions are interpolated by the family's rule, once. Or three of these: the smallest
            size that is to be taken, the one that the image processor is to give, and the largest one; positions are
            then interpolated in the artifact.
        dynamic_image_size: whether the artifact takes images of every size from one patch up, interpolating positions
            itself; the image processor stays as it is.
        processor: another image processor than the checkpoint's, or settings of it; required where the checkpoint has
            none, since the defaults of its class are not assumed. See `ProcessorOptions`.
        input: "float32" for images that the processor has normalised, or "uint8" for the artifact to do that.
        layout: of uint8 images: "nhwc", which is how they are decoded and the default, or "nchw".
        embed_resize: whether the artifact resizes and crops too; it then takes uint8 images of any size, an engine of
            sizes within the limits of its options.
        io_dtype: the type of the artifact's floating-point inputs and outputs, "float32" or "float16".
        random_weights: instead of `model`, an architecture such as "vit-base-patch16-224", with random weights.
        seed: of the random weights, and of the choice of images to calibrate on.
        images: a folder; the first three images below it are compared, by themselves where the artifact takes them
            in sizes of their own. By default three synthetic images are, and of an engine three of the folder that it
            was calibrated on.
        tolerance: largest difference allowed, relative to each output's largest value; by default by precision, see
            `vitdeploy.assess.metrics.outputs.DEFAULT_TOLERANCES`. int8 and fp8 are judged by the cosine of each image's
            outputs instead where none is given, see `vitdeploy.assess.metrics.cosine_bound`.
        engine: of an engine: sizes of batches, and options of its builder.
        target: of int8 and fp8: what is to run the graph, "cpu" for ONNX Runtime on a CPU or "tensorrt"; by default
            "cpu" for ONNX in int8, and "tensorrt" for engines and for fp8, which nothing else takes.
        scheme: of int8 on a CPU: "static", with ranges from images, or "dynamic", which measures them as it runs. By
            default dynamic without images; else static, unless dynamic has less than half of its error; see
            `vitdeploy.exporting.candidate_search`.
        reduce_range: of int8 on a CPU: 7 bits for weights, for x86 processors without VNNI, which add two products in
            16 bits and lose what exceeds these.
        rest: of int8 and fp8 for TensorRT: "fp16" for all that is not in 8 bits to compute as in a graph in fp16; by
            default in float32. ONNX opset 19 is the first that has it.
        calibration_data: images to measure activations on, as those to come: a folder, or a data set as `evaluate`
            takes it. Activations are measured on half of them, candidates are compared on a quarter, of which they are
            then measured too, and the artifact is judged on the last quarter; of fewer than 16 images all are for all,
            and nothing is compared.
        calibration: how ranges are chosen: "auto", the default, for what was seen and a tenth more; or "minmax",
            "entropy", "percentile" or "mse"; see `vitdeploy.exporters.quantization.ranges.methods`.
        calibration_images: how many images, at most; by default 512. Which ones depends on their names and `seed`.
        calibration_cache: a folder that keeps ranges by the content that they were measured from; by default the
            user's, or `VITDEPLOY_CACHE`; False for none.
        smooth_quant: how much of what sets the channels of activations apart is moved into weights before they are
            quantized, exactly, from 0 to 1, in all three kinds of places: behind LayerNorm, behind attention, and
            inside the MLP, which costs a Mul. "auto", the default, for 0.65 where that brings the artifact nearer to
            the reference than none, with the Mul where that pays; "off" for none. See
            `vitdeploy.exporters.quantization.smooth_quant`.
        max_drop: how many points of top-1 accuracy int8 or fp8 may lose against the reference, on labelled images:
            layers stay float32, the most sensitive ones first, until that is so and none of them can be left out. The
            bound then judges the artifact, and no tolerance that is not given. Not for dynamic int8, which gives for an
            image what depends on its batch.
        min_agreement: the same by the least share of images, from 0 to 1, of which the best class is the reference's;
            no labels are needed.
        min_cosine: the same by the least 5th percentile, over images, of the cosine similarity with the reference,
            above 0 and below 1: of the pooled output and the CLS token, or of a classifier's logits. The search leaves
            a quarter of the allowed distance to images that it does not see; see `vitdeploy.exporting.cosine_target`.
        accuracy_data: the images on which these three bounds are measured, all of them, as `evaluate` takes them or,
            without labels, a folder; by
            default those of the calibration. A quarter of them is held out: it chooses nothing, and the artifact must
            honour the bound on it, unless there are fewer than 16. Few images tell a share but roughly: one that is too
            low on those held out fails where the upper end of its 95 % interval is too low.
        revision: branch, tag or commit on the Hub.
        token: for private and gated models.
        cache_dir: of the Hub's files; by default huggingface_hub's.
        offline: use the Hub's cache alone.
        progress: told each step, and how far it has come.

    Raises:
        UsageError: an argument is not what it must be, or `output` holds something else.
        CheckpointError: the checkpoint cannot be used, has no image processor and `processor` defines none, or gives
            values that are not finite.
        HubError: the Hub cannot be reached.
        MissingDependencyError: a library is not installed; where it is an engine's, the ONNX artifact was made.
        DeviceError: an engine needs a GPU to be built, and there is none; the ONNX artifact was made.
        CheckFailedError: the artifact differs from the reference, or is not as accurate as is asked for with any layer
            in 8 bits, or an engine cannot be built; it was not written.
        OutputError: the bundle cannot be written.
    """
    options: dict[str, Any] = {
        "opset": opset,
        "embed_resize": embed_resize,
        "optimize": optimize,
        "keep_fp32": keep_fp32,
        "engine": engine,
    }
    of_quantization = {
        "target": target,
        "scheme": scheme,
        "reduce_range": reduce_range or None,
        "rest": rest,
        "calibration_data": calibration_data,
        "calibration": calibration,
        "calibration_images": calibration_images,
        "calibration_cache": calibration_cache,
        "smooth_quant": smooth_quant,
        "max_drop": max_drop,
        "min_agreement": min_agreement,
        "min_cosine": min_cosine,
        "accuracy_data": accuracy_data,
    }
    options |= of_quantization
    if engine is not None and not isinstance(engine, EngineOptions):
        raise UsageError(f"engine must be EngineOptions, got {shown(engine, 80)}")
    if processor is not None and not isinstance(processor, ProcessorOptions):
        raise UsageError(f"processor takes ProcessorOptions(...), got {shown(processor, 80)}")
    if output is not None and not isinstance(output, (str, os.PathLike)):
        raise UsageError(f"output must be the path of a folder, got {shown(output, 80)}")
    exporter = find_exporter(to, precision, options)
    asked, to = to, exporter.made_from or to
    check_tolerance(tolerance)
    check_seed(seed)
    if model is not None and random_weights is not None:
        raise UsageError(f"export needs a model or random_weights, got both: {model} and {random_weights}")
    if random_weights is not None and revision is not None:
        raise UsageError(
            f"revision is of a model on the Hub, got {shown(revision, 80)} with random_weights; leave it out"
        )
    check_optimize(optimize, precision)
    if keep_fp32 and precision == Precision.FP32:
        raise UsageError(f"keep_fp32 needs a precision below fp32, got fp32 and {len(keep_fp32)} nodes; leave it out")
    check_quantization(precision, of_quantization)
    target = quantization_target([asked], precision, target)
    bound = bound_of(max_drop, min_agreement, min_cosine)
    size, bounds = image_size_of(image_size, dynamic_image_size=dynamic_image_size)
    dynamic_image_size = dynamic_image_size or bounds is not None
    pixels = pixels_of(input, layout, io_dtype, embed_resize=embed_resize)
    if embed_resize and dynamic_image_size:
        raise UsageError(
            "embed_resize makes images of one size in the artifact, which cannot be dynamic; leave one out"
        )
    spec = ExportSpec(
        precision=Precision(precision),
        outputs=names_of("outputs", outputs),
        dynamic_image_size=dynamic_image_size,
        pixels=pixels,
        io_dtype=io_dtype,
        opset=opset,
        optimize=optimize,
        keep_fp32=names_of("keep_fp32", keep_fp32) or (),
        target=target,
        scheme=scheme,
        calibration=calibration,
        reduce_range=reduce_range,
        rest=rest_of(rest),
        smooth_quant="auto" if smooth_quant is None else smooth_quant,
    )
    of_task = task_of(task)
    check_outputs(
        {"timing_cache": None if engine is None else engine.timing_cache},
        {
            "the checkpoint": model,
            "images": images,
            "calibration_data": calibration_data,
            "accuracy_data": accuracy_data,
            "the image processor": None if processor is None else processor.source,
        },
        bundle=output,
    )
    if asked != to:
        engine = engine or EngineOptions()
        with contextlib.suppress(UnavailableError):  # which is told when the ONNX artifact is made, and kept
            check_request(asked, engine)
        finish = functools.partial(
            _add_engine,
            asked,
            precision,
            proof=ProofRequest(
                calibration_data if images is None and _is_folder(calibration_data) else images, tolerance
            ),
            progress=progress,
        )
        plain = spec == ExportSpec(Precision(precision), dynamic_image_size=dynamic_image_size, target=target)
        measured = any(value is not None for name, value in of_quantization.items() if name != "target")
        own = plain and not measured and task is None and revision is None and random_weights is None
        own = own and processor is None and (bounds is not None or not dynamic_image_size)  # which is said of the graph
        made = (
            _made_before(output, to, precision, model) if own and (size is None or (bounds and model is None)) else None
        )
        if made is not None:
            within = () if bounds is None or size is None else ((bounds[0], size, bounds[1]),)
            return finish(made, dataclasses.replace(engine, image_sizes=engine.image_sizes or within))
        engine.check_limits(free=dynamic_image_size or embed_resize, limited=bounds is not None)
        if model is None and random_weights is None:
            raise UsageError(
                f"an engine needs the model, or a bundle at output with its {to}-{precision} and nothing else said of "
                f"that graph, got {output!s:.400}; name the model that one is to be made of"
            )
    export_function(EXPORTERS[to])  # imports torch and onnx, or says what to install
    read = _reader(
        model,
        random_weights,
        seed,
        hub={"revision": revision, "token": token, "cache_dir": cache_dir, "offline": offline},
        task=of_task,
        processor=processor,
        image_size=size,
        dynamic_image_size=dynamic_image_size,
    )
    check_scheme(spec, bound, calibrated=calibration_data is not None)
    place = place_of(output, model, random_weights, seed)
    quantization = None
    if calibration_data is not None:
        quantization = QuantizationRequest(
            calibration_data,
            DEFAULT_COUNT if calibration_images is None else calibration_images,
            seed,
            cache_folder(calibration_cache),
            bound,
            accuracy_data,
        )
    request = ArtifactRequest(
        read=read,
        format=to,
        spec=spec,
        bounds=bounds,
        images=images,
        tolerance=tolerance,
        quantization=quantization,
    )
    bundle = add_artifact(request, place, progress=progress)
    return bundle if asked == to else finish(bundle, engine or EngineOptions())


def _reader(
    model: str | Path | None,
    random_weights: str | None,
    seed: int,
    *,
    hub: Mapping[str, Any],
    task: Task | None,
    **images: Any,
) -> Callable[[], Checkpoint]:
    """What gives the model that is named, or one with random weights."""
    from vitdeploy.sources.read import random_checkpoint, read_checkpoint

    if model is not None:
        return functools.partial(read_checkpoint, model, task, **images, **hub)
    if random_weights is not None:
        of_processor = {name: value for name, value in hub.items() if name != "revision"}
        task = task or Task.CLASSIFICATION
        return functools.partial(random_checkpoint, random_weights, task, seed, **images, **of_processor)
    raise UsageError("export needs a model, or random_weights")


def _is_folder(path: Any) -> bool:
    return isinstance(path, (str, os.PathLike)) and Path(path).is_dir()


def _made_before(output: Any, to: str, precision: str, model: str | Path | None) -> Bundle | None:
    """The bundle at `output`, where it has that artifact, of this model if one is named."""
    if output is None or not (Path(output) / MANIFEST).exists():
        return None
    bundle = Bundle.open(output)
    if f"{to}-{precision}" not in [artifact.name for artifact in bundle.manifest.artifacts]:
        return None
    # A folder of the model's name may hold others by now; of the Hub's the bundle has the commit.
    source = bundle.manifest.source
    of_hub = source.revision is not None and model == source.id and not Path(model).exists()
    return bundle if model is None or of_hub else None


def _add_engine(to: str, precision: str, bundle: Bundle, options: EngineOptions, **settings: Any) -> Bundle:
    """The bundle with an engine; what keeps it from being built also tells what was made."""
    try:
        return add_engine(bundle, to, precision, options, **settings)
    except UnavailableError as exc:
        made = f"{bundle.path} has the ONNX artifact in {precision}"
        raise exc.with_message(f"{exc}; {made}") from exc
