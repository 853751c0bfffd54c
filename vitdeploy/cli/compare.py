"""`vitdeploy compare`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from vitdeploy.cli.bisect_report import bisect_options, print_bisection
from vitdeploy.cli.output import (
    EXIT_CODES,
    json_option,
    print_json,
    print_step,
    print_table,
)
from vitdeploy.cli.reports import Reports, report_options
from vitdeploy.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from vitdeploy.assess.compare import Comparison
    from vitdeploy.assess.layers import LayerComparison

# The options that go with each way to compare: of outputs, layer by layer, and with nodes in float32.
_OPTIONS = {
    "": ("images", "tolerance", "batch_size", "backends", "device", "golden", "save_golden"),
    "--layers": ("images", "tolerance", "backends", "against"),
    "--bisect": ("images", "tolerance", "batch_size", "precision", "max_runs"),
}


@click.command()
@click.argument("bundle", type=click.Path())
@click.option("--images", type=click.Path(), help="A folder of images; synthetic ones by default.")
@click.option("--tolerance", type=float, help="Largest difference, relative to each output's largest value.")
@click.option("--batch-size", type=click.IntRange(min=1), help="8 by default.")
@click.option(
    "--backend", "backends", multiple=True, metavar="NAME[:PRECISION]",
    help="These artifacts alone, such as onnxruntime:fp16; may be repeated. By default all.",
)  # fmt: skip
@click.option("--device", help="cpu by default; or cuda, cuda:1.")
@click.option("--save-golden", type=click.Path(), help="Write the reference's outputs to this file, too.")
@click.option("--golden", type=click.Path(), help="Compare with the outputs in this file; torch is not needed then.")
@click.option("--layers", is_flag=True, help="Each layer of the artifacts, given the reference's hidden states.")
@click.option("--against", metavar="BACKEND:PRECISION", help="Of --layers: another artifact, not the reference.")
@bisect_options
@report_options("html", "markdown", "junit")
@json_option
def compare(bundle: str, layers: bool, bisect: bool, reports: Reports, as_json: bool, **options: Any) -> None:
    """Compare every artifact of BUNDLE with the reference, on the same processed images.

    Exits with 1 if one differs by more than the tolerance, and with 3 if one could not run. With --bisect, finds which
    nodes must stay float32 for another precision to pass; exits with 1 if not even float32 passes. With --layers, names
    the first layer that diverges.
    """
    if layers and bisect:
        raise UsageError("compare takes one of --layers and --bisect, got both; run it twice")
    way = "--layers" if layers else "--bisect" if bisect else ""
    given = {name: value for name, value in options.items() if value not in (None, ())}
    _check_options(way, [*given, *(reports.asked if bisect else ())])
    result: Any
    show: Callable[[Any], None]
    if layers:
        from vitdeploy.assess.layers import compare_layers

        result, show = compare_layers(bundle, on_step=print_step, **given), _print_layers
    elif bisect:
        from vitdeploy.assess.bisection import bisect as bisect_bundle

        result, show = bisect_bundle(bundle, on_step=print_step, **given), print_bisection
    else:
        from vitdeploy.assess.compare import compare as compare_bundle

        result, show = compare_bundle(bundle, on_step=print_step, **given), _print
    if as_json:
        print_json(result.to_dict())
    else:
        show(result)
    reports.write(result)
    sys.exit(EXIT_CODES[result.status])


def _check_options(way: str, given: Collection[str]) -> None:
    """Refuse what the way to compare would ignore."""
    for name in given:
        if name not in _OPTIONS[way]:
            ways = [other or "the comparison of outputs" for other, names in _OPTIONS.items() if name in names]
            option = f"--{name.removesuffix('s') if name == 'backends' else name.replace('_', '-')}"
            raise UsageError(
                f"{option} is of {' and '.join(ways or ['the comparison of outputs and --layers'])}, got "
                f"{way or 'neither --layers nor --bisect'}; leave it out"
            )


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
                f"{item.tolerance:g}",
                f"{difference.required_tolerance:g}",
                f"{difference.min_cosine:.8f}",
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
