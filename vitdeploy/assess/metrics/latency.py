"""Latency: measurements, percentiles and ratios."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from vitdeploy.assess.data.folder_listing import left_out_dict
from vitdeploy.assess.metrics.intervals import Interval, interval_of, unpaired_ratio
from vitdeploy.assess.metrics.status import Assessment, counted, overall
from vitdeploy.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vitdeploy.system.cpu import ThreadCount

PERCENTILES = (50, 90, 99)
_AS_FAST, _UNKNOWN = "as fast", "unclear"
_WORDS = {_AS_FAST: "as", _UNKNOWN: "against"}
_WHOLE, _FINE = 9.95, 1.1  # from here on a factor is rounded to a whole number; below, to two digits
_THREAD_DETAILS = ("threads", "intra_op_threads", "threads_reason")  # by backend


class Ratio(NamedTuple):
    """A ratio of two times, with its 95 % confidence interval; see `vitdeploy.assess.metrics.intervals`."""

    median: float
    low: float
    high: float

    @property
    def is_same(self) -> bool:
        """True if the interval contains 1: no difference is known."""
        return self.low <= 1 <= self.high

    @property
    def is_known(self) -> bool:
        """False for a single round, which has no interval."""
        return math.isfinite(self.high)

    @property
    def words(self) -> str:
        """The ratio in words, such as "69x faster" or "1.3x slower"; "as fast" if its interval contains 1."""
        if not self.is_known:
            return _UNKNOWN
        if self.is_same:
            return _AS_FAST
        factor = max(self.median, 1 / self.median)
        digits = 0 if factor >= _WHOLE else 1 if factor >= _FINE else 2
        return f"{factor:.{digits}f}x {'faster' if self.median < 1 else 'slower'}"

    def against(self, name: str) -> str:
        """The comparison with the one of that name, such as "2.5x faster than torch fp32 (0.40 of its time)"."""
        words = self.words
        return f"{words} {_WORDS.get(words, 'than')} {name} ({self.median:.2f} of its time)"

    def __str__(self) -> str:
        """The ratio and its interval, such as "0.400, 0.391 to 0.411"."""
        bounds = f"{self.low:.3f} to {self.high:.3f}" if self.is_known else "no interval from one round"
        return f"{self.median:.3f}, {bounds}"

    def to_dict(self) -> dict[str, float]:
        return {"ratio": self.median, "low": self.low, "high": self.high}


@dataclasses.dataclass(frozen=True)
class Latency:
    """Latency of one backend at one batch size, alone in its process, in milliseconds.

    Attributes:
        artifact: Name, such as "onnx-fp32"; "reference" for the torch reference.
        backend: Backend that ran.
        precision: Precision of the artifact.
        batch_size: Images per run.
        rounds_ms: Times of `Runtime.run` on preprocessed input, by round.
        image_rounds_ms: Times from encoded image files to outputs, preprocessing included, by round.
        processing_ms: Median preprocessing time in these.
        load_ms: Time to open the artifact in a new process, including its libraries' lazy imports.
        first_ms: Time of the process's first run, with the artifact's smallest batch.
        peak_memory_bytes: Peak resident memory of the process, over all batch sizes; None if the system does not report
            it.
        steady: True if times were steady at the end of the warm-up.
        threads: Number of CPU threads, with the reason; None if it uses none.
        details: Engine, device and settings that ran.
        sessions: Session of each round: rounds of one session are of one process, and two settings with a common
            session took turns in it. Default: all rounds are of one.
        image_size: (height, width) in pixels; None for the model's own.
        changes: Threads and options that differ from the defaults; see `Setting`.
    """

    artifact: str
    backend: str
    precision: str
    batch_size: int
    rounds_ms: tuple[tuple[float, ...], ...]
    image_rounds_ms: tuple[tuple[float, ...], ...] = ()
    processing_ms: float | None = None
    load_ms: float | None = None
    first_ms: float | None = None
    peak_memory_bytes: int | None = None
    steady: bool = True
    threads: ThreadCount | None = None
    details: dict[str, Any] = dataclasses.field(default_factory=dict)
    sessions: tuple[int, ...] = ()
    image_size: tuple[int, int] | None = None
    changes: str = ""

    @property
    def name(self) -> str:
        """Backend, precision and changed options."""
        return f"{self.backend} {self.precision} {self.changes}".rstrip()

    @property
    def load(self) -> tuple[int, tuple[int, int] | None]:
        """Batch size and image size, which two latencies share if they can be compared."""
        return self.batch_size, self.image_size

    @property
    def load_text(self) -> str:
        return _load_text(self.batch_size, self.image_size)

    @property
    def processes_ms(self) -> tuple[tuple[float, ...], ...]:
        """The median of each round, by process."""
        return tuple(self._medians().values())

    @property
    def interval_ms(self) -> Interval:
        """The typical time on preprocessed input, with its interval."""
        return interval_of(self.processes_ms)

    @property
    def times_ms(self) -> tuple[float, ...]:
        """Times of all rounds on preprocessed input."""
        return tuple(itertools.chain.from_iterable(self.rounds_ms))

    @property
    def image_times_ms(self) -> tuple[float, ...]:
        """Times of all rounds from image files."""
        return tuple(itertools.chain.from_iterable(self.image_rounds_ms))

    def percentile_ms(self, percent: float) -> float:
        """Percentile of the times on preprocessed input."""
        return float(np.percentile(self.times_ms, percent))

    def image_percentile_ms(self, percent: float) -> float:
        """Percentile of the times from image files."""
        return float(np.percentile(self.image_times_ms, percent))

    @property
    def images_per_second(self) -> float:
        """Throughput at the median time on preprocessed input."""
        return 1e3 * self.batch_size / self.percentile_ms(50)

    def ratio(self, base: Latency) -> Ratio:
        """Time relative to `base`, with its interval.

        It is that of rounds of the same session, so that a slow phase of the machine affects both; without any, that
        of two independent measurements.

        Raises:
            UsageError: If the batch or image sizes differ.
        """
        if self.load != base.load:
            raise UsageError(
                f"{self.name} at {self.batch_size} and {base.name} at {base.batch_size} are not of one batch and image "
                "size, as a ratio needs them",
                what="base", found=(base.name, *base.load),
            )  # fmt: skip
        times, others = self._medians(), base._medians()
        common = [session for session in times if len(times[session]) == len(others.get(session, ()))]
        if not common:
            return Ratio(*unpaired_ratio(self.processes_ms, base.processes_ms))
        return Ratio(
            *interval_of(
                [
                    [time / other for time, other in zip(times[session], others[session], strict=True)]
                    for session in common
                ]
            )
        )

    def _medians(self) -> dict[int, tuple[float, ...]]:
        """The median of each round, by session."""
        found: dict[int, tuple[float, ...]] = {}
        for session, times in zip(self.sessions or [0] * len(self.rounds_ms), self.rounds_ms, strict=True):
            found[session] = (*found.get(session, ()), float(np.median(times)))
        return found

    def to_dict(self) -> dict[str, Any]:
        """For JSON; `details` then excludes the threads and the reason for their number."""
        details = {name: value for name, value in self.details.items() if name not in _THREAD_DETAILS}
        return {
            "artifact": self.artifact,
            "backend": self.backend,
            "precision": self.precision,
            "changes": self.changes,
            "batch_size": self.batch_size,
            "image_size": None if self.image_size is None else list(self.image_size),
            "ready_input": {
                **_summary(self.times_ms),
                "interval_ms": self.interval_ms.to_list(),
                "images_per_second": self.images_per_second,
            },
            "processes_ms": [list(rounds) for rounds in self.processes_ms],
            "image_files": _summary(self.image_times_ms) if self.image_rounds_ms else None,
            "processing_ms": self.processing_ms,
            "load_ms": self.load_ms,
            "first_ms": self.first_ms,
            "peak_memory_bytes": self.peak_memory_bytes,
            "steady": self.steady,
            "threads": None if self.threads is None else self.threads.to_dict(),
            "details": self.details if self.threads is None else details,
        }


def _summary(times: Sequence[float]) -> dict[str, Any]:
    percentiles = np.percentile(times, PERCENTILES)
    return {
        "runs": len(times),
        **{f"p{percent}_ms": float(value) for percent, value in zip(PERCENTILES, percentiles, strict=True)},
    }


@dataclasses.dataclass(frozen=True)
class NotMeasured:
    """A backend that was not measured, at one batch size or (None) at all, with the reason.

    Attributes:
        status: "failed" for NaN or infinite outputs; "left out" if its package is not installed and it was not named;
            else "skipped".
    """

    artifact: str
    backend: str
    precision: str
    batch_size: int | None
    reason: str
    status: Literal["failed", "skipped", "left out"] = "skipped"
    changes: str = ""
    image_size: tuple[int, int] | None = None

    @property
    def name(self) -> str:
        """Backend, precision and changed options."""
        return f"{self.backend} {self.precision} {self.changes}".rstrip()

    @property
    def load_text(self) -> str:
        return _load_text(self.batch_size, self.image_size)

    def to_dict(self) -> dict[str, Any]:
        size = None if self.image_size is None else list(self.image_size)
        return {**dataclasses.asdict(self), "image_size": size}


@dataclasses.dataclass(frozen=True, repr=False)
class Benchmark(Assessment):
    """Latencies of every backend at every batch size.

    Attributes:
        machine: Machine that measured them.
        settings: Settings of the benchmark.
        latencies: Sorted by batch size, then in the order of the backends.
        skipped: Backends that could not be measured.
    """

    machine: dict[str, str]
    settings: dict[str, Any]
    latencies: tuple[Latency, ...]
    skipped: tuple[NotMeasured, ...] = ()

    @property
    def brief(self) -> str:
        """The result in a few words."""
        return counted(
            [*("passed" for _ in self.latencies), *(skipped.status for skipped in self.skipped)], "measurement"
        )

    @property
    def status(self) -> str:
        """Outcome, "failed" or "skipped" if a backend was, or if nothing was measured; else "passed"."""
        counted = [skipped.status for skipped in self.skipped if skipped.status != "left out"]
        return overall([*counted, *("passed" for _ in self.latencies)])

    @property
    def threads_text(self) -> str:
        """Number of threads of each backend; "" if none computes on the CPU."""
        counts = {item.backend: item.threads.count for item in self.latencies if item.threads is not None}
        if len(set(counts.values())) == 1:
            return _threads(next(iter(counts.values())))
        return ", ".join(f"{backend} {_threads(count)}" for backend, count in counts.items())

    @property
    def note(self) -> str:
        """A warning if backends ran with different numbers of threads; else empty."""
        counts = {latency.backend: latency.threads.count for latency in self.latencies if latency.threads is not None}
        if len(set(counts.values())) < 2:
            return ""
        return (
            f"the backends ran with different numbers of threads ({self.threads_text}); --threads N gives each the same"
        )

    def latency(self, name: str, batch_size: int) -> Latency:
        """The latency of a backend such as "onnxruntime fp32"; UsageError if it was not measured."""
        for candidate in self.latencies:
            if (candidate.name, candidate.batch_size) == (name, batch_size):
                return candidate
        measured = ", ".join(f"{candidate.name} at {candidate.batch_size}" for candidate in self.latencies) or "nothing"
        raise UsageError(f"{name} at {batch_size} was not measured; measured: {measured}", what=name, found=batch_size)

    def ratio(self, name: str, base: str, batch_size: int) -> Ratio:
        """Ratio of the times of two backends; see `Latency.ratio`."""
        return self.latency(name, batch_size).ratio(self.latency(base, batch_size))

    def to_dict(self) -> dict[str, Any]:
        return {
            "bundle": self.bundle,
            "processor": self.processor,
            "status": self.status,
            "machine": self.machine,
            "settings": self.settings,
            "left_out": left_out_dict(self.left_out),
            "latencies": [latency.to_dict() for latency in self.latencies],
            "skipped": [skipped.to_dict() for skipped in self.skipped],
        }


def _threads(count: int) -> str:
    return str(count) if count else "its own number"


def _load_text(batch_size: int | None, image_size: tuple[int, int] | None) -> str:
    """The batch size, with the image size if it is not the model's own."""
    return f"{batch_size}" if image_size is None else f"{batch_size} of {image_size[0]}x{image_size[1]}"
