"""`vitdeploy benchmark`."""

from __future__ import annotations

import re

import click

from vitdeploy.cli.number_options import TURNS, ParamType
from vitdeploy.cli.output import (
    PATH,
    TerminalProgress,
    device_option,
    image_limit_option,
    json_option,
    print_json,
    print_left_out,
    print_tables,
)
from vitdeploy.cli.process import conclude
from vitdeploy.cli.reports import Reports, report_options
from vitdeploy.system.cpu import MOST_THREADS


class BatchSizes(ParamType[tuple[int, ...]]):
    """Whole numbers of at most nine digits, from 1 up, with commas between them."""

    name = "N,N,..."

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        parts = str(value).split(",")
        if not all(re.fullmatch("0*[1-9][0-9]{0,8}", part.strip()) for part in parts):
            self.fail(
                f"{value!r:.80} must be whole numbers from 1 up with commas between them, such as 1,8,32", param, ctx
            )
        return tuple(int(part) for part in parts)


@click.command()
@click.argument("bundle", type=PATH)
@click.option("--batch-sizes", default="1,8", show_default=True, type=BatchSizes(), help="Images a run.")
@click.option(
    "--backend", "backends", multiple=True, metavar="NAME[:PRECISION]",
    help="Such as onnxruntime:fp16; may be repeated. By default the reference (torch) and every artifact.",
)  # fmt: skip
@device_option
@click.option(
    "--threads",
    default=0,
    type=click.IntRange(0, MOST_THREADS),
    help="Threads of each backend. Default (0): OMP_NUM_THREADS for torch and ORT_INTRA_OP_NUM_THREADS for ONNX "
    "Runtime; where they are not set, as many as the CPU affinity, the cgroup quota and the cores allow.",
)
@click.option("--images", type=PATH, help="A folder of images; synthetic JPEG files by default.")
@click.option("--rounds", default=10, show_default=True, type=TURNS, help="Turns of each backend.")
@click.option("--runs", default=10, show_default=True, type=TURNS, help="Timed runs a turn.")
@report_options("html", "markdown")
@image_limit_option
@json_option
def benchmark(
    bundle: str,
    batch_sizes: tuple[int, ...],
    backends: tuple[str, ...],
    device: str,
    threads: int,
    images: str | None,
    rounds: int,
    runs: int,
    reports: Reports,
    as_json: bool,
) -> None:
    """Time every artifact of BUNDLE and the reference, in turns, each alone in its process.

    The percentiles are of the runtime on ready input; the time from image files stands beside them. Exits with 1 if
    a model gives NaN or infinite values, with 3 if something else could not be measured.
    """
    from vitdeploy.assess.benchmark.benchmark import benchmark as benchmark_bundle
    from vitdeploy.assess.report.tables import tables

    result = benchmark_bundle(
        bundle, batch_sizes=batch_sizes, backends=backends or None, device=device, threads=threads, images=images,
        rounds=rounds, runs=runs, progress=TerminalProgress("rounds"),
    )  # fmt: skip

    def show() -> None:
        if as_json:
            print_json(result.to_dict())
        else:
            title = f"{result.bundle} on {result.settings['device']}, ready input unless it says from image files"
            print_tables(f"{title}: {result.status}", tables(result))
            print_left_out(result.left_out)

    conclude(result.status, show, *reports.writers(result))
