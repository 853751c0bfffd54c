"""Measure the settings of a bundle in a scenario, each in its own process."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from vitdeploy.assess.benchmark.image_files import image_files
from vitdeploy.assess.benchmark.result import NotMeasured
from vitdeploy.assess.benchmark.scenarios.arrivals import Answers
from vitdeploy.assess.benchmark.scenarios.load_generator import LoadGenerator, Patience
from vitdeploy.assess.benchmark.scenarios.options import OFFLINE, SERVER, Scenario, check_queries
from vitdeploy.assess.benchmark.scenarios.queue_model import QueueModel
from vitdeploy.assess.benchmark.scenarios.rate_search import RateSearch
from vitdeploy.assess.benchmark.scenarios.results import Measured, OfflineResult, ScenarioBenchmark, StreamResult
from vitdeploy.assess.benchmark.scenarios.server_result import ServerResult
from vitdeploy.assess.benchmark.setting import Load, settings_of, thread_counts
from vitdeploy.assess.benchmark.timer import Job, Opened
from vitdeploy.assess.benchmark.worker import worker
from vitdeploy.assess.environment.conditions import Conditions, moment
from vitdeploy.assess.environment.machine import machine
from vitdeploy.assess.metrics.order_statistics import Percentile, queries_needed
from vitdeploy.bundle.bundle import Bundle
from vitdeploy.bundle.retry import retry_if_changed
from vitdeploy.errors import MissingDependencyError, NotFiniteError, UnavailableError, UsageError
from vitdeploy.predictor import check_batch_size, load_processor
from vitdeploy.system.argument_types import typed
from vitdeploy.system.progress import SILENT, Progress

_IMAGES = 64  # that queries take in turn
_PILOT_QUERIES = 8  # per session: their times plan the run
_CAPACITY_S = 1.0  # of all sessions at work, whose service times predict the rate
_PATIENCE = 10  # bounds: a query that is later ends the replay of a given rate that is already missed


@typed
@retry_if_changed
def benchmark_scenario(
    bundle: str | os.PathLike[str] | Bundle,
    scenario: Scenario,
    *,
    batch_sizes: Sequence[int] | None = None,
    backends: Sequence[str] | None = None,
    settings: Sequence[str] = (),
    device: str = "cpu",
    threads: int | Sequence[int] = 0,
    images: str | os.PathLike[str] | None = None,
    progress: Progress = SILENT,
) -> ScenarioBenchmark:
    """Measure every artifact and the reference under load, one after the other, each in its own process.

    The processes are spawned, so a script that calls this needs the usual `if __name__ == "__main__":`. No process
    outlives the call.

    Args:
        bundle: The bundle or its folder.
        scenario: Which queries arrive when, and what is reported.
        batch_sizes: Images per query of multi-stream, or per run of offline, 1 to 2**20. Default: 8.
        backends, settings, device, threads: As in `benchmark`; the threads are those of each session.
        images: Folder of images, searched recursively; the first 64 are used. Default: synthetic JPEG files of 640x480
            pixels.
        progress: Receives each step.

    Raises:
        UsageError: If an argument is invalid.
        BundleError: If the bundle or an artifact is missing or was altered.
        InputError: If there are no images, or one cannot be read.
    """
    sizes = scenario.batch_sizes(None if batch_sizes is None else tuple(dict.fromkeys(batch_sizes)))
    for size in sizes:
        check_batch_size(size)
    bundle = Bundle.of(bundle)
    counts = thread_counts(threads)
    chosen = settings_of(bundle, backends, settings, counts)
    load_processor(bundle)  # or raises before a process is started
    files = image_files(images, _IMAGES)
    before = moment()
    measured: list[Measured] = []
    skipped: list[NotMeasured] = []
    for setting in chosen:
        optional = not (backends or settings) and setting.is_reference
        found = _Measurement(scenario, Job(bundle, setting, device, files.encoded), optional, progress)
        found.measure(sizes)
        measured += found.results
        skipped += found.skipped
    return ScenarioBenchmark(
        bundle=str(bundle.path),
        scenario=scenario,
        machine=machine(),
        settings={
            "batch_sizes": list(sizes),
            "device": device,
            "threads": list(counts),
            "images": files.kind,
        },
        results=tuple(measured),
        skipped=tuple(skipped),
        conditions=Conditions.since(before),
        processor=bundle.manifest.processor,
        left_out=files.left_out,
    )


class _Measurement:
    """A setting's processes and their results; `optional` leaves out a package that is not installed."""

    def __init__(self, scenario: Scenario, job: Job, optional: bool, progress: Progress) -> None:
        self.results: list[Measured] = []
        self.skipped: list[NotMeasured] = []
        self._scenario, self._job, self._optional, self._progress = scenario, job, optional, progress
        self._ask: Callable[..., Any]

    def measure(self, batch_sizes: Sequence[int]) -> None:
        setting = self._job.setting
        with worker(self._job, LoadGenerator) as self._ask:
            try:
                self._progress.step(f"opening {setting}")
                opened = self._opened()
                for size in batch_sizes:
                    try:
                        self.results.append(self._measured(Load(size), opened))
                    except UsageError as exc:  # the artifact has other sizes
                        self._skip(str(exc), size)
            except NotFiniteError as exc:
                self._skip(str(exc), status="failed")
            except MissingDependencyError as exc:
                self._skip(str(exc), status="left out" if self._optional else "skipped")
            except UnavailableError as exc:
                self._skip(str(exc))

    def _opened(self) -> Opened:
        self._ask("open")
        opened: Opened = self._ask("add_sessions", self._scenario.sessions)
        return opened

    def _warmed_up(self, load: Load) -> float:
        """Mean seconds of a query, with every session at work."""
        self._ask("first_run", load)
        self._ask("warm_up", load)
        pilot = self._answers(np.zeros(_PILOT_QUERIES * self._scenario.sessions), load)
        return float(pilot.services_s.mean())

    def _measured(self, load: Load, opened: Opened) -> Measured:
        scenario, setting = self._scenario, self._job.setting
        self._progress.step(f"warming up {setting}")
        about_s = self._warmed_up(load)
        artifact, backend, precision = setting.selected
        common: dict[str, Any] = {
            "artifact": artifact, "backend": backend, "precision": precision, "changes": setting.changes,
            "batch_size": load.batch_size, "sessions": scenario.sessions, "threads": opened.threads,
            "details": opened.details,
        }  # fmt: skip
        if scenario.name == SERVER:
            return ServerResult(**self._server(load, about_s), **common)
        self._progress.step(f"{scenario.name}, {setting}, {load}")
        if scenario.name == OFFLINE:
            services_s, seconds = self._one_after_another(load, about_s)
            return OfflineResult(images=len(services_s) * load.batch_size, seconds=seconds, **common)
        # Each query begins when the previous one is answered, so that its latency is its service time.
        services_s, seconds = self._one_after_another(load, about_s, fewest=queries_needed(90, late=1))
        return StreamResult(
            percentile=Percentile.of(scenario.percent or 0, (1e3 * services_s).tolist()),
            median_ms=1e3 * float(np.median(services_s)),
            seconds=seconds,
            **common,
        )

    def _one_after_another(self, load: Load, about_s: float, fewest: int = 1) -> tuple[np.ndarray, float]:
        """Service times of at least this many queries and for the scenario's duration; and the seconds they took."""
        services_s, seconds, sessions = np.empty(0), 0.0, self._scenario.sessions
        while (left_s := self._scenario.duration_s - seconds) > 0 or len(services_s) < fewest:
            # A multiple of the sessions, so that none is idle at the end.
            count = sessions * max(math.ceil(left_s / about_s), fewest - len(services_s), 1)
            check_queries(len(services_s) + count)
            answers = self._answers(np.zeros(count), load)
            services_s = np.concatenate([services_s, answers.services_s])
            seconds += float(answers.latencies_s.max())
        return services_s, seconds

    def _server(self, load: Load, about_s: float) -> dict[str, Any]:
        """The figures of a given rate, or of the highest."""
        scenario = self._scenario
        bound_s = (scenario.p99_ms or 0.0) / 1e3
        patience = Patience(bound_s, 0.0 if scenario.rate is None else _PATIENCE * bound_s)
        search = RateSearch(
            lambda arrivals: self._answers(arrivals, load, patience),
            confirm=lambda arrivals: self._answers_of_a_new_process(arrivals, load, patience),
            sessions=scenario.sessions, bound_s=bound_s, duration_s=scenario.duration_s, seed=scenario.seed,
            progress=self._progress,
        )  # fmt: skip
        if scenario.rate is not None:
            replay = search.replay(scenario.rate, scenario.seed)
            model = QueueModel([replay.answers.services_s], scenario.sessions, bound_s)
            return {
                "bound_ms": scenario.p99_ms, "rate": scenario.rate, "invalid_rate": None, "searched": False,
                "holds": model.holds(scenario.rate, replay.queries), "replays": (replay,), "measured": 1,
            }  # fmt: skip
        queries = scenario.sessions * max(math.ceil(_CAPACITY_S / about_s), _PILOT_QUERIES)
        found = search.find(self._answers(np.zeros(queries), load).services_s)
        return {
            "bound_ms": scenario.p99_ms, "rate": found.rate, "invalid_rate": found.invalid_rate, "searched": True,
            "holds": found.holds, "replays": found.confirmations or found.replays, "measured": len(found.replays),
        }  # fmt: skip

    def _answers_of_a_new_process(self, arrivals: np.ndarray, load: Load, patience: Patience) -> Answers:
        """The place of memory differs between processes, and with it their speed: a rate must hold in each."""
        before = self._ask
        with worker(self._job, LoadGenerator) as self._ask:
            self._opened()
            self._warmed_up(load)
            answers = self._answers(arrivals, load, patience)
        self._ask = before
        return answers

    def _answers(self, arrivals: np.ndarray, load: Load, patience: Patience | None = None) -> Answers:
        answers: Answers = self._ask("answer", arrivals, load, patience)
        return answers

    def _skip(
        self, reason: str, batch_size: int | None = None, status: Literal["failed", "skipped", "left out"] = "skipped"
    ) -> None:
        setting = self._job.setting
        self.skipped.append(NotMeasured(*setting.selected, batch_size, reason, status, setting.changes))
