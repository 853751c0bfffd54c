"""A process that times one backend: sessions in one process disturb each other."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import multiprocessing
import os
import signal
import statistics
import sys
import time
from multiprocessing import resource_tracker
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitdeploy.assess.data.images import feeds
from vitdeploy.errors import NotFiniteError, UnavailableError, UsageError, VitDeployError, check_count
from vitdeploy.predictor import load_processor
from vitdeploy.runtimes import BACKENDS, runtime_class
from vitdeploy.specs import PixelStage
from vitdeploy.system.cpu import MOST_THREADS, openmp_is_set, usable_cpus
from vitdeploy.system.quiet import quiet_libraries
from vitdeploy.system.typed_lines import typed_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from multiprocessing.connection import Connection

    from vitdeploy.assess.runs.targets import Selected
    from vitdeploy.bundle.bundle import Bundle
    from vitdeploy.images.processor import ImageProcessor
    from vitdeploy.runtimes.base import Runtime
    from vitdeploy.system.cpu import ThreadCount

# Warm-up ends when the median of a window of runs is within this fraction of the previous window's.
WINDOW, WITHIN, MOST_WINDOWS = 3, 0.05, 10
# ONNX Runtime's idle threads spin for 40 ms after a run, torch's for 10 ms (1.32 and 2.13, by their processes' CPU
# time): the next backend waits until the cores are free.
PAUSE_S = 0.1
_ENDING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


@dataclasses.dataclass(frozen=True)
class Job:
    """The job of a timing process: `threads` is 0 for the default, and `images` are encoded image files."""

    bundle: Bundle
    selected: Selected
    device: str
    threads: int
    images: tuple[bytes, ...]


@dataclasses.dataclass(frozen=True)
class Opened:
    """An opened artifact; see `Latency`."""

    load_ms: float
    threads: ThreadCount | None
    details: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Round:
    """Milliseconds of each run on preprocessed input; of each from image files; and of preprocessing in the latter."""

    ready_ms: tuple[float, ...]
    images_ms: tuple[float, ...]
    processing_ms: tuple[float, ...]


@contextlib.contextmanager
def worker(job: Job) -> Iterator[Callable[..., Any]]:
    """Start a process for a job; yield a function that sends a request and returns the answer; see `_serve`.

    It is spawned, so a script that measures needs the usual `if __name__ == "__main__":`. It does not outlive the
    block.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs,))

    def ask(*request: Any) -> Any:
        try:
            ours.send(request)
            answer = ours.recv()
        except (EOFError, ConnectionError) as exc:
            process.join(timeout=10)
            raise UnavailableError(
                f"the process that times {job.selected} ended with exit code {process.exitcode}",
                what=str(job.selected), found=process.exitcode,
                hint="see its messages on stderr; free memory, or put what a script calls under "
                'if __name__ == "__main__":',
            ) from exc  # fmt: skip
        if isinstance(answer, VitDeployError):
            raise answer
        return answer

    with ours:
        # Close `theirs` here once the worker has its copy, so that each side notices the other's end.
        with theirs, _signals_wait():
            process.start()
        try:
            # Not an argument of the process: its start would wait forever for one that ended before it read all.
            with contextlib.suppress(ConnectionError):  # it ended; `ask` says so
                ours.send(job)
            yield ask
        finally:
            process.kill()
            process.join()


@contextlib.contextmanager
def _signals_wait() -> Iterator[None]:
    """Block signals: a half-started process would read half of its job and report an error.

    Processes started here inherit the mask.
    """
    if not hasattr(signal, "pthread_sigmask"):  # not POSIX
        yield
        return
    resource_tracker.ensure_running()  # otherwise the first process start does this, and lets signals through
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(connection: Connection) -> None:
    """Answer each request after the job (a method name of `_Timer`, its arguments) with the result or an error."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is interrupted too, and ends this process
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)
    quiet_libraries()  # as the command line does
    with contextlib.suppress(EOFError, ConnectionError):  # the parent is gone
        timer = _Timer(connection.recv())
        while True:
            name, *arguments = connection.recv()
            try:
                answer = getattr(timer, name)(*arguments)
            except VitDeployError as exc:
                answer = exc
            connection.send(answer)


class _Timer:
    """Handles the requests to a worker: `open` first."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._ready: dict[int, Mapping[str, np.ndarray]] = {}

    def open(self) -> Opened:
        job, name = self._job, self._job.selected.backend
        self._processor: ImageProcessor = load_processor(job.bundle)
        if name:
            runtime_class(name)  # imports its libraries
        package = BACKENDS[name].package if name else ""
        if package == "torch":
            _set_torch_threads(job.threads)
        options: dict[str, Any] = {"intra_op_threads": job.threads} if job.threads and package == "onnxruntime" else {}
        begin = time.perf_counter()
        self._runtime: Runtime = job.selected.open(job.bundle, options, device=job.device)
        load_ms = _since(begin)
        return Opened(load_ms, self._runtime.threads, self._runtime.details)

    def first_run(self, batch_size: int) -> float:
        """Milliseconds of the first run; raises NotFiniteError if an output is NaN or infinite."""
        inputs = self._inputs(batch_size)
        begin = time.perf_counter()
        outputs = self._runtime.run(inputs)
        elapsed = _since(begin)
        for name, value in outputs.items():
            if not np.isfinite(value).all():
                raise NotFiniteError(
                    f"{self._job.selected} gives NaN or infinite {name}, so it was not timed",
                    what=name, where=str(self._job.selected),
                    hint=f"find the cause: {typed_line('compare', self._job.bundle.path)}",
                )  # fmt: skip
        return elapsed

    def warm_up(self, batch_size: int) -> bool:
        """Run until times are steady; True if they are."""
        inputs, before = self._inputs(batch_size), None
        for _ in range(MOST_WINDOWS):
            median = statistics.median(self._run_ms(inputs) for _ in range(WINDOW))
            if before is not None and abs(median - before) <= WITHIN * before:
                return True
            before = median
        return False

    def time(self, batch_size: int, runs: int) -> Round:
        """Time runs, after one untimed run of each kind."""
        time.sleep(PAUSE_S)
        inputs = self._inputs(batch_size)
        ready = [self._run_ms(inputs) for _ in range(runs + 1)]
        images = [self._images_ms(batch_size) for _ in range(runs + 1)]
        return Round(tuple(ready[1:]), tuple(total for total, _ in images[1:]), tuple(part for _, part in images[1:]))

    def peak_memory_bytes(self) -> int | None:
        """Peak resident memory so far."""
        status = Path("/proc/self/status")
        if status.exists():  # `getrusage` would include the parent's memory at the time of the fork
            lines = status.read_text(encoding="ascii", errors="replace").splitlines()
            return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), None)
        if os.name == "nt":
            return None
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak

    def _inputs(self, batch_size: int) -> Mapping[str, np.ndarray]:
        if batch_size not in self._ready:
            self._ready[batch_size] = feeds(self._runtime.inputs, self._pixel_values(batch_size))
        return self._ready[batch_size]

    def _pixel_values(self, batch_size: int) -> np.ndarray:
        images = self._job.images
        if self._runtime.pixels.stage is PixelStage.DECODED or self._processor.output_size is None:
            images = images[:1]  # others may have other sizes
        batch = list(itertools.islice(itertools.cycle(images), batch_size))
        return self._processor(batch, pixels=self._runtime.pixels)

    def _run_ms(self, inputs: Mapping[str, np.ndarray]) -> float:
        begin = time.perf_counter()
        self._runtime.run(inputs)
        return _since(begin)

    def _images_ms(self, batch_size: int) -> tuple[float, float]:
        begin = time.perf_counter()
        inputs = feeds(self._runtime.inputs, self._pixel_values(batch_size))
        processing = _since(begin)
        self._runtime.run(inputs)
        return _since(begin), processing


def _set_torch_threads(wanted: int) -> None:
    """Set torch's number of threads; 0 limits torch's default, which ignores cgroup quotas.

    An environment variable would come too late if the caller's script, which a spawned process runs again, imports
    torch.
    """
    import torch

    cpus = usable_cpus()
    if not wanted and cpus.limited and not openmp_is_set():
        wanted = min(torch.get_num_threads(), cpus.threads.count)
    if wanted:
        torch.set_num_threads(wanted)


def _since(begin: float) -> float:
    return 1e3 * (time.perf_counter() - begin)


def check_threads(threads: int, selected: Sequence[Selected]) -> None:
    """Raise UsageError unless the number of threads is possible and every backend is known to respect it."""
    check_count("threads", threads, 0, MOST_THREADS)
    deaf = {choice.backend for choice in selected if choice.backend} - {*_HEED_THREADS}
    if threads and deaf:
        problem = f"threads has no effect on {', '.join(sorted(deaf))}, only on {', '.join(_HEED_THREADS)}"
        raise UsageError(problem, what="threads", expected=_HEED_THREADS, found=sorted(deaf), hint="leave it out")


_HEED_THREADS = [name for name, row in BACKENDS.items() if row.package in ("torch", "onnxruntime")]
