"""The result of a benchmark."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Literal

from vitdeploy.assess.benchmark.notes import notes_of
from vitdeploy.assess.data.folder_listing import left_out_dict
from vitdeploy.assess.environment.conditions import Conditions
from vitdeploy.assess.metrics.intervals import Ratio
from vitdeploy.assess.metrics.latency import Latency, load_text, setting_name
from vitdeploy.assess.metrics.pareto import pareto_front
from vitdeploy.assess.metrics.status import Assessment, counted, overall
from vitdeploy.errors import UsageError


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
        return setting_name(self.backend, self.precision, self.changes)

    @property
    def load_text(self) -> str:
        return load_text(self.batch_size, self.image_size)

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
        skipped: Settings that could not be measured.
        conditions: Clocks, quota, and other work on the CPUs meanwhile.
    """

    machine: dict[str, str]
    settings: dict[str, Any]
    latencies: tuple[Latency, ...]
    skipped: tuple[NotMeasured, ...] = ()
    conditions: Conditions | None = None

    @functools.cached_property
    def notes(self) -> tuple[str, ...]:
        """Warnings: drift, throttling, other work, too few runs."""
        return notes_of(self.latencies, self.conditions)

    @functools.cached_property
    def front(self) -> tuple[Latency, ...]:
        """The settings that no other of their batch and image size beats in time and accuracy; none without it."""
        chosen: list[Latency] = []
        for load in dict.fromkeys(latency.load for latency in self.latencies):
            rated = [latency for latency in self.latencies if latency.load == load and latency.quality is not None]
            points = [(item.interval_ms.estimate, item.quality.value) for item in rated if item.quality is not None]
            chosen += [item for item, best in zip(rated, pareto_front(points), strict=True) if best]
        return tuple(chosen)

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
        counts = self._thread_counts
        if len(set(counts.values())) == 1:
            return _threads(next(iter(counts.values())))
        return ", ".join(f"{backend} {_threads(count)}" for backend, count in counts.items())

    @property
    def _thread_counts(self) -> dict[str, int]:
        """Numbers by backend, except of settings that state another."""
        return {
            item.backend: item.threads.count for item in self.latencies if item.threads is not None and not item.changes
        }

    @property
    def note(self) -> str:
        """A warning if backends ran with different numbers of threads; else empty."""
        counts = self._thread_counts
        if len(set(counts.values())) < 2:
            return ""
        return (
            f"the backends ran with different numbers of threads ({self.threads_text}); --threads N gives each the same"
        )

    def latency(self, name: str, batch_size: int, image_size: tuple[int, int] | None = None) -> Latency:
        """The latency of a backend such as "onnxruntime fp32"; UsageError if it was not measured."""
        for candidate in self.latencies:
            if (candidate.name, *candidate.load) == (name, batch_size, image_size):
                return candidate
        measured = ", ".join(f"{candidate.name} at {candidate.load_text}" for candidate in self.latencies) or "nothing"
        problem = f"{name} at {load_text(batch_size, image_size)} was not measured; measured: {measured}"
        raise UsageError(problem, what=name, found=batch_size)

    def ratio(self, name: str, base: str, batch_size: int, image_size: tuple[int, int] | None = None) -> Ratio:
        """Ratio of the times of two backends; see `Latency.ratio`."""
        return self.latency(name, batch_size, image_size).ratio(self.latency(base, batch_size, image_size))

    def _in_front(self, latency: Latency) -> bool | None:
        return None if latency.quality is None else any(latency is item for item in self.front)

    def to_dict(self) -> dict[str, Any]:
        return {
            "bundle": self.bundle,
            "processor": self.processor,
            "status": self.status,
            "machine": self.machine,
            "settings": self.settings,
            "conditions": None if self.conditions is None else self.conditions.to_dict(),
            "notes": list(self.notes),
            "left_out": left_out_dict(self.left_out),
            "latencies": [{**latency.to_dict(), "pareto": self._in_front(latency)} for latency in self.latencies],
            "skipped": [skipped.to_dict() for skipped in self.skipped],
        }


def _threads(count: int) -> str:
    return str(count) if count else "its own number"
