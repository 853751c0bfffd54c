"""Results of scenarios."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from vitdeploy.assess.benchmark.notes import notes_of
from vitdeploy.assess.benchmark.scenarios.options import MLPERF_SECONDS, OFFLINE, SERVER
from vitdeploy.assess.benchmark.scenarios.rate_search import MIN_QUERIES
from vitdeploy.assess.data.folder_listing import left_out_dict
from vitdeploy.assess.metrics.latency import setting_name
from vitdeploy.assess.metrics.status import Assessment, counted, overall

if TYPE_CHECKING:
    from vitdeploy.assess.benchmark.result import NotMeasured
    from vitdeploy.assess.benchmark.scenarios.options import Scenario
    from vitdeploy.assess.environment.conditions import Conditions
    from vitdeploy.assess.metrics.order_statistics import Percentile
    from vitdeploy.system.cpu import ThreadCount


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """A setting under load.

    Attributes:
        artifact, backend, precision: As in `Latency`.
        changes: Threads and options that differ from the defaults.
        batch_size: Images per query, or per run of offline.
        sessions: Sessions that answered.
        threads: Number of CPU threads of a session, with the reason; None if it uses none.
        details: Engine, device and settings that ran.
    """

    artifact: str
    backend: str
    precision: str
    changes: str = ""
    batch_size: int = 1
    sessions: int = 1
    threads: ThreadCount | None = None
    details: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def status(self) -> str:
        """Outcome: "passed"; "failed" if a bound is missed; "skipped" if the measurement is not valid."""
        return "passed"

    @property
    def reason(self) -> str:
        """Why it did not pass; else empty."""
        return ""

    @property
    def name(self) -> str:
        """Backend, precision and changes."""
        return setting_name(self.backend, self.precision, self.changes)

    @property
    def measures(self) -> str:
        """Name of the reported figure."""
        raise NotImplementedError

    @property
    def figure(self) -> tuple[str, str]:
        """The reported figure with its unit, and a note."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        return {
            **{name: getattr(self, name) for name in ("artifact", "backend", "precision", "changes", "batch_size")},
            "sessions": self.sessions,
            "threads": None if self.threads is None else self.threads.to_dict(),
            "status": self.status,
            "reason": self.reason or None,
            **self._figures(),
            "details": self.details,
        }

    def _figures(self) -> dict[str, Any]:
        raise NotImplementedError


@dataclasses.dataclass(frozen=True, kw_only=True)
class StreamResult(Measured):
    """Single-stream or multi-stream.

    Attributes:
        percentile: The reported percentile of the latency.
        median_ms: Median latency of a query.
        seconds: Duration of the run.
    """

    percentile: Percentile
    median_ms: float
    seconds: float

    @property
    def measures(self) -> str:
        """Name of the reported figure."""
        return f"p{self.percentile.percent} of a query's latency"

    @property
    def figure(self) -> tuple[str, str]:
        """The percentile, and its interval."""
        found = self.percentile
        high = "an upper end that needs more queries" if found.high_ms is None else f"{found.high_ms:.3g} ms"
        size = "1 image" if self.batch_size == 1 else f"{self.batch_size} images"
        return f"{found.value_ms:.3g} ms", f"95 % interval {found.low_ms:.3g} to {high}; {size} a query"

    @property
    def images_per_second(self) -> float:
        """Throughput of the run."""
        return self.percentile.count * self.batch_size / self.seconds

    def _figures(self) -> dict[str, Any]:
        return {
            "latency": self.percentile.to_dict(),
            "p50_ms": self.median_ms,
            "images_per_second": self.images_per_second,
            "seconds": self.seconds,
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class OfflineResult(Measured):
    """Offline: all images at once.

    Attributes:
        images: Number of images.
        seconds: From the start to the last answer.
    """

    images: int
    seconds: float

    @property
    def measures(self) -> str:
        """Name of the reported figure."""
        return "offline throughput"

    @property
    def figure(self) -> tuple[str, str]:
        """The throughput, and what was run."""
        return f"{self.images_per_second:,.4g} images/s", f"{self.images} images in batches of {self.batch_size}"

    @property
    def images_per_second(self) -> float:
        """Throughput, the reported figure."""
        return self.images / self.seconds

    def _figures(self) -> dict[str, Any]:
        return {"images_per_second": self.images_per_second, "images": self.images, "seconds": self.seconds}


@dataclasses.dataclass(frozen=True, repr=False)
class ScenarioBenchmark(Assessment):
    """A scenario, measured with every setting.

    Attributes:
        scenario: What was measured.
        machine: Machine that measured it.
        settings: Settings of the measurement.
        results: One per setting and batch size, in their order.
        skipped: Settings that could not be measured.
        conditions: Clocks, quota, and other work on the CPUs meanwhile.
    """

    scenario: Scenario
    machine: dict[str, str]
    settings: dict[str, Any]
    results: tuple[Measured, ...]
    skipped: tuple[NotMeasured, ...] = ()
    conditions: Conditions | None = None

    @property
    def statuses(self) -> list[str]:
        """Outcomes of the results and of the skipped settings."""
        return [*(result.status for result in self.results), *(skipped.status for skipped in self.skipped)]

    @property
    def status(self) -> str:
        """Outcome, "failed" or "skipped" if a result or a setting was, or if nothing was measured; else "passed"."""
        return overall(status for status in self.statuses if status != "left out")

    @property
    def brief(self) -> str:
        """The result in a few words."""
        return f"{self.scenario.name}, {counted(self.statuses, 'measurement')}"

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes on the figures, one sentence each."""
        return (
            f"from encoded image files to outputs, {self.scenario.duration_s:g} s a run or more; MLPerf runs "
            f"{MLPERF_SECONDS} s, and its models and images are others, so this is no MLPerf result",
            *_METHOD.get(self.scenario.name, (_STREAM,)),
            *notes_of((), self.conditions),
            *(f"{result.name}: {result.reason}" for result in self.results if result.reason),
            *(_not_measured(skipped) for skipped in self.skipped),
        )

    def to_dict(self) -> dict[str, Any]:
        return {
            "bundle": self.bundle,
            "processor": self.processor,
            "status": self.status,
            "machine": self.machine,
            "scenario": self.scenario.to_dict(),
            "settings": self.settings,
            "conditions": None if self.conditions is None else self.conditions.to_dict(),
            "left_out": left_out_dict(self.left_out),
            "results": [result.to_dict() for result in self.results],
            "skipped": [skipped.to_dict() for skipped in self.skipped],
        }


def _not_measured(skipped: NotMeasured) -> str:
    size = "" if skipped.batch_size is None else f" at batch size {skipped.batch_size}"
    return f"{skipped.backend} {skipped.precision}{size} was not measured: {skipped.reason}"


_STREAM = (
    "the interval of a percentile is one of order statistics, for independent latencies; early stopping: the estimate "
    "of MLPerf's rules, which the true percentile exceeds with a probability of at most 1%"
)
_METHOD = {
    OFFLINE: ("MLPerf runs at least 24,576 images",),
    SERVER: (
        f"at least {MIN_QUERIES} queries a run: the fewest that can show a 99th percentile with a confidence of 99%",
        "holds: share of replays within the bound, modelled from the measured service times and their differences "
        "between runs; a rate counts from 98%",
    ),
}
