"""The table of a scenario: columns and a row per result."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from vitdeploy.assess.benchmark.scenarios.options import OFFLINE, SERVER
from vitdeploy.assess.benchmark.scenarios.results import Measured, OfflineResult, StreamResult
from vitdeploy.assess.benchmark.scenarios.server_result import ServerResult

if TYPE_CHECKING:
    from vitdeploy.assess.benchmark.scenarios.results import ScenarioBenchmark


def load_columns(result: ScenarioBenchmark) -> tuple[str, ...]:
    """The column names, the most important first."""
    scenario = result.scenario
    if scenario.name == SERVER:
        return ("backend", "queries/s", "not valid at", "p99 ms", "bound ms", "replays that held", "late", "holds",
                "p50 ms", "p90 ms", "queries", "sessions", "load late by, p99 ms")  # fmt: skip
    if scenario.name == OFFLINE:
        return ("backend", "batch", "images/s", "images", "seconds", "sessions")
    percent = f"p{scenario.percent}"
    return ("backend", "images/query", f"{percent} ms", f"95 % interval of {percent}", "p50 ms", "images/s",
            f"{percent} ms, early stopping", "queries", "queries needed")  # fmt: skip


@functools.singledispatch
def load_row(result: Measured) -> tuple[str, ...]:
    """The row of a result, in the order of its columns."""
    raise TypeError(type(result).__name__)


@load_row.register
def _of_stream(result: StreamResult) -> tuple[str, ...]:
    found = result.percentile
    high = "too few queries" if found.high_ms is None else f"{found.high_ms:.3f}"
    return (
        result.name,
        str(result.batch_size),
        f"{found.value_ms:.3f}",
        f"{found.low_ms:.3f} to {high}",
        f"{result.median_ms:.3f}",
        f"{result.images_per_second:,.1f}",
        "too few queries" if found.early_stopping_ms is None else f"{found.early_stopping_ms:.3f}",
        str(found.count),
        str(found.needed),
    )


@load_row.register
def _of_offline(result: OfflineResult) -> tuple[str, ...]:
    return (
        result.name,
        str(result.batch_size),
        f"{result.images_per_second:,.1f}",
        str(result.images),
        f"{result.seconds:.1f}",
        str(result.sessions),
    )


@load_row.register
def _of_server(result: ServerResult) -> tuple[str, ...]:
    return (
        result.name,
        "none" if result.rate is None else f"{result.rate:.4g}",
        "" if result.invalid_rate is None else f"{result.invalid_rate:.4g}",
        f"{result.percentile_ms(99):.2f}",
        f"{result.bound_ms:g}",
        f"{result.held} of {len(result.replays)}",
        f"{result.late_share:.2%}",
        "" if result.holds is None else f"{result.holds:.1%}",
        *(f"{result.percentile_ms(percent):.2f}" for percent in (50, 90)),
        str(len(result.latencies_ms)),
        str(result.sessions),
        f"{result.lateness_ms:.3f}",
    )
