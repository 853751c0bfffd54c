"""Time settings in turns, each in its own process, and again in new ones."""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
import time
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from vitdeploy.assess.benchmark.capacity import alive_together
from vitdeploy.assess.benchmark.result import NotMeasured
from vitdeploy.assess.benchmark.timer import Job, Opened, Round
from vitdeploy.assess.benchmark.worker import worker
from vitdeploy.assess.metrics.latency import Latency
from vitdeploy.errors import MissingDependencyError, NotFiniteError, UnavailableError, UsageError, check_count
from vitdeploy.system.progress import SILENT, Progress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from vitdeploy.assess.benchmark.setting import Load, Setting
    from vitdeploy.assess.metrics.pareto import Quality
    from vitdeploy.bundle.bundle import Bundle

PROCESSES, FEWEST = 5, 3  # by default: an interval from two is seven times as wide as from five
_OPENING = 0.2  # of the time of the rounds


@dataclasses.dataclass(frozen=True)
class Timed:
    """Measured latencies, by setting and load in the requested order, and the settings that could not be measured."""

    latencies: tuple[Latency, ...]
    skipped: tuple[NotMeasured, ...]


@dataclasses.dataclass(frozen=True)
class Request:
    """A setting to time at some loads; `optional` if it may be absent here without being counted as skipped."""

    setting: Setting
    loads: tuple[Load, ...]
    optional: bool = False

    @property
    def any_size(self) -> bool:
        """True if there are images of other sizes than the model's."""
        return any(load.image_size is not None for load in self.loads)


def time_settings(
    bundle: Bundle,
    requests: Sequence[Request],
    *,
    images: tuple[bytes, ...],
    device: str = "cpu",
    threads: int = 0,
    processes: int | None = None,
    rounds: int = 10,
    runs: int = 10,
    from_files: bool = True,
    seed: int = 0,
    qualities: Mapping[tuple[Setting, tuple[int, int] | None], Quality] | None = None,
    progress: Progress = SILENT,
) -> Timed:
    """Time every request in turns with the first one, the base, each in its own process.

    A session is a set of processes that live at the same time and take turns, in another order in each round. Those of
    a request are started anew in each of its `processes` sessions, because where their memory lies changes their speed
    for their whole life. If memory does not hold all requests at a time, groups of them have sessions of their own,
    each with the base; `Latency.ratio` compares rounds of the same session. The processes are spawned, and do not
    outlive the call.

    Args:
        bundle: The bundle of all settings.
        requests: Settings and loads; the first is the base of the others.
        images: Encoded image files.
        device: "cpu", "cuda" or "cuda:1".
        threads: Threads of settings that state none.
        processes: Processes per request, of the base per group; at most `rounds` are started. Default: 5, or fewer, but
            3, if the start of more would take over a fifth of the time of the rounds.
        rounds: Turns per request, over all of its processes.
        runs: Timed runs per turn, of each kind and load.
        from_files: True to time runs from image files too.
        seed: Seed of the orders.
        qualities: Measured quality by setting and image size, for the latencies.
        progress: Receives each step.

    Raises:
        UsageError: If a number is invalid, or there are no requests.
        BundleError: If an artifact is missing or was altered.
    """
    if not requests:
        raise UsageError("there is no setting to time", what="requests", found=requests)
    for name, value in (("processes", processes), ("rounds", rounds), ("runs", runs)):
        if value is not None:
            check_count(name, value)
    groups = alive_together(bundle, [request.setting for request in requests])
    timings = []
    for request in requests:
        setting = request.setting.with_threads(threads)
        timings.append(_Timing(request, Job(bundle, setting, device, images, from_files, request.any_size)))
    sessions = _Sessions(np.random.default_rng(seed), runs, rounds * len(groups), progress)
    for group in groups:
        alive = [timings[position] for position in group]
        shares = _shares(rounds, processes or PROCESSES)
        first, *later = shares
        opening_s, timing_s = sessions.run(alive, first)
        if processes is None and later:
            later = _shares(sum(later), _affordable(opening_s, timing_s * rounds / first) - 1)
        for share in later:
            sessions.run(alive, share)
    return Timed(
        tuple(latency for timing in timings for latency in timing.latencies(qualities or {})),
        tuple(reason for timing in timings for reason in timing.skipped),
    )


def _shares(rounds: int, processes: int) -> list[int]:
    """Rounds of each process."""
    return [len(part) for part in np.array_split(np.arange(rounds), min(processes, rounds))]


def _affordable(opening_s: float, timing_s: float) -> int:
    """Processes whose start, except the first's, takes at most a share of the time of all rounds; at least three."""
    return next(
        (count for count in range(PROCESSES, FEWEST, -1) if (count - 1) * opening_s <= _OPENING * timing_s), FEWEST
    )


@dataclasses.dataclass
class _Sessions:
    """Sessions, one after the other; `finished` and `total` count rounds."""

    generator: np.random.Generator
    runs: int
    total: int
    progress: Progress
    finished: int = 0
    session: int = 0

    def run(self, timings: Sequence[_Timing], rounds: int) -> tuple[float, float]:
        """One session of some rounds; seconds until all had started, and of the rounds."""
        begin = time.monotonic()
        with contextlib.ExitStack() as stack:
            alive = [timing for timing in timings if timing.goes_on]
            for timing in alive:
                timing.start(stack.enter_context(worker(timing.job)))
            for timing in alive:
                self.progress.step(f"opening {timing.request.setting}")
                timing.open()
            opened = time.monotonic()
            for _ in range(rounds):
                self.finished += 1
                self.progress.step(f"timing, round {self.finished} of {self.total}")
                for position in self.generator.permutation(len(alive)):
                    alive[position].time(self.session, self.runs)
            ended = time.monotonic()
            for timing in alive:
                timing.finish()
        self.session += 1
        return opened - begin, ended - opened


@dataclasses.dataclass
class _Measured:
    """Rounds of a load, with the session of each."""

    rounds: list[Round] = dataclasses.field(default_factory=list)
    sessions: list[int] = dataclasses.field(default_factory=list)
    steady: bool = True


class _Timing:
    """A request's processes, one after the other, and their measurements."""

    def __init__(self, request: Request, job: Job) -> None:
        self.job = job
        self.skipped: list[NotMeasured] = []
        self.request = request
        self._ask: Callable[..., Any]
        self._measured = {load: _Measured() for load in request.loads}
        self._opened: list[Opened] = []
        self._first_ms: list[float] = []
        self._peaks: list[int] = []
        self._gpu_peaks: list[int] = []

    @property
    def goes_on(self) -> bool:
        return bool(self._measured)

    def start(self, ask: Callable[..., Any]) -> None:
        self._ask = ask

    def open(self) -> None:
        try:
            self._opened.append(self._ask("open"))
        except MissingDependencyError as exc:
            self._give_up(str(exc), "left out" if self.request.optional else "skipped")
        except UnavailableError as exc:
            self._give_up(str(exc))
        for load in sorted(self._measured, key=lambda load: (load.batch_size, load.image_size or ())):
            first_ms = self._at(load, "first_run", load)
            if first_ms is not None:
                self._first_ms.append(first_ms)
                break
        for load in list(self._measured):
            steady = self._at(load, "warm_up", load)
            if load in self._measured:
                self._measured[load].steady &= steady

    def time(self, session: int, runs: int) -> None:
        """One turn: every load."""
        for load in list(self._measured)[:1]:
            self._at(load, "pause")
        for load in list(self._measured):
            turn = self._at(load, "time", load, runs)
            if load in self._measured:
                self._measured[load].rounds.append(turn)
                self._measured[load].sessions.append(session)

    def finish(self) -> None:
        for load in list(self._measured)[:1]:
            usage = self._at(load, "usage")
            if usage is not None:
                self._peaks += [] if usage.peak_memory_bytes is None else [usage.peak_memory_bytes]
                self._gpu_peaks += [] if usage.gpu_memory_bytes is None else [usage.gpu_memory_bytes]

    def latencies(self, qualities: Mapping[tuple[Setting, tuple[int, int] | None], Quality]) -> Iterable[Latency]:
        setting = self.request.setting
        for load, measured in self._measured.items():
            rounds = measured.rounds
            processing = [value for turn in rounds for value in turn.processing_ms]
            yield Latency(
                *setting.selected,
                load.batch_size,
                rounds_ms=tuple(turn.ready_ms for turn in rounds),
                image_rounds_ms=tuple(turn.images_ms for turn in rounds if turn.images_ms),
                processing_ms=statistics.median(processing) if processing else None,
                load_ms=statistics.median(opened.load_ms for opened in self._opened),
                first_ms=statistics.median(self._first_ms),
                peak_memory_bytes=max(self._peaks, default=None),
                steady=measured.steady,
                threads=self._opened[0].threads,
                details=self._opened[0].details,
                sessions=tuple(measured.sessions),
                device_rounds_ms=tuple(turn.device_ms for turn in rounds if turn.device_ms),
                gpu_memory_bytes=max(self._gpu_peaks, default=None),
                image_size=load.image_size,
                changes=setting.changes,
                quality=qualities.get((setting, load.image_size)),
            )

    def _at(self, load: Load, *request: Any) -> Any:
        """The process's answer, unless the setting was given up; a load that cannot run is dropped."""
        if load not in self._measured:
            return None
        try:
            return self._ask(*request)
        except UsageError as exc:  # the artifact has other sizes
            del self._measured[load]
            self._skip(str(exc), load)
        except NotFiniteError as exc:
            self._give_up(str(exc), "failed")
        except UnavailableError as exc:
            self._give_up(str(exc))
        return None

    def _give_up(self, reason: str, status: Literal["failed", "skipped", "left out"] = "skipped") -> None:
        self._measured.clear()
        self._skip(reason, None, status)

    def _skip(
        self, reason: str, load: Load | None, status: Literal["failed", "skipped", "left out"] = "skipped"
    ) -> None:
        setting = self.request.setting
        batch_size, image_size = (None, None) if load is None else load
        self.skipped.append(NotMeasured(*setting.selected, batch_size, reason, status, setting.changes, image_size))
