"""Scenarios of load: which queries arrive when, and the figure that is reported."""

from __future__ import annotations

import dataclasses
import math
import numbers
import re
from typing import Any

from vitdeploy.errors import UsageError, shown
from vitdeploy.system.option_fields import check_options, described, option

SINGLE_STREAM, MULTI_STREAM, OFFLINE, SERVER = SCENARIOS = ("single-stream", "multi-stream", "offline", "server")
MLPERF_SECONDS = 600  # MLPerf Inference Rules, section 3, for each scenario
_BATCH_SIZE = 8  # of MLPerf's multi-stream; ours of offline
_LONGEST_S, _HIGHEST_RATE, _MOST_SESSIONS, _MOST_QUERIES = 86_400.0, 1e6, 256, 10**7

_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def read_duration(text: str, what: str, *, unit: str | None = None) -> float:
    """Parse a duration above 0; seconds.

    Args:
        text: A number and its unit: us, ms, s, m or h.
        what: Name of the option.
        unit: Unit of a number without one. Default: such a number is ambiguous.

    Raises:
        UsageError: If it is not a duration, or ambiguous.
    """
    match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{0,9})?|\.[0-9]{1,9})\s*(us|ms|s|m|h)?", text.strip())
    seconds = float(match[1]) * _SECONDS[match[2] or unit or "s"] if match else 0.0
    if match is None or not 0 < seconds < math.inf:
        expected = f"a duration above 0 such as {'50ms' if unit is None else '10s'}"
        raise UsageError(f"{what} takes {expected}, got {shown(text, 80)}", what=what, expected=expected, found=text)
    if match[2] is None and unit is None:
        hint = f"write {match[1]}ms or {match[1]}s"
        raise UsageError(f"{what} {match[1]} has no unit", what=what, found=text, hint=hint)
    return seconds


def _read_rate(text: str) -> float:
    try:
        return float(text)
    except ValueError as exc:
        raise UsageError(f"rate takes a number of queries a second, got {text!r:.80}", what="rate", found=text) from exc


def check_queries(count: float) -> None:
    """Raise UsageError for a run of more queries than memory is meant to hold."""
    if count > _MOST_QUERIES:
        raise UsageError(
            f"a run would have {count:,.0f} queries, more than {_MOST_QUERIES:,}",
            what="duration_s", expected=_MOST_QUERIES, found=count, hint="give a shorter duration_s",
        )  # fmt: skip


@described
@dataclasses.dataclass(frozen=True)
class Scenario:
    """A scenario of MLPerf Inference (arXiv:1911.02549), from encoded image files to outputs.

    - single-stream: a query of one image when the previous one is answered; 90th percentile of the latency.
    - multi-stream: the same with several images a query; 99th percentile.
    - offline: all images at once; images per second.
    - server: queries of one image at random times (Poisson); the highest rate at which the 99th percentile of the
      latency is within a bound, or whether it is at a given rate.

    Raises:
        UsageError: If an option is invalid, or does not apply to the scenario.
    """

    name: str = option(
        dataclasses.MISSING, "Measure under load, in a scenario of MLPerf Inference.", choices=SCENARIOS,
        typed="scenario",
    )  # fmt: skip
    p99_ms: float | None = option(
        None, "Bound on the 99th percentile of the latency (server only), such as 50ms; in Python, milliseconds.",
        typed="p99", metavar="TIME", read=lambda text: 1e3 * read_duration(text, "p99_ms"),
    )  # fmt: skip
    rate: float | None = option(
        None, "Replay this many queries a second (server only), instead of searching for the highest rate.",
        metavar="RATE", read=_read_rate,
    )  # fmt: skip
    duration_s: float = option(
        10.0, "Least duration of each run (server: the mean), in seconds; MLPerf runs 600 s.",
        typed="duration", metavar="S", read=lambda text: read_duration(text, "duration_s", unit="s"),
    )  # fmt: skip
    sessions: int = option(
        1, "Sessions that answer at a time (server and offline), each with the backend's threads.",
        limits=(1, _MOST_SESSIONS),
    )  # fmt: skip
    seed: int = option(0, "Seed of the arrivals (server only).", limits=(0, 2**31 - 1))

    def __post_init__(self) -> None:
        check_options(self)
        for name, most in (("p99_ms", 1e3 * _LONGEST_S), ("rate", _HIGHEST_RATE), ("duration_s", _LONGEST_S)):
            value: Any = getattr(self, name)
            if value is None:
                continue
            number = isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
            if not (number and 0 < value <= most):
                expected = f"a number above 0 and up to {most:g}"
                problem = f"{name} takes {expected}, got {shown(value, 80)}"
                raise UsageError(problem, what=name, expected=expected, found=value)
        check_queries((self.rate or 0.0) * self.duration_s)
        for name, scenarios in _ONLY.items():
            if self.name not in scenarios and getattr(self, name) != getattr(Scenario, name):
                raise UsageError(
                    f"{name} applies to {' and '.join(scenarios)} only, the scenario is {self.name}",
                    what=name, expected=scenarios, found=self.name, hint="leave it out",
                )  # fmt: skip
        if self.name == SERVER and self.p99_ms is None:
            raise UsageError(
                "server needs p99_ms, the bound on the latency", what="p99_ms", expected="a bound", found=None
            )

    @property
    def percent(self) -> int | None:
        """The percentile that is reported; None for offline."""
        return {SINGLE_STREAM: 90, OFFLINE: None}.get(self.name, 99)

    def batch_sizes(self, given: tuple[int, ...] | None) -> tuple[int, ...]:
        """Images per query, or per run of offline; UsageError for none, or for several images where a query has one."""
        if given == ():
            raise UsageError("batch_sizes is empty", what="batch_sizes", found=given, hint="give one or more sizes")
        if self.name in (MULTI_STREAM, OFFLINE):
            return (_BATCH_SIZE,) if given is None else given
        if given not in (None, (1,)):
            raise UsageError(
                f"queries of {self.name} have one image", what="batch_sizes", expected=(1,), found=given,
                hint=f"leave it out, or measure {MULTI_STREAM} or {OFFLINE}",
            )  # fmt: skip
        return (1,)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**dataclasses.asdict(self), "mlperf_duration_s": MLPERF_SECONDS}


_ONLY = {"p99_ms": (SERVER,), "rate": (SERVER,), "seed": (SERVER,), "sessions": (SERVER, OFFLINE)}
