"""`vitdeploy benchmark`."""

from __future__ import annotations

import re
from typing import Any

import click

from vitdeploy.cli.command import command, option
from vitdeploy.cli.number_options import TURNS, ParamType
from vitdeploy.cli.output import (
    PATH,
    backends_option,
    device_option,
    image_limit_option,
    json_option,
    measured_title,
    print_tables,
)
from vitdeploy.cli.progress import CommandProgress
from vitdeploy.cli.reports import Reports, conclude_with, report_options
from vitdeploy.cli.table import details_option
from vitdeploy.system.cpu import MOST_THREADS


class BatchSizes(ParamType[tuple[int, ...]]):
    """Comma-separated integers of at most nine digits, from 1 up."""

    name = "N,N,..."

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        parts = str(value).split(",")
        if not all(re.fullmatch("0*[1-9][0-9]{0,8}", part.strip()) for part in parts):
            self.fail(f"{value!r:.80} is not a list of batch sizes such as 1,8,32", param, ctx)
        return tuple(int(part) for part in parts)


@command(
    examples=(
        "benchmark vit",
        "benchmark vit --backend onnxruntime --batch-sizes 1,8,32 --threads 4",
        "benchmark vit --images photos --markdown times.md",
    )
)
@click.argument("bundle", type=PATH)
@option("--batch-sizes", default="1,8", show_default=True, type=BatchSizes(), help="Batch sizes.")
@backends_option("Default: the reference (torch) and every artifact.")
@device_option
@option(
    "--threads",
    default=0,
    type=click.IntRange(0, MOST_THREADS),
    help="Threads of each backend. Default (0): OMP_NUM_THREADS for torch, ORT_INTRA_OP_NUM_THREADS for ONNX "
    "Runtime; if unset, as many as CPU affinity, cgroup quota and cores allow.",
)
@option("--images", type=PATH, help="Image folder. Default: synthetic JPEG files.")
@option("--rounds", default=10, show_default=True, type=TURNS, help="Rounds of each backend.")
@option("--runs", default=10, show_default=True, type=TURNS, help="Timed runs per round.")
@report_options("html", "markdown")
@image_limit_option
@details_option
@json_option
def benchmark(bundle: str, reports: Reports, as_json: bool, **options: Any) -> None:
    """Time every artifact of BUNDLE and the reference, in turns, each in its own process.

    Percentiles are latencies of the runtime on preprocessed images. Latency from image files is measured separately.
    Exits with 1 if a model returns NaN or infinite values, and with 3 if another measurement failed.
    """
    from vitdeploy.assess.benchmark.benchmark import benchmark as benchmark_bundle
    from vitdeploy.assess.report.tables import tables

    with CommandProgress("rounds") as progress:
        result = benchmark_bundle(bundle, progress=progress, **options)

    def print_result(_: object) -> None:
        title = f"{result.bundle} on {result.settings['device']}, ready input unless it says from image files"
        print_tables(measured_title(title, result.status), tables(result))

    conclude_with(result, print_result, as_json, reports)
