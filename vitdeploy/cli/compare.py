"""`vitdeploy compare`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from vitdeploy.cli.bisect_report import lower_precision_options, print_bisection
from vitdeploy.cli.number_options import BATCH_SIZE, Tolerance
from vitdeploy.cli.output import (
    PATH,
    TerminalProgress,
    image_limit_option,
    json_option,
    print_json,
    print_left_out,
    print_table,
    print_tables,
    print_text,
)
from vitdeploy.cli.process import conclude
from vitdeploy.cli.reports import Reports, report_options
from vitdeploy.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from vitdeploy.assess.compare.compare import Comparison
    from vitdeploy.assess.debug.layers import LayerComparison
    from vitdeploy.assess.debug.sensitivity import Sensitivity
    from vitdeploy.assess.metrics.features import Nearness

# The options that go with each way to compare: of outputs, layer by layer, with nodes in float32, and all but a layer.
_OPTIONS = {
    "": (
        "images",
        "tolerance",
        "batch_size",
        "backends",
        "device",
        "golden",
        "save_golden",
        "html",
        "markdown",
        "junit",
    ),
    "--layers": ("images", "tolerance", "backends", "against", "html", "markdown", "junit"),
    "--bisect": ("images", "tolerance", "batch_size", "precision", "max_images", "max_runs"),
    "--sensitivity": ("images", "precision", "max_images", "html", "markdown"),
}


@click.command()
@click.argument("bundle", type=PATH)
@click.option("--images", type=PATH, help="A folder of images; synthetic ones by default.")
@click.option("--tolerance", type=Tolerance(), help="Largest difference, relative to each output's largest value.")
@click.option("--batch-size", type=BATCH_SIZE, help="8 by default.")
@click.option(
    "--backend", "backends", multiple=True, metavar="NAME[:PRECISION]",
    help="These artifacts alone, such as onnxruntime:fp16; may be repeated. By default all.",
)  # fmt: skip
@click.option("--device", help="cpu by default; or cuda, cuda:1.")
@click.option("--save-golden", type=PATH, help="Write the reference's outputs to this file, too.")
@click.option("--golden", type=PATH, help="Compare with the outputs in this file; torch is not needed then.")
@click.option("--layers", is_flag=True, help="Each layer of the artifacts, given the reference's hidden states.")
@click.option("--against", metavar="BACKEND:PRECISION", help="Of --layers: another artifact, not the reference.")
@lower_precision_options
@report_options("html", "markdown", "junit")
@image_limit_option
@json_option
def compare(
    bundle: str, layers: bool, bisect: bool, sensitivity: bool, reports: Reports, as_json: bool, **options: Any
) -> None:
    """Compare every artifact of BUNDLE with the reference, on the same processed images.

    An artifact in 8 bits of a model without classes is judged by the cosines of its vectors and by its nearest
    neighbours, unless --tolerance is given; others by the largest difference.

    Exits with 1 if one is too far from the reference, and with 3 if one could not run. With --bisect, finds which
    nodes must stay float32 for another precision to pass; exits with 1 if not even float32 passes. With --layers, names
    the first layer that diverges. With --sensitivity, measures how far from the reference each layer takes the outputs,
    alone in the precision; exits with 0.
    """
    flags = {"--layers": layers, "--bisect": bisect, "--sensitivity": sensitivity}
    ways = [name for name, given in flags.items() if given]
    if len(ways) > 1:
        raise UsageError(f"compare takes one of {_listed(flags)}, got {_listed(ways)}; run it once for each")
    way = ways[0] if ways else ""
    given = {name: value for name, value in options.items() if value not in (None, ())}
    _check_options(way, [*given, *reports.asked])
    result: Any
    print_result: Callable[[Any], None]
    with TerminalProgress("layers" if sensitivity else "images") as progress:
        if layers:
            from vitdeploy.assess.debug.layers import compare_layers

            result, print_result = compare_layers(bundle, progress=progress, **given), _print_layers
        elif bisect:
            from vitdeploy.assess.debug.bisection import bisect as bisect_bundle

            result, print_result = bisect_bundle(bundle, progress=progress, **given), print_bisection
        elif sensitivity:
            from vitdeploy.assess.debug.sensitivity import sensitivity as measure

            result, print_result = measure(bundle, progress=progress, **given), _print_sensitivity
        else:
            from vitdeploy.assess.compare.compare import compare as compare_bundle

            result, print_result = compare_bundle(bundle, progress=progress, **given), _print

    def show() -> None:
        if as_json:
            print_json(result.to_dict())
        else:
            print_result(result)
            print_left_out(result.left_out)

    conclude(result.status, show, *reports.writers(result))


def _check_options(way: str, given: Collection[str]) -> None:
    """Refuse what the way to compare would ignore."""
    for name in given:
        if name not in _OPTIONS[way]:
            ways = [other or "the comparison of outputs" for other, names in _OPTIONS.items() if name in names]
            option = f"--{name.removesuffix('s') if name == 'backends' else name.replace('_', '-')}"
            others = [other for other in _OPTIONS if other]
            raise UsageError(f"{option} is of {_listed(ways)}, got {way or f'none of {_listed(others)}'}; leave it out")


def _listed(names: Iterable[str]) -> str:
    *before, last = names
    return f"{', '.join(before)} and {last}" if before else last


def _print(result: Comparison) -> None:
    rows: list[tuple[str, ...]] = []
    for item in result.results:
        head = (item.artifact, item.backend, item.status)
        if item.skipped is not None:
            rows.append((*head, item.skipped))
        if item.not_finite:
            images_named = ", ".join(map(str, item.not_finite[:5])) + (" ..." if len(item.not_finite) > 5 else "")
            rows.append((*head, f"NaN or infinite for images {images_named}, counted from 0"))
        rows.extend(
            (
                *head,
                difference.output,
                f"{difference.max_abs:.2e}",
                f"{difference.max_relative:.2e}",
                f"{item.tolerance:g}" if item.cosine_bound is None else "by cosine",
                f"{difference.required_tolerance:g}",
                "" if difference.min_cosine is None else f"{difference.min_cosine:.8f}",
                "" if difference.psnr_db is None else f"{difference.psnr_db:.0f}",
                "" if difference.top1_agreement is None else f"{difference.top1_agreement:.2%}",
                *(
                    (f"{item.logits.flips} + {item.logits.low_margin_flips}", f"{item.logits.kl_divergence:.1e}")
                    if item.logits is not None and difference.output == "logits"
                    else ()
                ),
            )
            for difference in item.differences
        )
    kind = "synthetic images" if result.synthetic else "images"
    columns = ("artifact", "backend", "status", "output", "max abs", "max relative", "tolerance", "would pass at",
               "min cosine", "PSNR dB", "top-1 agreement", "flips + low margin", "KL")  # fmt: skip
    print_table(f"{result.bundle} against the reference, {result.images} {kind}: {result.status}", columns, rows)
    if result.note:
        print_text(result.note)
    near = [(item, each) for item in result.results for each in item.nearness]
    if near:
        names = ("artifact", "backend", "vector", "mean cosine", "5th percentile", "lowest", "nearest neighbour kept")
        figures = [(item.artifact, item.backend, *_near(each)) for item, each in near]
        print_table("vectors against the reference's", names, figures)
        for item in result.results:
            if item.skipped is None:
                print_text(f"{item.artifact} on {item.backend} is judged by: {item.judged_by}")


def _near(vector: Nearness) -> tuple[str, ...]:
    figures = (f"{value:.6f}" for value in (vector.mean_cosine, vector.p5_cosine, vector.min_cosine))
    kept = vector.neighbour_agreement
    return vector.output, *figures, "" if kept is None else f"{kept:.2%}"


def _print_layers(result: LayerComparison) -> None:
    rows: list[tuple[str, ...]] = []
    for item in result.results:
        if item.skipped is not None:
            rows.append((item.artifact, item.status, item.skipped))
        for part in item.parts:
            verdict = "passed" if part.worst.within(item.tolerance) else "failed"
            if part.part == item.first:
                verdict = "first that diverges"
            rows.append((item.artifact, verdict, part.part, f"{part.worst.max_relative:.2e}", f"{item.tolerance:g}",
                         f"{part.worst.required_tolerance:g}"))  # fmt: skip
    columns = ("artifact", "status", "part", "max relative", "tolerance", "would pass at")
    kind = "synthetic images" if result.synthetic else "images"
    title = f"{result.bundle} layer by layer against {result.against}, {result.images} {kind}: {result.status}"
    print_table(title, columns, rows)


def _print_sensitivity(result: Sensitivity) -> None:
    kind = "synthetic images" if result.synthetic else "images"
    print_text(f"{result.bundle} in {result.precision}, a layer at a time, {result.images} {kind}\n{result.summary}")
    from vitdeploy.assess.report.tables import tables

    print_tables("", tables(result))
