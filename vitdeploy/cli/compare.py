"""`vitdeploy compare`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from vitdeploy.cli.command import Command, option
from vitdeploy.cli.number_options import BATCH_SIZE, TOLERANCE
from vitdeploy.cli.output import (
    PATH,
    backends_option,
    device_option,
    image_limit_option,
    json_option,
    print_table,
    print_text,
)
from vitdeploy.cli.progress import CommandProgress
from vitdeploy.cli.reports import conclude_with, report_options
from vitdeploy.cli.table import by_reason, details_option
from vitdeploy.errors import UsageError, typed_line

if TYPE_CHECKING:
    from vitdeploy.assess.compare.results import Comparison
    from vitdeploy.assess.metrics.features import Nearness
    from vitdeploy.cli.reports import Reports


class _Compare(Command):
    """The command; answers flags of former versions with the replacing command."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        for name in ("layers", "bisect", "sensitivity"):
            if f"--{name}" in (arg.partition("=")[0] for arg in args):
                words = args[:1] if not args[0].startswith("-") else ["BUNDLE"]
                hint = f"use: {typed_line(f'debug {name}', *words)}"
                raise UsageError(f"compare has no --{name}", what=f"--{name}", hint=hint)
        return super().parse_args(ctx, args)


@click.command(
    cls=_Compare,
    examples=("compare vit", "compare vit --images photos --html compare.html", "compare vit --golden golden.npz"),
)
@click.argument("bundle", type=PATH)
@option("--images", type=PATH, help="Image folder. Default: synthetic images.")
@option("--tolerance", type=TOLERANCE, help="Largest difference, relative to each output's largest value.")
@option("--batch-size", default=8, show_default=True, type=BATCH_SIZE, help="Images per batch.")
@backends_option("Default: every artifact.")
@device_option
@option("--save-golden", type=PATH, help="Also write the reference's outputs to this file.")
@option("--golden", type=PATH, help="Compare with the outputs in this file; needs no torch.")
@report_options("html", "markdown", "junit")
@image_limit_option
@details_option
@json_option
def compare(bundle: str, reports: Reports, as_json: bool, **options: Any) -> None:
    """Compare every artifact of BUNDLE with the reference, on the same processed images.

    An int8 or fp8 artifact of a model without classes is judged by cosine similarity and nearest neighbours, unless
    --tolerance is given; others by the largest difference.

    Exits with 1 if an artifact differs too much, and with 3 if one could not run. `vitdeploy debug` finds the layers
    that cause the difference.
    """
    from vitdeploy.assess.compare.compare import compare as compare_bundle

    with CommandProgress("images") as progress:
        result = compare_bundle(bundle, progress=progress, **options)
    conclude_with(result, _print_comparison, as_json, reports)


def _print_comparison(result: Comparison) -> None:
    rows: list[tuple[str, ...]] = []
    notes: list[tuple[str, str]] = []
    for item in result.results:
        head, name = (item.artifact, item.backend, item.status), f"{item.artifact} on {item.backend}"
        if item.skipped is not None:
            notes.append((name, f"skipped: {item.skipped}"))
        if item.not_finite:
            images_named = ", ".join(map(str, item.not_finite[:5])) + (" ..." if len(item.not_finite) > 5 else "")
            notes.append((name, f"NaN or infinite for images {images_named}, counted from 0"))
        if not item.differences:
            rows.append(head)
        rows.extend(
            (
                *head,
                difference.output,
                f"{difference.max_relative:.2e}",
                f"{item.tolerance:g}" if item.cosine_bound is None else "by cosine",
                f"{difference.max_abs:.2e}",
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
    columns = ("artifact", "backend", "status", "output", "max relative", "tolerance", "max abs", "would pass at",
               "min cosine", "PSNR dB", "top-1 agreement", "flips + low margin", "KL")  # fmt: skip
    print_table(
        f"{result.bundle} against the reference, {result.images_text}: {result.status}",
        columns,
        rows,
        by_reason(notes),
    )
    if result.note:
        print_text(result.note)
    near = [(item, nearness) for item in result.results for nearness in item.nearness]
    if near:
        names = ("artifact", "backend", "vector", "mean cosine", "5th percentile", "nearest neighbour kept", "lowest")
        figures = [(item.artifact, item.backend, *_near(nearness)) for item, nearness in near]
        print_table("vectors against the reference's", names, figures)
        for item in result.results:
            if item.skipped is None:
                print_text(f"{item.artifact} on {item.backend} is judged by: {item.judged_by}")


def _near(vector: Nearness) -> tuple[str, ...]:
    mean, p5, lowest = (f"{value:.6f}" for value in (vector.mean_cosine, vector.p5_cosine, vector.min_cosine))
    kept = vector.neighbour_agreement
    return vector.output, mean, p5, "" if kept is None else f"{kept:.2%}", lowest
