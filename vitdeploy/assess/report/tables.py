"""Result tables, for a terminal and for a CI job's summary."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from vitdeploy.assess.benchmark.scenarios.results import ScenarioBenchmark
from vitdeploy.assess.debug.sensitivity import Sensitivity
from vitdeploy.assess.evaluate.evaluate import Evaluation
from vitdeploy.assess.metrics.latency import Benchmark
from vitdeploy.assess.report.load_table import load_columns, load_row

if TYPE_CHECKING:
    from vitdeploy.assess.metrics.accuracy import Predictions
    from vitdeploy.assess.metrics.latency import Latency


class Table(NamedTuple):
    """A table with the most important columns first.

    The title may be ""; a row has at most one cell per column; `notes`, such as a skip reason, are shown below it.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()


Measured: TypeAlias = Evaluation | Benchmark | ScenarioBenchmark | Sensitivity


@functools.singledispatch
def tables(_result: Any) -> tuple[Table, ...]:
    """Tables of a measurement; empty for a result with an outcome, whose checks are shown instead."""
    return ()


@tables.register
def _of_evaluation(result: Evaluation) -> tuple[Table, ...]:
    """A row per backend."""
    columns = (
        "artifact",
        "backend",
        "top-1 (95 % interval)",
        "top-5",
        "agrees with the reference",
        "not finite",
        "ECE",
    )
    rows = tuple(_accuracies(result, run) for run in result.results)
    skipped = [run for run in result.results if run.skipped is not None]
    return (Table("", columns, rows, tuple(f"{run.name.strip()} was skipped: {run.skipped}" for run in skipped)),)


@tables.register
def _of_benchmark(result: Benchmark) -> tuple[Table, ...]:
    """A row per backend and batch size, with notes on skipped ones and on threads."""
    first = {latency.load: latency for latency in reversed(result.latencies)}
    columns = ("backend", "batch", "p50 ms", "p99 ms", "images/s", "speed (time / the first's, 95 % interval)",
               "p90 ms",
               "from image files, p50 ms", "load ms", "first run ms", "peak MB", "steady")  # fmt: skip
    rows = tuple(_latency(latency, first[latency.load]) for latency in result.latencies)
    notes = [
        f"{timed.name} at batch size {timed.load_text} was not steady when its timing began"
        for timed in result.latencies
        if not timed.steady
    ]
    for item in result.skipped:
        size = "" if item.batch_size is None else f" at batch size {item.load_text}"
        notes.append(f"{item.name}{size} was not measured: {item.reason}")
    counts = {timed.name: timed.threads for timed in result.latencies if timed.threads is not None}
    threads = tuple((name, str(used.count), used.reason) for name, used in counts.items())
    title = f"Threads: {result.note}" if result.note else "Threads"
    started = (Table(title, ("backend", "threads", "why"), threads),) if threads else ()
    return (Table("", columns, rows, tuple(notes)), *started)


@tables.register
def _of_scenario(result: ScenarioBenchmark) -> tuple[Table, ...]:
    """A row per setting and batch size, with notes on the method and on what did not pass."""
    return (Table("", load_columns(result), tuple(map(load_row, result.results)), result.notes),)


@tables.register
def _of_sensitivity(result: Sensitivity) -> tuple[Table, ...]:
    """A row per layer, the most sensitive first."""
    columns = ("layer, as --keep-fp32 takes it", "operator", "relative error")
    rows = tuple((layer.layer, layer.op_type, f"{layer.error:.2e}") for layer in result.ranked)
    return (Table(result.summary, columns, rows),)


def _accuracies(result: Evaluation, predictions: Predictions) -> tuple[str, ...]:
    head = (predictions.artifact, predictions.name.strip())
    if predictions.skipped is not None:
        return (*head, "skipped")
    reference = result.reference
    return (
        *head,
        str(result.top1(predictions)),
        f"{result.top5(predictions).value:.2%}",
        "" if reference is None else f"{result.agreement(predictions, reference).value:.2%}",
        str(predictions.not_finite),
        f"{result.calibration(predictions).ece:.4f}",
    )


def _latency(latency: Latency, first: Latency) -> tuple[str, ...]:
    ratio = latency.ratio(first)
    return (
        latency.name,
        latency.load_text,
        *(f"{latency.percentile_ms(percent):.3f}" for percent in (50, 99)),
        f"{latency.images_per_second:,.0f}",
        "first" if latency is first else f"{ratio.words} ({ratio})",
        f"{latency.percentile_ms(90):.3f}",
        f"{latency.image_percentile_ms(50):.3f}" if latency.image_rounds_ms else "",
        "" if latency.load_ms is None else f"{latency.load_ms:.0f}",
        "" if latency.first_ms is None else f"{latency.first_ms:.1f}",
        "" if latency.peak_memory_bytes is None else f"{latency.peak_memory_bytes / 1e6:.0f}",
        "yes" if latency.steady else "no",
    )
