"""Compare two recorded benchmarks: of two machines, or of two versions."""

from __future__ import annotations

import dataclasses
import math
import os
from typing import TYPE_CHECKING, Any

from vitdeploy.assess.benchmark.recorded import Key, Recorded
from vitdeploy.assess.metrics.intervals import Interval, Ratio, interval_of, unpaired_ratio
from vitdeploy.assess.metrics.status import Assessment, CheckResult, overall
from vitdeploy.errors import InputError
from vitdeploy.system.argument_types import typed
from vitdeploy.system.shares import read_slowdown

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_SETTINGS = ("device", "threads", "images", "processes", "rounds", "runs")  # that change times, or their intervals
_CHECK = "max_slowdown"


@dataclasses.dataclass(frozen=True)
class Change:
    """The change of one setting at one load.

    Attributes:
        key: The setting and the load.
        before_ms: Its time in the first result.
        after_ms: Its time in the second.
        ratio: Second over first.
    """

    key: Key
    before_ms: Interval
    after_ms: Interval
    ratio: Ratio

    @property
    def verdict(self) -> str:
        """Faster or slower if the interval of the ratio excludes 1, unknown without one; else "no difference"."""
        if not math.isfinite(self.ratio.high):
            return "unknown"
        if self.ratio.is_same:
            return "no difference"
        return "faster" if self.ratio.median < 1 else "slower"

    def check(self, bound: float) -> CheckResult:
        """The check of a largest slowdown, a share of the time: "skipped" without an interval."""
        exceeds = self.verdict == "slower" and self.ratio.median > 1 + bound
        status = "skipped" if self.verdict == "unknown" else "failed" if exceeds else "passed"
        message = f"{self.ratio.words} ({self.ratio}), {bound:.1%} slower allowed"
        return CheckResult(_subject(self.key), _CHECK, status, message)

    def to_dict(self) -> dict[str, Any]:
        size = self.key.image_size
        return {
            **self.key._asdict(),
            "image_size": None if size is None else list(size),
            "before_ms": self.before_ms.estimate,
            "before_interval_ms": self.before_ms.to_list(),
            "after_ms": self.after_ms.estimate,
            "after_interval_ms": self.after_ms.to_list(),
            "ratio": self.ratio.median,
            "ratio_interval": Interval(*self.ratio).to_list(),
            "verdict": self.verdict,
        }


@dataclasses.dataclass(frozen=True, repr=False)
class BenchmarkComparison(Assessment):
    """Two recorded benchmarks, setting by setting.

    Attributes:
        bundle: The file of the second.
        before: The first.
        after: The second.
        changes_by_setting: Settings and loads that both have, in the order of the first.
        max_slowdown: Largest slowdown allowed, as a share of the time; None for a comparison without a check.
    """

    before: Recorded
    after: Recorded
    changes_by_setting: tuple[Change, ...]
    max_slowdown: float | None = None

    @property
    def title(self) -> str:
        return f"{self.after.file} against {self.before.file}"

    @property
    def brief(self) -> str:
        verdicts = [change.verdict for change in self.changes_by_setting]
        words = ("faster", "slower", "no difference", *(["unknown"] if "unknown" in verdicts else []))
        return ", ".join(f"{verdicts.count(word)} {word}" for word in words)

    @property
    def status(self) -> str:
        """Outcome: "failed" if a slowdown exceeds the bound, "skipped" if a setting could not be checked."""
        return "passed" if self.max_slowdown is None else overall(check.status for check in self.check_results)

    @property
    def check_results(self) -> tuple[CheckResult, ...]:
        """A check of each setting and load of the first result; none without a bound."""
        if self.max_slowdown is None:
            return ()
        return (
            *(change.check(self.max_slowdown) for change in self.changes_by_setting),
            *(
                CheckResult(_subject(key), _CHECK, "skipped", f"not in {self.after.file}")
                for key in self.before.times_ms
                if key not in self.after.times_ms
            ),
        )

    @property
    def changes(self) -> tuple[str, ...]:
        """Differences of machines, versions and settings, one line each."""
        sides = (self.before, self.after)
        chosen = [{name: side.settings.get(name) for name in _SETTINGS} for side in sides]
        machines = [side.machine for side in sides]
        lines = [*_differences("machine", *machines), *_differences("settings", *chosen)]
        if self.before.bundle != self.after.bundle:
            lines.append(f"bundle: {self.before.bundle} -> {self.after.bundle}")
        return tuple(lines)

    @property
    def only_in_one(self) -> tuple[str, ...]:
        """Settings and loads that one of the results lacks, one line each."""
        sides = ((self.before, self.after), (self.after, self.before))
        return tuple(
            f"{_subject(key)} is only in {side.file}"
            for side, other in sides
            for key in side.times_ms
            if key not in other.times_ms
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """Warnings of both measurements."""
        return tuple(f"{side.file}: {note}" for side in (self.before, self.after) for note in side.notes)

    def to_dict(self) -> dict[str, Any]:
        return {
            "before": self.before.file,
            "after": self.after.file,
            "status": self.status,
            "max_slowdown": self.max_slowdown,
            "settings": [change.to_dict() for change in self.changes_by_setting],
            "differences": list(self.changes),
            "only_in_one": list(self.only_in_one),
            "notes": list(self.notes),
        }


@typed
def compare_benchmarks(
    before: str | os.PathLike[str],
    after: str | os.PathLike[str],
    *,
    max_slowdown: float | str | None = None,
) -> BenchmarkComparison:
    """Compare two files of `vitdeploy benchmark --json`, such as of two machines or versions.

    Each is resampled alone, processes before rounds, because they did not take turns; see
    `vitdeploy.assess.metrics.intervals`. By chance alone, at most one of twenty settings without a difference is faster
    or slower. A machine that itself was slower or faster, with another clock or beside other work, counts as a
    difference.

    Args:
        before: The first file, the base of the ratios.
        after: The second file.
        max_slowdown: Largest slowdown allowed, such as 0.05 or "5%". A setting fails if it is slower by more, and the
            interval of its ratio excludes 1. One that the second file lacks, or without an interval, is skipped.

    Raises:
        InputError: If a file is missing or not such a result, or they have no setting and load in common.
        UsageError: If the bound is not a share.
    """
    bound = None if max_slowdown is None else float(read_slowdown(max_slowdown))
    sides = Recorded.read(before), Recorded.read(after)
    first, second = sides
    common = [key for key in first.times_ms if key in second.times_ms]
    if not common:
        raise InputError(
            f"{first.file} and {second.file} have no setting and batch size in common",
            what="latencies", where=second.file,
            expected=tuple(key.name for key in first.times_ms), found=tuple(key.name for key in second.times_ms),
            hint="measure the same settings with both",
        )  # fmt: skip
    return BenchmarkComparison(
        second.file,
        first,
        second,
        tuple(_change(key, first.times_ms[key], second.times_ms[key]) for key in common),
        bound,
    )


def _subject(key: Key) -> str:
    return f"{key.name} at batch size {key.load_text}"


def _change(key: Key, before: tuple[tuple[float, ...], ...], after: tuple[tuple[float, ...], ...]) -> Change:
    return Change(key, interval_of(before), interval_of(after), Ratio(*unpaired_ratio(after, before)))


def _differences(title: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    for name in {**before, **after}:
        old, new = (side.get(name, "none") for side in (before, after))
        if old != new:
            yield f"{title}: {name}: {old} -> {new}"
