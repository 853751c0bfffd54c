"""`vitdeploy demo`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vitdeploy.cli.command import command, option
from vitdeploy.cli.output import (
    PATH,
    json_option,
    print_json,
    print_left_out,
    print_table,
    print_tables,
    print_text,
)
from vitdeploy.cli.process import conclude
from vitdeploy.cli.progress import CommandProgress
from vitdeploy.cli.table import details_option

if TYPE_CHECKING:
    from vitdeploy.demo import DemoResult


@command(examples=("demo", "demo -o demo-output --json"))
@option("-o", "--output", default="demo-output", show_default=True, type=PATH, help="Output folder.")
@details_option
@json_option
def demo(output: str, as_json: bool) -> None:
    """Export the embedded model to ONNX, validate and time it, and write an HTML report.

    Writes OUTPUT/bundle, OUTPUT/images (450 labelled images) and OUTPUT/report.html. Exits with 1 if the artifact
    differs from the reference by more than the tolerance, and with 3 if a backend could not run.
    """
    from vitdeploy.demo import run_demo

    with CommandProgress("images") as progress:
        result = run_demo(output, progress=progress)

    conclude(result.comparison.status, lambda: print_json(result.to_dict()) if as_json else _print_demo(result))


def _print_demo(result: DemoResult) -> None:
    from vitdeploy.assess.report.tables import tables

    comparison = result.comparison
    rows = [
        (item.artifact, item.backend, item.status, output.output, f"{output.max_relative:.2e}", f"{item.tolerance:g}")
        for item in comparison.results
        for output in item.differences
    ]
    columns = ("artifact", "backend", "status", "output", "max relative", "tolerance")
    print_table(f"Against the reference, on {comparison.images} images: {comparison.status}", columns, rows)
    for heading, examples in result.report.examples.items():
        lines = [
            (image.image, image.expected, *(f"{best.label} {best.score:.1%}" for best in image.predictions.values()))
            for image in examples
        ]
        print_table(f"\n{heading}", ("image", "class", *examples[0].predictions), lines)
    print_tables("\nAccuracy on the same images", tables(result.evaluation))
    print_left_out(result.evaluation.left_out)
    print_tables("\nLatency of the runtime", tables(result.benchmark))
    print_text(f"\nBundle: {result.bundle}\nReport: {result.path}\nDone in {result.seconds:.0f} s.")
