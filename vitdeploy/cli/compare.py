"""`vitdeploy compare`."""

from __future__ import annotations

import sys
from typing import Any

import click

from vitdeploy.cli.bisect_report import bisect_options, report_bisection
from vitdeploy.cli.output import EXIT_CODES, json_option, print_json, print_step, print_table


@click.command()
@click.argument("bundle", type=click.Path())
@click.option("--images", type=click.Path(), help="A folder of images; synthetic ones by default.")
@click.option("--tolerance", type=float, help="Largest difference, relative to each output's largest value.")
@click.option("--batch-size", default=8, show_default=True, type=click.IntRange(min=1))
@bisect_options
@json_option
def compare(
    bundle: str, images: str | None, tolerance: float | None, batch_size: int, as_json: bool, **bisection: Any
) -> None:
    """Compare every artifact of BUNDLE with the reference, on the same processed images.

    Exits with 1 if one differs by more than the tolerance, and with 3 if one could not run. With --bisect, finds which
    nodes must stay float32 for another precision to pass; exits with 1 if not even float32 passes.
    """
    from vitdeploy.assess.compare import compare as compare_bundle

    report_bisection(bundle, as_json, bisection, images=images, tolerance=tolerance, batch_size=batch_size)
    result = compare_bundle(bundle, images=images, tolerance=tolerance, batch_size=batch_size, on_step=print_step)
    if as_json:
        print_json(result.to_dict())
    else:
        rows: list[tuple[str, ...]] = []
        for item in result.results:
            head = (item.artifact, item.backend, item.status)
            if item.skipped is not None:
                rows.append((*head, item.skipped))
            rows.extend(
                (
                    *head,
                    difference.output,
                    f"{difference.max_abs:.2e}",
                    f"{difference.max_relative:.2e}",
                    f"{item.tolerance:g}",
                    f"{difference.required_tolerance:g}",
                    f"{difference.min_cosine:.8f}",
                    "" if difference.top1_agreement is None else f"{difference.top1_agreement:.2%}",
                )
                for difference in item.differences
            )
        kind = "synthetic images" if result.synthetic else "images"
        columns = ("artifact", "backend", "status", "output", "max abs", "max relative", "tolerance", "would pass at",
                   "min cosine", "top-1 agreement")  # fmt: skip
        print_table(f"{result.bundle} against the reference, {result.images} {kind}: {result.status}", columns, rows)
    sys.exit(EXIT_CODES[result.status])
