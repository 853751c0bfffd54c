"""Result tables, for a terminal and for a CI job's summary."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from vitdeploy.assess.benchmark.comparison import BenchmarkComparison
from vitdeploy.assess.benchmark.result import Benchmark
from vitdeploy.assess.benchmark.scenarios.results import ScenarioBenchmark
from vitdeploy.assess.benchmark.tuning import Tuning
from vitdeploy.assess.debug.sensitivity import Sensitivity
from vitdeploy.assess.evaluate.embeddings import EmbeddingEvaluation
from vitdeploy.assess.evaluate.evaluate import Evaluation
from vitdeploy.assess.metrics.latency import PERCENTILES
from vitdeploy.assess.metrics.neighbours import RECALLS
from vitdeploy.assess.report.load_table import load_columns, load_row

if TYPE_CHECKING:
    from vitdeploy.assess.benchmark.tuning import Candidate, TimedSetting
    from vitdeploy.assess.evaluate.embedding_run import Neighbours
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


_OPTIONAL = (
    "accuracy",
    "Pareto front",
    "p99.9 ms",
    "without transfers, p50 ms",
    "GPU MB",
)  # absent if no setting has it
_AFTER_ACCURACY = ("p99 ms", "images/s")  # a table has six columns without --details
_COLUMNS = (
    "backend", "batch", "p50 ms", "p99 ms", "images/s", "speed (time / the first's, 95 % interval)", "accuracy",
    "Pareto front", "p90 ms", "p95 ms", "p99.9 ms", "from image files, p50 ms", "without transfers, p50 ms",
    "load ms", "first run ms", "peak MB", "GPU MB", "steady",
)  # fmt: skip

Measured: TypeAlias = (
    Evaluation | EmbeddingEvaluation | Benchmark | BenchmarkComparison | ScenarioBenchmark | Sensitivity | Tuning
)


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
def _of_embeddings(result: EmbeddingEvaluation) -> tuple[Table, ...]:
    """A row per backend."""
    columns = (
        "artifact",
        "backend",
        f"kNN, k = {result.neighbours} (95 % interval)",
        *(f"recall@{count}" for count in RECALLS),
        "agrees with the reference",
        "not finite",
    )
    rows = tuple(_retrievals(result, run) for run in result.results)
    notes = [f"{run.name.strip()} was skipped: {run.skipped}" for run in result.results if run.skipped is not None]
    return (Table("", columns, rows, (*notes, *result.notes)),)


@tables.register
def _of_benchmark(result: Benchmark) -> tuple[Table, ...]:
    """A row per backend and batch size, with notes on skipped ones and on threads."""
    first = {latency.load: latency for latency in reversed(result.latencies)}
    rows = [
        _latency(latency, first[latency.load], in_front=any(latency is item for item in result.front))
        for latency in result.latencies
    ]
    order = sorted(_COLUMNS, key=_AFTER_ACCURACY.__contains__) if result.front else _COLUMNS
    columns = [name for name in order if name not in _OPTIONAL or any(row[name] for row in rows)]
    notes = [
        f"{timed.name} at batch size {timed.load_text} was not steady when its timing began"
        for timed in result.latencies
        if not timed.steady
    ]
    for item in result.skipped:
        size = "" if item.batch_size is None else f" at batch size {item.load_text}"
        notes.append(f"{item.name}{size} was not measured: {item.reason}")
    notes += result.notes
    counts = {timed.name: timed.threads for timed in result.latencies if timed.threads is not None}
    threads = tuple((name, str(used.count), used.reason) for name, used in counts.items())
    title = f"Threads: {result.note}" if result.note else "Threads"
    started = (Table(title, ("backend", "threads", "why"), threads),) if threads else ()
    cells = tuple(tuple(row[name] for name in columns) for row in rows)
    return (Table("", tuple(columns), cells, tuple(notes)), *started)


@tables.register
def _of_benchmark_comparison(result: BenchmarkComparison) -> tuple[Table, ...]:
    """A row per setting and load, and a table of the differences between machines, versions and settings."""
    columns = ("backend", "batch", "before ms", "after ms", "after / before (95 % interval)", "verdict")
    rows = tuple(
        (change.key.name, change.key.load_text, f"{change.before_ms.estimate:.3f}", f"{change.after_ms.estimate:.3f}",
         str(change.ratio), change.verdict)
        for change in result.changes_by_setting
    )  # fmt: skip
    checks = [check for check in result.check_results if check.status != "passed"]
    failed = tuple(f"{check.status}: {check.subject} is {check.message}" for check in checks)
    different = tuple((change,) for change in result.changes)
    differences = (Table("", ("differences between the two",), different),) if different else ()
    return (Table("", columns, rows, (*failed, *result.only_in_one, *result.notes)), *differences)


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


@tables.register
def _of_tuning(result: Tuning) -> tuple[Table, ...]:
    """A row per setting, the chosen one first; and a row per candidate."""
    timed = Table(
        "",
        ("artifact", "backend", "options", "batch", "ms an image", "time / the fastest's", "status", "95 % interval",
         "images/s", "p99 ms a run", "preprocessed, ms an image", "runs", "Pareto front", "reason"),
        tuple(map(_timed, result.timed)),
        result.notes,
    )  # fmt: skip
    candidates = Table(
        f"Candidates: {result.settings['accuracy']} on {result.data['held_out_images']} held-out images",
        ("artifact", "backend", "bound", "accuracy", "95 % interval", "MB", "required", "reason"),
        tuple(map(_candidate, result.candidates)),
        tuple(f"{item.variant}: {item.reason}" for item in result.candidates if item.status == "not made"),
    )
    return (timed, candidates) if result.timed else (candidates,)


def _timed(row: TimedSetting) -> tuple[str, ...]:
    head = (row.variant, row.backend, row.options_text, str(row.batch_size))
    if row.ms is None:
        return (*head, "", "", row.status, *[""] * 6, row.reason or "")
    low, high = row.ms.to_list()
    return (
        *head,
        f"{row.ms.estimate:.3f}",
        "" if row.ratio is None else f"{row.ratio.estimate:.2f}",
        row.status,
        "" if low is None or high is None else f"{low:.3f} to {high:.3f}",
        f"{row.images_per_second:,.1f}",
        f"{row.p99_ms:.3f}",
        f"{row.ready_ms:.3f}",
        str(row.runs),
        "yes" if row.front else "",
        row.reason or "",
    )


def _candidate(item: Candidate) -> tuple[str, ...]:
    accuracy = item.accuracy
    size = "" if item.size_bytes is None else f"{item.size_bytes / 1e6:.1f}"
    figures = ("", "", size, "")
    if accuracy is not None:
        interval = f"{accuracy.low:.4f} to {accuracy.high:.4f}"
        figures = (f"{accuracy.value:.4f}", interval, size, f"{accuracy.required:.4f}")
    return (item.variant, item.backend, item.status, *figures, item.reason or "")


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


def _retrievals(result: EmbeddingEvaluation, run: Neighbours) -> tuple[str, ...]:
    head = (run.artifact, run.name.strip())
    if run.skipped is not None:
        return (*head, "skipped")
    reference = result.reference
    return (
        *head,
        str(result.knn(run)),
        *(f"{result.recall(run, count).value:.2%}" for count in RECALLS),
        "" if reference is None else f"{result.agreement(run, reference).value:.2%}",
        str(run.not_finite),
    )


def _latency(latency: Latency, first: Latency, *, in_front: bool) -> dict[str, str]:
    """Cells by column."""
    ratio = latency.ratio(first)
    percentiles = {percent: _number(latency.percentile_ms(percent)) for percent in PERCENTILES}
    cells = (
        latency.name,
        latency.load_text,
        percentiles[50],
        percentiles[99],
        f"{latency.images_per_second:,.0f}",
        "first" if latency is first else f"{ratio.words} ({ratio})",
        "" if latency.quality is None else str(latency.quality),
        "yes" if in_front else "",
        percentiles[90],
        percentiles[95],
        percentiles[99.9],
        _number(latency.image_p50_ms if latency.image_rounds_ms else None),
        _number(latency.device_p50_ms),
        _number(latency.load_ms, digits=0),
        _number(latency.first_ms, digits=1),
        _number(latency.peak_memory_bytes, 1e6, digits=0),
        _number(latency.gpu_memory_bytes, 1e6, digits=0),
        "yes" if latency.steady else "no",
    )
    return dict(zip(_COLUMNS, cells, strict=True))


def _number(value: float | None, unit: float = 1, *, digits: int = 3) -> str:
    return "" if value is None else f"{value / unit:.{digits}f}"
