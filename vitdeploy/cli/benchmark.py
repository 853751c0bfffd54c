"""`vitdeploy benchmark`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from vitdeploy.cli.output import EXIT_CODES, json_option, print_json, print_step, print_table

if TYPE_CHECKING:
    from vitdeploy.assess.latency import Benchmark, Latency


class BatchSizes(click.ParamType[tuple[int, ...]]):
    """Whole numbers from 1 up with commas between them."""

    name = "N,N,..."

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        parts = str(value).split(",")
        if not all(part.strip().isascii() and part.strip().isdigit() and int(part) > 0 for part in parts):
            self.fail(f"{value!r} must be whole numbers from 1 up with commas between them, such as 1,8,32", param, ctx)
        return tuple(int(part) for part in parts)


@click.command()
@click.argument("bundle", type=click.Path())
@click.option("--batch-sizes", default="1,8", show_default=True, type=BatchSizes(), help="Images a run.")
@click.option(
    "--backend", "backends", multiple=True, metavar="NAME[:PRECISION]",
    help="Such as onnxruntime:fp16; may be repeated. By default the reference (torch) and every artifact.",
)  # fmt: skip
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda or cuda:1.")
@click.option("--threads", default=0, type=click.IntRange(min=0), help="Of each backend; its own choice by default.")
@click.option("--images", type=click.Path(), help="A folder of images; synthetic JPEG files by default.")
@click.option("--rounds", default=10, show_default=True, type=click.IntRange(min=1), help="Turns of each backend.")
@click.option("--runs", default=10, show_default=True, type=click.IntRange(min=1), help="Timed runs a turn.")
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
    as_json: bool,
) -> None:
    """Time every artifact of BUNDLE and the reference, in turns, each alone in its process.

    The percentiles are of the runtime on ready input; the time from image files stands beside them. Exits with 3 if
    something could not be measured.
    """
    from vitdeploy.assess.benchmark import benchmark as benchmark_bundle

    result = benchmark_bundle(
        bundle, batch_sizes=batch_sizes, backends=backends or None, device=device, threads=threads, images=images,
        rounds=rounds, runs=runs, on_step=print_step,
    )  # fmt: skip
    if as_json:
        print_json(result.to_dict())
    else:
        _print(result)
    sys.exit(EXIT_CODES[result.status])


def _print(result: Benchmark) -> None:
    first = {latency.batch_size: latency for latency in reversed(result.latencies)}
    columns = ("backend", "batch", "p50 ms", "p90 ms", "p99 ms", "images/s", "time / the first's (quartiles)",
               "from image files, p50 ms", "load ms", "first run ms", "peak MB", "steady")  # fmt: skip
    rows = [_row(latency, first[latency.batch_size]) for latency in result.latencies]
    title = f"{result.bundle} on {result.settings['device']}, ready input unless it says from image files"
    print_table(f"{title}: {result.status}", columns, rows)
    if result.skipped:
        skipped = [(f"{each.backend} {each.precision}", str(each.batch_size or "all"), each.reason)
                   for each in result.skipped]  # fmt: skip
        print_table("\nNot measured", ("backend", "batch", "why"), skipped)


def _row(latency: Latency, first: Latency) -> tuple[str, ...]:
    ratio = latency.ratio(first)
    return (
        latency.name,
        str(latency.batch_size),
        *(f"{latency.percentile_ms(percent):.3f}" for percent in (50, 90, 99)),
        f"{latency.images_per_second:,.0f}",
        "1" if latency is first else f"{ratio.median:.3f} ({ratio.low:.3f} to {ratio.high:.3f})",
        f"{latency.image_percentile_ms(50):.3f}",
        "" if latency.load_ms is None else f"{latency.load_ms:.0f}",
        "" if latency.first_ms is None else f"{latency.first_ms:.1f}",
        "" if latency.peak_memory_bytes is None else f"{latency.peak_memory_bytes / 1e6:.0f}",
        "yes" if latency.steady else "no",
    )
