"""Warnings about a benchmark: what to know before its numbers are used."""

from __future__ import annotations

import collections
import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from vitdeploy.assess.metrics.latency import PERCENTILES, percentile_name, runs_for

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vitdeploy.assess.environment.conditions import Conditions
    from vitdeploy.assess.metrics.latency import Latency

_FOREIGN, _STOLEN = 0.05, 0.01  # of the CPUs' time
_SLOWER_CLOCK = 0.95  # of the clock before
_FEWEST_SESSIONS = 5  # of which Kendall's test can be significant
_SIGNIFICANT = 2.2  # of a normal deviate: 3 % by chance; with five rounds, every one above the one before
_RELEVANT = 0.02  # of the time
_MOST = 100  # points of a series; of more, medians of neighbours, because all pairs are compared


def notes_of(latencies: Sequence[Latency], conditions: Conditions | None) -> tuple[str, ...]:
    """Drift, throttling, other work on the CPUs, missing percentiles and intervals; empty if there is none."""
    notes = [*_drift(latencies)]
    if conditions is not None:
        notes += _conditions(conditions)
    return (*notes, *_too_few(latencies))


def _drift(latencies: Sequence[Latency]) -> Iterator[str]:
    """Trends of the whole machine from process to process, and of each setting within its processes."""
    relative: dict[int, list[float]] = collections.defaultdict(list)
    for latency in latencies:
        by_session, centre = latency.rounds_by_session, latency.interval_ms.estimate
        for session, rounds in by_session.items():
            relative[session].append(float(np.median(rounds)) / centre)
        within = trend(list(by_session.values()))
        if within.is_drift:
            yield (
                f"{latency.name} at batch size {latency.load_text} drifts: {_changed(within.change)} from the first "
                "round of a process to its last"
            )
    if len(relative) >= _FEWEST_SESSIONS:
        between = trend([[float(np.exp(np.mean(np.log(relative[session])))) for session in sorted(relative)]])
        if between.is_drift:
            yield (
                f"the machine drifts: times {_changed(between.change)} from the first processes to the last; compare "
                "ratios, not milliseconds"
            )


def _conditions(found: Conditions) -> Iterator[str]:
    if found.throttled:
        yield (
            f"the cgroup's CPU quota stopped the processes in {found.throttled} periods, for {found.throttled_s:.2f} s "
            "in all: fewer threads may be faster"
        )
    before, after = found.before.clock.current, found.after.clock.current
    if found.slowed_by_heat:
        yield f"the CPUs were slowed down {found.slowed_by_heat} times because of heat"
    elif before is not None and after is not None and after < _SLOWER_CLOCK * before:
        yield f"the CPUs' clock fell from {before:.0f} to {after:.0f} MHz"
    if found.foreign_share is not None and found.foreign_share > _FOREIGN:
        yield f"other processes used {found.foreign_share:.0%} of the CPUs' time"
    if found.steal_share is not None and found.steal_share > _STOLEN:
        yield f"the hypervisor gave {found.steal_share:.0%} of the CPUs' time to other machines"


def _too_few(latencies: Sequence[Latency]) -> Iterator[str]:
    if not latencies:
        return
    runs = min(len(latency.times_ms) for latency in latencies)
    absent = [percent for percent in PERCENTILES[1:-1] if runs < runs_for(percent)]
    if absent:
        needed = ", ".join(f"{percentile_name(percent)} needs {runs_for(percent)} runs" for percent in absent)
        yield f"there are too few runs for some percentiles: {needed}, there were {runs}"
    processes = min(len(latency.rounds_by_session) for latency in latencies)
    if processes == 1:
        yield (
            "each setting ran in one process, so the intervals leave out that processes differ by some percent; give "
            "more: --processes 5"
        )


def _changed(change: float) -> str:
    return f"{'rise' if change > 0 else 'fall'} by {abs(change):.1%}"


class Trend(NamedTuple):
    """A trend.

    Attributes:
        deviate: Kendall's statistic, in its standard deviations; positive for a rise.
        change: Relative change from the first to the last round.
    """

    deviate: float
    change: float

    @property
    def is_drift(self) -> bool:
        """True for a change of at least 2 % that is beyond the noise of the rounds."""
        return abs(self.deviate) >= _SIGNIFICANT and abs(self.change) >= _RELEVANT


def trend(series: Sequence[Sequence[float]]) -> Trend:
    """The common trend of several series of positive numbers, each with a level of its own.

    Kendall's test, summed over the series as by Hirsch, Slack and Smith 1982 (doi:10.1029/WR018i001p00107), with a
    correction for continuity; and the median of the slopes of all pairs (Sen 1968, doi:10.1080/01621459.1968.10480934).
    """
    total, variance, slopes = 0.0, 0.0, []
    for values in series:
        logs = np.log(np.asarray(values, np.float64))
        if len(logs) > _MOST:
            logs = np.array([np.median(part) for part in np.array_split(logs, _MOST)])
        count = len(logs)
        first, second = np.triu_indices(count, 1)
        total += float(np.sign(logs[second] - logs[first]).sum())
        variance += count * (count - 1) * (2 * count + 5) / 18
        slopes.append((logs[second] - logs[first]) / (second - first))
    if not variance:
        return Trend(0.0, 0.0)
    deviate = math.copysign(max(abs(total) - 1, 0.0), total) / math.sqrt(variance)
    steps = min(max(len(values) for values in series), _MOST) - 1
    return Trend(deviate, math.expm1(float(np.median(np.concatenate(slopes))) * steps))
