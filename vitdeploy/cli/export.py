"""`vitdeploy export`."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any

import click

from vitdeploy.cli.engine_options import engine_options, image_size, once
from vitdeploy.cli.number_options import OPSET, SEED, Tolerance
from vitdeploy.cli.output import (
    PATH,
    TerminalProgress,
    agreement,
    allowed_of,
    image_limit_option,
    json_option,
    left_out_texts,
    nearness,
    print_json,
    print_table,
    print_text,
)
from vitdeploy.cli.processor_options import processor_options
from vitdeploy.cli.quantization_options import quantization_options
from vitdeploy.errors import UsageError
from vitdeploy.exporters import EXPORTERS, find_exporter, quantization_target
from vitdeploy.serving.triton_config import LABELED_OUTPUT
from vitdeploy.specs import Task

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vitdeploy.bundle.manifest import Artifact
    from vitdeploy.trt.options import EngineOptions

_SHORT = ("fp16", "bf16", "int8", "fp8")  # precisions that have a flag
_PRECISIONS = sorted({precision for exporter in EXPORTERS.values() for precision in exporter.precisions})


class _Layout(click.Choice[str]):
    """The order of the axes of images; who looks for another layout is told where it is."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if value == "triton":
            self.fail("triton is no layout of images; --triton DIR writes a model repository of Triton", param, ctx)
        return super().convert(value, param, ctx)


def _names(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[str, ...] | None:  # noqa: ARG001
    return None if value is None else tuple(name.strip() for name in value.split(","))


def _difference(artifact: Artifact) -> str:
    checked = artifact.validation
    if not checked["outputs"]:
        return f"{checked['status']}; there: vitdeploy verify --run"
    if checked.get("calibration_images"):
        return "; ".join(map(agreement, checked["calibration_images"]))
    worst = max(checked["outputs"], key=lambda output: output["max_relative"])
    return f"{worst['max_relative']:.1e} of {worst['output']} ({allowed_of(checked)})"


def _print_candidates(artifact: Artifact) -> None:
    """Print every way of quantizing that was measured, which one was taken, and why."""
    from vitdeploy.exporting.candidate_search import RULES

    rows = []
    for found in artifact.validation.get("candidates", ()):
        smooth = "none" if found["smooth_quant"] is None else f"{found['smooth_quant']:g}"
        if found["multiply"] is False:
            smooth += ", no Mul"
        ranges = found["ranges"] or "of each batch"
        if found["margin"]:
            ranges += f" + {found['margin']:.0%}"
        cosines = (found["mean_cosine"], found["p5_cosine"])  # which a regression has none of
        figures = (_percent(found["error"]), *("" if each is None else f"{each:.5f}" for each in cosines))
        rows.append((found["scheme"], ranges, smooth, *figures, "chosen" if found["chosen"] else ""))
    if rows:
        count = artifact.validation["calibration_parts"]["choice"]
        names = ("scheme", "ranges", "smoothing", "relative error", "mean cosine", "5th percentile", "")
        print_table(f"{artifact.name}: candidates on {count} images", names, rows)
        print_text(RULES)


def _percent(value: float | str) -> str:
    return f"{float(value):.2%}"


def _print_nearness(artifact: Artifact) -> None:
    """Print in a sentence how near an artifact is to the reference on the images that judge it."""
    measured = artifact.validation.get("calibration_images", ())
    by_neighbours = [output for output in measured if output.get("neighbour_agreement") is not None]
    for output in (by_neighbours or measured)[:1]:
        print_text(f"{artifact.name}: {nearness(output)}")


def _honoured(found: Mapping[str, Any]) -> str:
    """How accurate an artifact is on the images of a bound."""
    if "p5_cosine" in found:
        return (
            f"{found['output']} has a 5th percentile of the cosine of {found['p5_cosine']:.5f} on {found['images']} "
            f"images, at least {found.get('aim', found['at_least']):g} wanted"
        )
    text = f"{found['correct']} of {found['images']} images, at least {found['at_least']} wanted"
    return text if found.get("honoured", True) else f"{text}; the difference is within chance for so few images"


def _print_accuracy(artifact: Artifact) -> None:
    """Print how accurate an artifact is, what was kept in float32 for that, and why."""
    found, kept = artifact.validation["accuracy"], artifact.validation["kept_layers"]
    effects = artifact.validation["layer_effects"]
    total = artifact.options["quantized_nodes"] + len(artifact.options["float32_nodes"])
    print_text(
        f"{artifact.name} honours {found['bound']}: {_honoured(found)}; "
        f"{len(kept)} of {total} layers kept float32 for it"
    )
    if "held_out" in found:
        print_text(f"on held-out images: {_honoured(found['held_out'])}")
    if not artifact.validation["minimal"]:
        print_text("the runs were used up before it was shown that none of them can be left out")
    if kept:
        rows = [(layer, f"{float(effects[layer]):.2%}") for layer in kept]
        print_table("", ("kept float32", "relative error of the outputs when it alone is not"), rows)


@click.command()
@click.option(
    "--model",
    help="A Hub id, such as google/vit-base-patch16-224, a local folder (transformers, timm, an adapter of PEFT, which "
    "is merged), or Google's .npz file.",
)
@click.option(
    "--random-weights",
    metavar="PRESET",
    help="Instead of --model: an architecture with random weights, such as vit-base-patch16-224.",
)
@click.option(
    "--seed",
    default=0,
    show_default=True,
    type=SEED,
    help="Of the random weights, and of the choice of calibration images.",
)
@click.option(
    "--to", "formats", multiple=True, default=["onnx"], show_default=True, type=click.Choice(list(EXPORTERS)),
    callback=once, help="Format; may be repeated.",
)  # fmt: skip
@click.option("--precision", type=click.Choice(_PRECISIONS), help="fp32 by default.")
@click.option("--fp16", is_flag=True, help="The same as --precision fp16.")
@click.option("--bf16", is_flag=True, help="The same as --precision bf16.")
@click.option("--int8", is_flag=True, help="The same as --precision int8.")
@click.option("--fp8", is_flag=True, help="The same as --precision fp8.")
@quantization_options
@click.option(
    "--io-dtype",
    default="float32",
    show_default=True,
    type=click.Choice(["float32", "float16"]),
    help="Of floating-point inputs and outputs.",
)
@click.option(
    "--input",
    default="float32",
    show_default=True,
    type=click.Choice(["float32", "uint8"]),
    help="What goes in: normalised images, or bytes, which the model then normalises.",
)
@click.option("--layout", type=_Layout(["nchw", "nhwc"]), help="Of uint8 images; nhwc by default.")
@click.option("--embed-resize", is_flag=True, help="Resize and crop in the model; takes uint8 images of any size.")
@click.option(
    "--task", type=click.Choice([task.value for task in Task]), help="By default what the checkpoint was made for."
)
@click.option(
    "--outputs",
    metavar="NAME,...",
    callback=_names,
    help="What the artifact gives, such as logits,hidden_states; by default the task's.",
)
@click.option(
    "--image-size",
    metavar="HxW",
    callback=image_size,
    help="By default what the image processor gives. MIN:OPT:MAX for a model that takes sizes within limits.",
)
@click.option("--dynamic-image-size", is_flag=True, help="Take images of every size from one patch up.")
@processor_options
@click.option("--opset", type=OPSET, help="ONNX opset, 18 to 23; 20 by default.")
@click.option(
    "--optimize",
    type=click.Choice(["onnxruntime"]),
    help="Fuse for that runtime alone, which then opens the file sooner; by default the graph runs anywhere.",
)
@click.option("--keep-fp32", metavar="NODE", multiple=True, help="Below fp32: stays float32; may be repeated.")
@click.option(
    "--keep-fp32-from",
    type=PATH,
    help="The same for every node in a file that vitdeploy debug bisect --json printed.",
)
@click.option("--images", type=PATH, help="A folder of images to prove the artifact on; synthetic by default.")
@click.option("--tolerance", type=Tolerance(), help="Largest difference, relative to each output's largest value.")
@engine_options
@click.option(
    "-o",
    "--output",
    type=PATH,
    help="The bundle; by default ./ and the model's name, with -vitdeploy where that is the checkpoint.",
)
@click.option(
    "--triton",
    metavar="DIR",
    type=PATH,
    help="Also write each artifact into this model repository of Triton, as vitdeploy triton does.",
)
@click.option("--revision", help="Branch, tag or commit on the Hub.")
@click.option("--token", envvar="HF_TOKEN", help="Hub token, for private and gated models.  [env: HF_TOKEN]")
@click.option("--cache-dir", type=PATH, help="Of the Hub's files.")
@click.option("--offline", is_flag=True, help="Use the Hub's cache alone.")
@image_limit_option
@json_option
def export(
    formats: tuple[str, ...],
    precision: str | None,
    keep_fp32: tuple[str, ...],
    keep_fp32_from: str | None,
    engine: EngineOptions | None,
    triton: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Export a checkpoint, prove that the artifact is the same model, and keep both in a bundle.

    The artifact is compared with the reference on three images, in batches of 1, 2 and 4, and on the calibration images
    where there are some; out of tolerance, nothing is written. An engine is built from the ONNX artifact of its
    precision, which is made first; without --model or --random-weights from the one that --output has. Without a GPU it
    is kept, and completed by verify --run there.
    """
    from vitdeploy.cli.debug import kept_nodes
    from vitdeploy.exporting.output_folder import check_repository, place_of
    from vitdeploy.exporting.workflow import export as export_model
    from vitdeploy.serving.triton_repository import check_labels_of, check_place, write_triton_model

    short = [name for name in _SHORT if options.pop(name)]
    typed = [*([] if precision is None else [f"--precision {precision}"]), *(f"--{name}" for name in short)]
    if len(typed) > 1:
        raise UsageError(f"export needs one precision, got {' and '.join(typed)}")
    options["precision"] = precision or next(iter(short), "fp32")
    options["keep_fp32"] = (*keep_fp32, *(() if keep_fp32_from is None else kept_nodes(keep_fp32_from))) or None
    if options.pop("no_calibration_cache"):
        options["calibration_cache"] = False
    engines = {to: engine if EXPORTERS[to].made_from else None for to in formats}
    for to in formats:  # before the first is made
        find_exporter(to, options["precision"], options | {"engine": engines[to]})
    target = options["target"] = quantization_target(formats, options["precision"], options["target"])
    if triton is not None:
        named = options["model"] or options["random_weights"] or options["output"]  # or the export says what it needs
        place = place_of(*(options[name] for name in ("output", "model", "random_weights", "seed"))) if named else None
        if options["model"]:
            check_repository(triton, options["model"])
        for to in formats:
            check_place(place, triton, to, options["precision"], target=target, engine=engines[to])
        source = options["model"] or options["output"]  # an engine may be of the model that is there
        labeled = options["outputs"] is None or LABELED_OUTPUT in options["outputs"]
        if source and labeled and options["random_weights"] is None:
            check_labels_of(source, options["task"])
    gc.disable()  # it would go through the exporter's many objects again and again, in a process that ends soon
    try:
        for to in formats:
            with TerminalProgress(f"exporting to {to}") as progress:
                bundle = export_model(to=to, engine=engines[to], progress=progress, **options)
    finally:
        gc.enable()
    models = []
    if triton is not None:
        names = [f"{to}-{options['precision']}" for to in formats]
        models = [write_triton_model(bundle.path, triton, artifact=name) for name in names]
    if as_json:
        shown = {} if triton is None else {"triton": [model.to_dict() for model in models]}
        print_json({"bundle": str(bundle.path), **bundle.manifest.to_dict(), **shown})
        return
    rows = []
    for artifact in (bundle.artifact(to, options["precision"]) for to in formats):
        nearness = _difference(artifact)
        rows += [(artifact.name, file.path, f"{file.size_bytes / 1e6:.1f} MB", nearness) for file in artifact.files]
    print_table(str(bundle.path), ("artifact", "file", "size", "difference from the reference"), rows)
    for artifact in (bundle.artifact(to, options["precision"]) for to in formats):
        _print_candidates(artifact)
        _print_nearness(artifact)
        if "accuracy" in artifact.validation:
            _print_accuracy(artifact)
        for name, text in left_out_texts(artifact.validation).items():
            print_text(f"{artifact.name}, --{name.replace('_', '-')}: {text}")
    for model in models:
        print_text(f"{model.artifact} is served by Triton as {model.name}, from {model.path}")
