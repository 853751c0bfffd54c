"""`vitdeploy compare`."""

from __future__ import annotations

import sys
from typing import Any

import click

from vitdeploy.cli.bisect_report import bisect_options, report_bisection
from vitdeploy.cli.output import EXIT_CODES, Reports, json_option, print_json, print_step, print_table, report_options
from vitdeploy.errors import UsageError


@click.command()
@click.argument("bundle", type=click.Path())
@click.option("--images", type=click.Path(), help="A folder of images; synthetic ones by default.")
@click.option("--tolerance", type=float, help="Largest difference, relative to each output's largest value.")
@click.option("--batch-size", default=8, show_default=True, type=click.IntRange(min=1))
@click.option("--save-golden", type=click.Path(), help="Write the reference's outputs to this file, too.")
@click.option("--golden", type=click.Path(), help="Compare with the outputs in this file; torch is not needed then.")
@click.option("--layers", is_flag=True, help="Each layer of the artifacts, given the reference's hidden states.")
@click.option(
    "--backend", "backends", multiple=True, metavar="NAME[:PRECISION]",
    help="With --layers: these artifacts alone; may be repeated. By default all.",
)  # fmt: skip
@click.option(
    "--against", metavar="BACKEND:PRECISION", help="With --layers: another artifact, instead of the reference."
)
@bisect_options
@report_options("html", "markdown", "junit")
@json_option
def compare(
    bundle: str,
    images: str | None,
    tolerance: float | None,
    batch_size: int,
    save_golden: str | None,
    golden: str | None,
    layers: bool,
    backends: tuple[str, ...],
    against: str | None,
    reports: Reports,
    as_json: bool,
    **bisection: Any,
) -> None:
    """Compare every artifact of BUNDLE with the reference, on the same processed images.

    Exits with 1 if one differs by more than the tolerance, and with 3 if one could not run. With --bisect, finds which
    nodes must stay float32 for another precision to pass; exits with 1 if not even float32 passes. With --layers, names
    the first layer that diverges.
    """
    kinds = {"--layers": layers, "--bisect": bisection["bisect"], "--golden and --save-golden": golden or save_golden}
    if reports.asked and bisection["bisect"]:
        raise UsageError(f"--{' and --'.join(reports.asked)} cannot show what --bisect finds; use --json")
    if sum(map(bool, kinds.values())) > 1:
        given = [name for name, value in kinds.items() if value]
        raise UsageError(f"compare takes one of {', '.join(kinds)}, got {' and '.join(given)}; run it twice")
    if layers:
        sys.exit(_compare_layers(bundle, reports, as_json, images=images, tolerance=tolerance,
                                 backends=backends or None, against=against))  # fmt: skip
    for name, value in (("--against", against), ("--backend", backends)):
        if value:
            raise UsageError(f"{name} is of --layers, got it without; add --layers")
    from vitdeploy.assess.compare import compare as compare_bundle

    report_bisection(bundle, as_json, bisection, images=images, tolerance=tolerance, batch_size=batch_size)
    result = compare_bundle(
        bundle, images=images, tolerance=tolerance, batch_size=batch_size, golden=golden, save_golden=save_golden,
        on_step=print_step,
    )  # fmt: skip
    reports.write(result)
    if as_json:
        print_json(result.to_dict())
    else:
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
    sys.exit(EXIT_CODES[result.status])


def _compare_layers(bundle: str, reports: Reports, as_json: bool, **options: Any) -> int:
    """Print the comparison layer by layer; the exit code."""
    from vitdeploy.assess.layers import compare_layers

    result = compare_layers(bundle, **options, on_step=print_step)
    reports.write(result)
    if as_json:
        print_json(result.to_dict())
        return EXIT_CODES[result.status]
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
    return EXIT_CODES[result.status]
