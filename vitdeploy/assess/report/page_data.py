"""Headline figures and small tables of the HTML page."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from vitdeploy.assess.report.report import value_text
from vitdeploy.exporters.naming.layer_names import readable_name

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vitdeploy.assess.benchmark.result import Benchmark
    from vitdeploy.assess.benchmark.scenarios.results import Measured, ScenarioBenchmark
    from vitdeploy.assess.evaluate.evaluate import Evaluation
    from vitdeploy.assess.metrics.accuracy import Accuracy, Predictions
    from vitdeploy.assess.metrics.latency import Latency
    from vitdeploy.assess.report.report import Report

MATRIX_CLASSES = 25  # larger confusion matrices are unreadable, and grow with the square
MOST_PAIRS = 30
MOST_LAYERS = 10  # visible rows of the sensitivity table; the others are folded
MOST_CLASSES = 50  # rows of a table with more than twice as many classes


class Headline(NamedTuple):
    """A figure that stands out at the top."""

    label: str
    value: str
    note: str


class Cell(NamedTuple):
    """Number of a label's images with a class as top-1, and their share of the label's images."""

    images: int
    share: float


class Confusion(NamedTuple):
    """The most frequent class confusions, for backends with equal ones.

    With too many classes, the matrix (`classes` and `rows`) is empty. `pairs` are label, other class and image count,
    the most frequent first; `left_out` counts the remaining pairs.
    """

    names: tuple[str, ...]
    classes: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    pairs: tuple[tuple[str, str, int], ...]
    left_out: int


class Classes(NamedTuple):
    """Accuracies by class: all of them, or the `len(rows)` least accurate of `total`."""

    rows: tuple[tuple[str, tuple[Accuracy, ...]], ...]
    total: int


def statuses(report: Report) -> dict[str, str]:
    """The outcome of each part with a verdict; of a measurement, only if it failed or was skipped.

    A gate's outcome is the page's: other parts are then listed only if they did not pass.
    """
    judged = {"Gate": report.gate, "Comparison": report.comparison, "Layers": report.layers}
    measured = {
        "Sensitivity": report.sensitivity,
        "Accuracy": report.evaluation,
        "Embeddings": report.embeddings,
        "Latency": report.benchmark,
        "Load": report.load,
        "Tuning": report.tuning,
    }
    found = {name: part.status for name, part in (judged | measured).items() if part is not None}
    verdicts = ("Gate",) if report.gate is not None else tuple(judged)
    return {name: status for name, status in found.items() if name in verdicts or status != "passed"}


def headlines(report: Report) -> list[Headline]:
    """A few figures of each part."""
    return [
        *_of_gate(report),
        *_of_comparison(report),
        *_of_layers(report),
        *_of_sensitivity(report),
        *_of_accuracy(report),
        *_of_embeddings(report),
        *_of_latency(report),
        *_of_load(report),
        *_of_tuning(report),
    ]


def settings(benchmark: Benchmark) -> dict[str, str]:
    """Settings of the measurement as text, with the actual numbers of threads."""
    shown = {name.replace("_", " "): value_text(value) for name, value in benchmark.settings.items()}
    if benchmark.settings.get("threads") == 0:
        default = "default of each backend"
        shown["threads"] = f"{benchmark.threads_text} ({default})" if benchmark.threads_text else default
    return shown


def load_settings(result: ScenarioBenchmark) -> dict[str, str]:
    """Scenario and settings of the measurement as text."""
    values = {**result.scenario.to_dict(), **result.settings}
    shown = {name.replace("_", " "): value_text(value) for name, value in values.items()}
    return {**shown, **{item.name: details(item) for item in result.results}}


def details(latency: Latency | Measured) -> str:
    """Engine and settings that ran, as text."""
    return ", ".join(
        f"{name} {value_text(value)}" for name, value in latency.details.items() if value not in ({}, [], None)
    )


def confusions(evaluation: Evaluation) -> list[Confusion]:
    """Confusions, one entry for all backends with equal ones."""
    alike: dict[object, list[Predictions]] = {}
    for result in evaluation.results:
        if result.skipped is None:
            correct = tuple(accuracy.correct for accuracy in evaluation.per_class(result).values())
            alike.setdefault((tuple(evaluation.confused(result)), correct), []).append(result)
    return [_confusion(evaluation, results) for results in alike.values()]


def least_accurate(evaluation: Evaluation) -> Classes:
    """Every class, in the model's order; of very many, those with the lowest accuracy on any backend."""
    ran = [evaluation.per_class(result) for result in evaluation.results if result.skipped is None]
    rows = [(name, tuple(of_backend[name] for of_backend in ran)) for name in ran[0]]
    if len(rows) > 2 * MOST_CLASSES:
        lowest = sorted(rows, key=lambda row: min(accuracy.value for accuracy in row[1]))
        return Classes(tuple(lowest[:MOST_CLASSES]), len(rows))
    return Classes(tuple(rows), len(rows))


def _confusion(evaluation: Evaluation, results: list[Predictions]) -> Confusion:
    names = tuple(f"{result.artifact} on {result.backend}" for result in results)
    pairs = evaluation.confused(results[0])
    if len(evaluation.labels) > MATRIX_CLASSES:
        return Confusion(names, (), (), tuple(pairs[:MOST_PAIRS]), max(0, len(pairs) - MOST_PAIRS))
    counts = evaluation.confusion(results[0]).tolist()
    rows = tuple(tuple(Cell(count, count / (sum(row) or 1)) for count in row) for row in counts)
    return Confusion(names, evaluation.class_names, rows, tuple(pairs), 0)


def _of_gate(report: Report) -> Iterator[Headline]:
    if report.gate is not None:
        checks = report.gate.checks
        titles = {"failed": "Checks that failed", "new": "Not in the baseline", "skipped": "Checks skipped"}
        for status, title in titles.items():
            names = [f"{check.rule} of {check.subject}" for check in checks if check.status == status]
            if names:
                more = f" and {len(names) - 2} more" if len(names) > 2 else ""
                yield Headline(title, f"{len(names)} of {len(checks)}", ", ".join(names[:2]) + more)
        if report.gate.status == "passed":
            yield Headline("Checks passed", f"{len(checks)} of {len(checks)}", "none failed or was skipped")


def _of_comparison(report: Report) -> Iterator[Headline]:
    for result in report.comparison.results if report.comparison else ():
        for item in result.differences:
            allowed = f"of the largest value of {item.output}; {result.tolerance:g} is allowed"
            yield Headline(
                f"{result.artifact} on {result.backend}, largest difference", _exponential(item.max_relative), allowed
            )
            if item.top1_agreement is not None:
                agreement = f"{item.top1_agreement:.2%}"
                yield Headline(
                    f"{result.artifact} on {result.backend}, same best class", agreement, f"of {item.count} images"
                )


def _of_layers(report: Report) -> Iterator[Headline]:
    for result in report.layers.results if report.layers else ():
        if result.parts:
            worst = max(result.parts, key=lambda part: part.worst.required_tolerance)
            largest = f"{_exponential(worst.worst.max_relative)}, of {readable_name(worst.part)}"
            note = f"{result.tolerance:g} is allowed; the largest is {largest}"
            yield Headline(f"{result.artifact}, first part that diverges", readable_name(result.first or "none"), note)


def _of_sensitivity(report: Report) -> Iterator[Headline]:
    sensitivity = report.sensitivity
    if sensitivity is not None:
        first = sensitivity.ranked[0]
        error = _exponential(sensitivity.error)
        note = f"relative error with it alone in {sensitivity.precision}; {error} with all layers"
        yield Headline(f"{first.layer}: the most sensitive layer", _exponential(first.error), note)


def _of_accuracy(report: Report) -> Iterator[Headline]:
    evaluation = report.evaluation
    for result in evaluation.results if evaluation else ():
        if evaluation is not None and result.skipped is None:
            accuracy = evaluation.top1(result)
            note = f"{accuracy.correct} of {accuracy.total} images"
            yield Headline(f"{result.artifact} on {result.backend}, accuracy", f"{accuracy.value:.2%}", note)


def _of_embeddings(report: Report) -> Iterator[Headline]:
    evaluation = report.embeddings
    for result in evaluation.results if evaluation else ():
        if evaluation is not None and result.skipped is None:
            accuracy = evaluation.knn(result)
            note = f"{accuracy.correct} of {accuracy.total} images, k = {evaluation.neighbours}"
            yield Headline(f"{result.artifact} on {result.backend}, kNN accuracy", f"{accuracy.value:.2%}", note)


def _of_latency(report: Report) -> Iterator[Headline]:
    latencies = report.benchmark.latencies if report.benchmark else ()
    for first in latencies[:1]:
        same_batch = [latency for latency in latencies if latency.load == first.load]
        fastest = max(same_batch, key=lambda latency: latency.images_per_second)
        note = "the fastest" if fastest is first else fastest.ratio(first).against(first.name)
        yield Headline(f"{fastest.name}, batch {first.load_text}", f"{fastest.p50_ms:.3g} ms", note)


def _of_load(report: Report) -> Iterator[Headline]:
    for result in report.load.results if report.load else ():
        yield Headline(f"{result.name}, {result.measures}", *result.figure)


def _of_tuning(report: Report) -> Iterator[Headline]:
    tuning = report.tuning
    if tuning is not None and tuning.chosen is not None and tuning.chosen.ms is not None:
        chosen, ms = tuning.chosen, tuning.chosen.ms
        yield Headline("Fastest within the bound", f"{ms.estimate:.3g} ms", f"an image, {chosen}")
    if tuning is not None and tuning.gain is not None:
        gain, low, high = tuning.gain
        yield Headline("Time of the choice", f"{gain:.2f}", f"({low:.2f} to {high:.2f}) of that of {tuning.usual}")


def _exponential(value: float) -> str:
    """A difference in two digits, as words if it is not a number."""
    return f"{value:.1e}" if math.isfinite(value) else "not finite"
