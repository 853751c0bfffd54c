"""`vitdeploy export`."""

from __future__ import annotations

import dataclasses
import gc
from typing import TYPE_CHECKING, Any

import click

from vitdeploy.cli import synonyms
from vitdeploy.cli.command import Choice, command, option
from vitdeploy.cli.output import (
    PATH,
    agreement,
    allowed_of,
    image_limit_option,
    json_option,
    left_out_texts,
    print_json,
    print_table,
    print_text,
    shown_path,
)
from vitdeploy.cli.progress import CommandProgress
from vitdeploy.cli.table import details, details_option
from vitdeploy.cli.value_options import values_from_options
from vitdeploy.errors import UsageError, typed_line
from vitdeploy.exporters import EXPORTERS, quantization_target
from vitdeploy.exporting.graph_options import GraphOptions, spec_of
from vitdeploy.exporting.options import Quantization, SourceOptions, ValidationOptions
from vitdeploy.serving.model_repository.model_config import LABELED_OUTPUT
from vitdeploy.trt.options import EngineOptions

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vitdeploy.bundle.manifest import Artifact

_OUTPUT, _HALF = "Output", "Half precision"  # headings in the help
_SHORT = ("fp16", "bf16", "int8", "fp8")  # precisions that have a flag
_PRECISIONS = sorted({precision for exporter in EXPORTERS.values() for precision in exporter.precisions})


def _difference(artifact: Artifact) -> str:
    checked = artifact.validation
    if not checked["outputs"]:
        return ""
    if checked.get("calibration_images"):
        return "; ".join(map(agreement, checked["calibration_images"]))
    worst = max(checked["outputs"], key=lambda output: output["max_relative"])
    return f"{worst['max_relative']:.1e} of {worst['output']} ({allowed_of(checked)})"


def _print_candidates(artifact: Artifact) -> None:
    """Print the number of quantization candidates; with --details all of them, and the reason for the chosen one."""
    from vitdeploy.exporting.quantization.candidate_search import RULES

    candidates = artifact.validation.get("candidates", ())
    if not candidates:
        return
    if not details():
        chosen = next(candidate["scheme"] for candidate in candidates if candidate["chosen"])
        print_text(f"{artifact.name}: {chosen}, the best of {len(candidates)} candidates; --details lists them")
        return
    count = artifact.validation["calibration_parts"]["choice"]
    names = ("", "scheme", "ranges", "smoothing", "relative error", "mean cosine", "5th percentile")
    print_table(f"{artifact.name}: candidates on {count} images", names, [*map(_candidate_row, candidates)])
    print_text(RULES)


def _candidate_row(candidate: Mapping[str, Any]) -> tuple[str, ...]:
    smooth = "none" if candidate["smooth_quant"] is None else f"{candidate['smooth_quant']:g}"
    if candidate["multiply"] is False:
        smooth += ", no Mul"
    ranges = candidate["ranges"] or "of each batch"
    if candidate["margin"]:
        ranges += f" + {candidate['margin']:.0%}"
    cosines = (candidate["mean_cosine"], candidate["p5_cosine"])  # a regression has none
    figures = (f"{float(candidate['error']):.2%}", *("" if cosine is None else f"{cosine:.5f}" for cosine in cosines))
    return ("chosen" if candidate["chosen"] else "", candidate["scheme"], ranges, smooth, *figures)


def _honoured(accuracy: Mapping[str, Any]) -> str:
    """An artifact's accuracy on the bound's images, as text."""
    if "p5_cosine" in accuracy:
        return (
            f"{accuracy['output']} has a 5th percentile of the cosine of {accuracy['p5_cosine']:.5f} on "
            f"{accuracy['images']} images, at least {accuracy.get('aim', accuracy['at_least']):g} wanted"
        )
    text = f"{accuracy['correct']} of {accuracy['images']} images, at least {accuracy['at_least']} wanted"
    return text if accuracy.get("honoured", True) else f"{text}; the difference is within chance for so few images"


def _print_accuracy(artifact: Artifact) -> None:
    """Print an artifact's accuracy, the layers kept in float32 for it, and the reason."""
    accuracy, kept = artifact.validation["accuracy"], artifact.validation["kept_layers"]
    effects = artifact.validation["layer_effects"]
    rest = "float32" if "float32_nodes" in artifact.options else artifact.options["rest"]
    total = artifact.options["quantized_nodes"] + len(artifact.options[f"{rest}_nodes"])
    print_text(
        f"{artifact.name} honours {accuracy['bound']}: {_honoured(accuracy)}; "
        f"{len(kept)} of {total} layers kept {rest} for it"
    )
    if "held_out" in accuracy:
        print_text(f"on held-out images: {_honoured(accuracy['held_out'])}")
    if not artifact.validation["minimal"]:
        print_text("the runs were used up before it was shown that none of them can be left out")
    if kept:
        rows = [(layer, f"{float(effects[layer]):.2%}") for layer in kept]
        print_table("", (f"kept {rest}", "relative error of the outputs when it alone is not"), rows)


@command(
    examples=(
        "export google/vit-base-patch16-224 -o vit",
        "export google/vit-base-patch16-224 --to onnx --fp16 -o vit",
        "export ./checkpoint --int8 --calibration-data photos --max-drop 1%",
        "export --weights best.pth.tar --arch vit_base_patch16_224 -o vit",
    )
)
@click.argument("checkpoint", metavar="[MODEL]", required=False, type=PATH)
@option(
    "-m",
    "--model",
    group="Model",
    help="Same as MODEL: a Hub id such as google/vit-base-patch16-224, a local folder (transformers, timm, OpenCLIP, "
    "or a PEFT adapter, merged on export), or Google's .npz file.",
)
@option(
    "--to", "formats", multiple=True, default=["onnx"], show_default=True, group=_OUTPUT,
    type=Choice(EXPORTERS, synonyms.FORMATS),
    help="Format; may be repeated.",
)  # fmt: skip
@option(
    "-o",
    "--output",
    type=PATH,
    group=_OUTPUT,
    help="Bundle folder. Default: ./NAME of the model, or ./NAME-vitdeploy if ./NAME is the checkpoint.",
)
@option("--precision", type=Choice(_PRECISIONS, synonyms.PRECISIONS), group=_OUTPUT, help="Precision.  [default: fp32]")
@option("--fp16", is_flag=True, group=_HALF, help="Same as --precision fp16.")
@option("--bf16", is_flag=True, group=_HALF, help="Same as --precision bf16.")
@option("--int8", is_flag=True, group="Quantization", help="Same as --precision int8.")
@option("--fp8", is_flag=True, group="Quantization", help="Same as --precision fp8.")
@values_from_options(
    source=SourceOptions,
    graph=GraphOptions,
    quantization=Quantization,
    validation=ValidationOptions,
    engine=EngineOptions,
)
@option(
    "--keep-fp32-from",
    type=PATH,
    group=_HALF,
    help="Output file of vitdeploy debug bisect --json; its nodes stay float32.",
)
@option(
    "--triton",
    metavar="DIR",
    type=PATH,
    group=_OUTPUT,
    help="Also add each artifact to this Triton model repository, as vitdeploy triton does.",
)
@image_limit_option
@details_option
@json_option
def export(
    checkpoint: str | None,
    model: str | None,
    formats: tuple[str, ...],
    precision: str | None,
    source: SourceOptions | None,
    graph: GraphOptions | None,
    quantization: Quantization | None,
    validation: ValidationOptions | None,
    engine: EngineOptions | None,
    keep_fp32_from: str | None,
    output: str | None,
    triton: str | None,
    as_json: bool,
    **flags: bool,
) -> None:
    """Export MODEL, validate the artifact, and write both to a bundle.

    MODEL is a Hub id, a local folder or a .npz file; weights without a configuration are named with --weights and
    --arch.

    The artifact is compared with the reference on three images, in batches of 1, 2 and 4, and on calibration images, if
    given. An artifact that exceeds the tolerance is not written.

    An engine is built from the ONNX artifact of its precision, which is exported first. Without MODEL or
    --random-weights, the one in --output is used. `verify --run` validates engines that were built without a GPU.
    """
    from vitdeploy.cli.debug import kept_nodes

    if checkpoint is not None and model is not None:
        raise UsageError("give the model as MODEL or with --model", what="model", found=(checkpoint, model))
    model, precision = model if checkpoint is None else checkpoint, _precision(precision, flags)
    formats = tuple(dict.fromkeys(formats))
    source, graph, validation = source or SourceOptions(), graph or GraphOptions(), validation or ValidationOptions()
    _check_model(model, source, formats, output)
    if keep_fp32_from is not None:
        graph = dataclasses.replace(graph, keep_fp32=(*graph.keep_fp32, *kept_nodes(keep_fp32_from)))
    target = quantization_target(formats, precision, None if quantization is None else quantization.target)
    if target is not None:
        quantization = dataclasses.replace(quantization or Quantization(), target=target)
    takes_engine = [to for to in formats if EXPORTERS[to].made_from is not None] or formats
    engines = {to: engine if to in takes_engine else None for to in formats}
    for to in formats:  # before the first export
        spec_of(to, precision, graph, quantization, engines[to])
    from vitdeploy.exporting.workflow import export as export_model  # imports torch: after the cheap checks
    from vitdeploy.serving.model_repository.repository import write_triton_model

    if triton is not None:
        _check_triton(triton, model, output, source, graph, [(to, precision, target, engines[to]) for to in formats])
    gc.disable()  # it would traverse the exporter's many objects repeatedly, in a process that ends soon
    try:
        for to in formats:
            with CommandProgress(f"exporting to {to}") as progress:
                bundle = export_model(
                    model=model, to=to, precision=precision, output=output, graph=graph, quantization=quantization,
                    engine=engines[to], source=source, validation=validation, progress=progress,
                )  # fmt: skip
    finally:
        gc.enable()
    models = []
    if triton is not None:
        names = [f"{to}-{precision}" for to in formats]
        models = [write_triton_model(bundle.path, triton, artifact=name) for name in names]
    if as_json:
        shown = {} if triton is None else {"triton": [written.to_dict() for written in models]}
        print_json({"bundle": str(bundle.path), **bundle.manifest.to_dict(), **shown})
        return
    rows, notes = [], []
    for artifact in (bundle.artifact(to, precision) for to in formats):
        difference = _difference(artifact)
        if difference:
            notes.append(f"{artifact.name} against the reference: {difference}")
        else:
            run_there = typed_line("verify", bundle.path, "--run")
            notes.append(f"{artifact.name} was {artifact.validation['status']}; there: {run_there}")
        rows += [(artifact.name, file.path, f"{file.size_bytes / 1e6:.1f} MB") for file in artifact.files]
    print_table(shown_path(bundle.path), ("artifact", "file", "size"), rows, notes)
    for artifact in (bundle.artifact(to, precision) for to in formats):
        _print_candidates(artifact)
        if "accuracy" in artifact.validation:
            _print_accuracy(artifact)
        for name, text in left_out_texts(artifact.validation).items():
            print_text(f"{artifact.name}, --{name.replace('_', '-')}: {text}")
    for written in models:
        print_text(f"{written.artifact} is served by Triton as {written.name}, from {shown_path(written.path)}")


def _precision(named: str | None, flags: Mapping[str, bool]) -> str:
    typed = [*([] if named is None else [f"--precision {named}"]), *(f"--{name}" for name in _SHORT if flags[name])]
    if len(typed) > 1:
        raise UsageError(f"export needs one precision, got {' and '.join(typed)}", what="precision", found=typed)
    return named or next((name for name in _SHORT if flags[name]), "fp32")


def _check_model(model: str | None, source: SourceOptions, formats: Sequence[str], output: str | None) -> None:
    """Raise UsageError if no model is named, unless an engine can be built from the bundle's artifact.

    CheckpointError if the name is neither a folder nor a Hub id, before the libraries are imported.
    """
    from vitdeploy.sources.hub import local_path

    from_bundle = output is not None and all(EXPORTERS[to].made_from is not None for to in formats)
    if model is None and source.weights is None and source.random_weights is None and not from_bundle:
        raise UsageError(
            "export needs MODEL (a Hub id, a folder or a .npz file), --weights or --random-weights",
            what="model", hint="for example: vitdeploy export google/vit-base-patch16-224 -o vit",
        )  # fmt: skip
    checkpoint = model or source.weights
    if checkpoint:
        local_path(checkpoint)


def _check_triton(
    repository: str,
    model: str | None,
    output: str | None,
    source: SourceOptions,
    graph: GraphOptions,
    artifacts: Sequence[tuple[str, str, str | None, EngineOptions | None]],
) -> None:
    """Raise UsageError before the export unless each artifact can be written to Triton's model repository."""
    from vitdeploy.exporting.output_folder import check_repository, place_of
    from vitdeploy.serving.model_repository.repository import check_labels_of, check_place

    checkpoint = model or source.weights
    named = checkpoint or source.random_weights or output  # otherwise the export reports the missing extra
    place = place_of(output, checkpoint, source.random_weights, source.seed) if named else None
    if checkpoint:
        check_repository(repository, checkpoint)
    for to, precision, target, engine in artifacts:
        check_place(place, repository, to, precision, target=target, engine=engine)
    labelled = None if source.weights else model or output  # an engine may be built from the existing model
    if labelled and (graph.outputs is None or LABELED_OUTPUT in graph.outputs) and source.random_weights is None:
        check_labels_of(labelled, source.task)
