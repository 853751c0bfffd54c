"""Answer queries that arrive at given times, in the process of a setting.

Arrivals are drawn in advance, so each session takes the next query itself and sleeps until it is due: a queue, first
come first served, without a thread that could fall behind. A latency begins at the scheduled arrival, however late the
query is taken ("coordinated omission" is the mistake of measuring from the time of sending: Tene, "How NOT to measure
latency", 2013, and github.com/giltene/wrk2).
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from vitdeploy.assess.benchmark.scenarios.arrivals import Answers
from vitdeploy.assess.benchmark.scenarios.queue_model import most_late
from vitdeploy.assess.benchmark.timer import Opened, Timer
from vitdeploy.assess.data.images import feeds
from vitdeploy.specs import PixelStage

if TYPE_CHECKING:
    from collections.abc import Callable

    from vitdeploy.assess.benchmark.setting import Load
    from vitdeploy.runtimes.base import Runtime

_LEAD_S = 0.02  # from the start of the threads to the first arrival


@dataclasses.dataclass(frozen=True)
class Patience:
    """When to stop a run that misses its bound.

    Attributes:
        bound_s: Bound on the 99th percentile of the latency.
        limit_s: A query later than this stops the run if more than 1 % of the planned queries are above the bound.
    """

    bound_s: float
    limit_s: float


class LoadGenerator(Timer):
    """Handles the requests to a worker: as a timer, and `add_sessions` and `answer`."""

    def add_sessions(self, sessions: int) -> Opened:
        """Open the artifact until there are this many sessions; after `open`. The last one's `Opened`."""
        self._sessions = [self._runtime]
        self._threads = ThreadPoolExecutor(sessions)
        begin = time.perf_counter()
        while len(self._sessions) < sessions:
            begin = time.perf_counter()
            self._sessions.append(self._job.setting.open(self._job.bundle, self._job.device))
        load_ms = 1e3 * (time.perf_counter() - begin)
        return Opened(load_ms, self._sessions[-1].threads, self._sessions[-1].details)

    def answer(self, arrivals: np.ndarray, load: Load, patience: Patience | None = None) -> Answers:
        """Answer queries, each from encoded image files to outputs.

        Args:
            arrivals: Seconds from the start of the run, ascending. With zeros, a session answers one query after the
                other: service times are then latencies of single-stream.
            load: Images per query.
            patience: When to stop early; by default the run is completed.
        """
        return answered(
            arrivals,
            [functools.partial(self._answer, session, load) for session in self._sessions],
            self._threads,
            patience,
        )

    def _answer(self, session: Runtime, load: Load, query: int) -> None:
        images, processor = self._job.images, self._processor(load.image_size)
        if load.batch_size > 1 and (session.pixels.stage is PixelStage.DECODED or processor.output_size is None):
            images = images[:1]  # others may have other sizes
        start = query * load.batch_size
        batch = [images[index % len(images)] for index in range(start, start + load.batch_size)]
        session.run(feeds(session.inputs, processor(batch, pixels=session.pixels)))


def answered(
    arrivals: np.ndarray,
    sessions: list[Callable[[int], None]],
    threads: ThreadPoolExecutor,
    patience: Patience | None = None,
    *,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> Answers:
    """Have sessions answer queries by number, each in a thread of its own; see `LoadGenerator.answer`."""
    count = len(arrivals)
    latencies, services, lateness = (np.full(count, np.nan) for _ in range(3))
    allowed, numbers, lock, stop = most_late(count), itertools.count(), threading.Lock(), threading.Event()
    late = 0
    begin = clock() + (_LEAD_S if arrivals.any() else 0.0)

    def serve(answer: Callable[[int], None]) -> None:
        nonlocal late
        free = begin
        while not stop.is_set():
            with lock:
                query = next(numbers)
            if query >= count:
                return
            due = begin + float(arrivals[query])
            while (wait := due - clock()) > 0:
                sleep(wait)
            if due > free:
                lateness[query] = clock() - due
            answer(query)
            done = clock()
            latencies[query], services[query] = done - due, done - max(due, free)
            free = done
            if patience is not None and latencies[query] > patience.bound_s:
                with lock:
                    late += 1
                if late > allowed and latencies[query] > patience.limit_s:
                    stop.set()

    def serve_or_stop(answer: Callable[[int], None]) -> None:
        with contextlib.ExitStack() as stack:
            stack.callback(stop.set)  # an error ends the other threads
            serve(answer)
            stack.pop_all()

    for served in [threads.submit(serve_or_stop, answer) for answer in sessions]:
        served.result()
    there = ~np.isnan(latencies)
    return Answers(latencies[there], services[there], lateness[~np.isnan(lateness)], stop.is_set())
