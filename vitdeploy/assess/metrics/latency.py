"""Latency: measurements, percentiles and ratios."""

from __future__ import annotations

import dataclasses
import itertools
from typing import TYPE_CHECKING, Any

import numpy as np

from vitdeploy.assess.metrics.intervals import Interval, Ratio, interval_of, unpaired_ratio
from vitdeploy.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vitdeploy.assess.metrics.pareto import Quality
    from vitdeploy.system.cpu import ThreadCount

_MEDIAN = 50
PERCENTILES = (_MEDIAN, 90, 95, 99, 99.9)
_THREAD_DETAILS = ("threads", "intra_op_threads", "inference_threads", "threads_reason")  # by backend


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
        device_rounds_ms: Times of `Runtime.run_device` on arrays of the GPU, by round: without transfers.
        gpu_memory_bytes: Most memory of the process on its GPU; None if it has none, or the driver does not tell.
        quality: Accuracy, or similarity with the reference; None if not measured.
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
    device_rounds_ms: tuple[tuple[float, ...], ...] = ()
    gpu_memory_bytes: int | None = None
    quality: Quality | None = None

    @property
    def name(self) -> str:
        """Backend, precision and changed options."""
        return setting_name(self.backend, self.precision, self.changes)

    @property
    def load(self) -> tuple[int, tuple[int, int] | None]:
        """Batch size and image size, which two latencies share if they can be compared."""
        return self.batch_size, self.image_size

    @property
    def load_text(self) -> str:
        return load_text(self.batch_size, self.image_size)

    @property
    def processes_ms(self) -> tuple[tuple[float, ...], ...]:
        """The median of each round, by process."""
        return tuple(self.rounds_by_session.values())

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

    @property
    def device_times_ms(self) -> tuple[float, ...]:
        """Times of all rounds without transfers."""
        return tuple(itertools.chain.from_iterable(self.device_rounds_ms))

    @property
    def device_p50_ms(self) -> float | None:
        """Median of the times without transfers; None where the backend has no GPU."""
        return float(np.median(self.device_times_ms)) if self.device_rounds_ms else None

    @property
    def p50_ms(self) -> float:
        """Median of the times on preprocessed input."""
        return float(np.median(self.times_ms))

    @property
    def image_p50_ms(self) -> float:
        """Median of the times from image files."""
        return float(np.median(self.image_times_ms))

    def percentile_ms(self, percent: float) -> float | None:
        """Percentile of the times on preprocessed input; None with fewer than `runs_for` runs."""
        return _percentile(self.times_ms, percent)

    @property
    def images_per_second(self) -> float:
        """Throughput at the median time on preprocessed input."""
        return 1e3 * self.batch_size / self.p50_ms

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
        times, others = self.rounds_by_session, base.rounds_by_session
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

    @property
    def rounds_by_session(self) -> dict[int, tuple[float, ...]]:
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
            "without_transfers": _summary(self.device_times_ms) if self.device_rounds_ms else None,
            "processing_ms": self.processing_ms,
            "load_ms": self.load_ms,
            "first_ms": self.first_ms,
            "peak_memory_bytes": self.peak_memory_bytes,
            "gpu_memory_bytes": self.gpu_memory_bytes,
            "steady": self.steady,
            "quality": None if self.quality is None else self.quality.to_dict(),
            "threads": None if self.threads is None else self.threads.to_dict(),
            "details": self.details if self.threads is None else details,
        }


def runs_for(percent: float) -> int:
    """Runs that a percentile needs: one of them is beyond it."""
    return round(100 / (100 - percent))


def percentile_name(percent: float) -> str:
    """Such as "p99.9"."""
    return f"p{percent:g}"


def _percentile(times: Sequence[float], percent: float) -> float | None:
    return float(np.percentile(times, percent)) if len(times) >= runs_for(percent) or percent == _MEDIAN else None


def _summary(times: Sequence[float]) -> dict[str, Any]:
    values = {f"{percentile_name(percent)}_ms": _percentile(times, percent) for percent in PERCENTILES}
    return {"runs": len(times), **values}


def setting_name(backend: str, precision: str, changes: str) -> str:
    """Backend, precision, and what differs from the defaults, such as "onnxruntime int8 threads=1"."""
    return f"{backend} {precision} {changes}".rstrip()


def load_text(batch_size: int | None, image_size: tuple[int, int] | None) -> str:
    """The batch size, with the image size if it is not the model's own."""
    return f"{batch_size}" if image_size is None else f"{batch_size} of {image_size[0]}x{image_size[1]}"
