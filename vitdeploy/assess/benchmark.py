"""Latency of backends side by side, each alone in its process."""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import signal
import time
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from vitdeploy.assess.samples import SYNTHETIC_SIZE, feeds, synthetic_images
from vitdeploy.bundle import Bundle
from vitdeploy.errors import UnavailableError, UsageError, VitDeployError
from vitdeploy.predictor import load_processor
from vitdeploy.runtimes import open_runtime

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from multiprocessing.connection import Connection

    from vitdeploy.images import ImageSource
    from vitdeploy.processor import ImageProcessor
    from vitdeploy.runtimes.base import Runtime

WARM_UP_RUNS = 3
# ONNX Runtime's idle threads spin for 40 ms after a run, torch's for 10 (1.32 and 2.13, by their processes' CPU time):
# whoever runs next waits until the cores are free.
PAUSE_S = 0.1
_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True)
class Latency:
    """Times of `Runtime.run` on ready input, image processing not included.

    Attributes:
        backend: what ran.
        precision: of the artifact.
        batch_size: images a run.
        times_ms: every run, in milliseconds, warm-up left out.
        details: what really ran.
    """

    backend: str
    precision: str
    batch_size: int
    times_ms: tuple[float, ...]
    details: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.backend} {self.precision}"

    def percentile_ms(self, percent: float) -> float:
        return float(np.percentile(self.times_ms, percent))

    @property
    def images_per_second(self) -> float:
        """At the median time."""
        return 1e3 * self.batch_size / self.percentile_ms(50)

    def to_dict(self) -> dict[str, Any]:
        return {
            "backend": self.backend,
            "precision": self.precision,
            "batch_size": self.batch_size,
            "runs": len(self.times_ms),
            **{f"p{percent}_ms": self.percentile_ms(percent) for percent in (50, 90, 99)},
            "images_per_second": self.images_per_second,
            "details": self.details,
        }


def measure_latency(
    bundle: str | os.PathLike[str],
    backends: Sequence[tuple[str, str]],
    *,
    batch_sizes: Sequence[int] = (1,),
    rounds: int = 10,
    runs: int = 20,
    on_step: Callable[[str], None] = lambda _: None,
) -> list[Latency]:
    """Time backends in turns, each in a process of its own: sessions in one process disturb each other.

    The processes are spawned, so a script that calls this needs the usual `if __name__ == "__main__":`. None of them
    outlives the call, however it ends.

    Args:
        bundle: its folder.
        backends: pairs (backend, precision).
        batch_sizes: images a run.
        rounds: turns that each backend gets.
        runs: timed runs of each batch size a turn, after `WARM_UP_RUNS` that are not.
        on_step: called with what is being done.

    Returns:
        One for each batch size and backend, in the order of the arguments.

    Raises:
        UsageError: an argument is not what it must be.
        BundleError: the bundle, or an artifact of it, is absent or was altered.
        UnavailableError: a backend cannot be had, or its process died.
    """
    if not (backends and batch_sizes and min(*batch_sizes, rounds, runs) >= 1):
        raise UsageError(
            f"a measurement needs backends, and batch sizes, rounds and runs from 1 up; got {list(backends)}, "
            f"{list(batch_sizes)}, {rounds} and {runs}"
        )
    times: dict[tuple[int, int], list[float]] = {}
    with contextlib.ExitStack() as stack:
        workers = []
        for backend, precision in backends:
            on_step(f"opening {backend} {precision}")
            workers.append(stack.enter_context(_worker(str(bundle), backend, precision)))
        details = [worker() for worker in workers]
        for turn in range(rounds):
            on_step(f"timing, round {turn + 1} of {rounds}")
            for position, worker in enumerate(workers):
                for size, taken in zip(batch_sizes, worker(batch_sizes, runs), strict=True):
                    times.setdefault((size, position), []).extend(taken)
    return [
        Latency(backend, precision, size, tuple(times[size, position]), details[position])
        for size in batch_sizes
        for position, (backend, precision) in enumerate(backends)
    ]


def measure_processing(processor: ImageProcessor, images: Sequence[ImageSource]) -> tuple[float, ...]:
    """Milliseconds from each image, by itself, to what a runtime takes; read and decoded within, after a warm-up."""
    for image in images[:WARM_UP_RUNS]:
        processor(image)
    return tuple(_elapsed_ms(processor, image) for image in images)


@contextlib.contextmanager
def _worker(bundle: str, backend: str, precision: str) -> Iterator[Callable[..., Any]]:
    """A process with an open runtime, as a function that sends a request, if any, and returns `_serve`'s answer."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, bundle, backend, precision))

    def ask(*request: Any) -> Any:
        try:
            if request:
                ours.send(request)
            answer = ours.recv()
        except (EOFError, ConnectionError) as exc:
            process.join(timeout=10)
            raise UnavailableError(
                f"the process that times {backend} {precision} must answer, it ended with exit code "
                f"{process.exitcode}; see its messages on stderr, or free memory"
            ) from exc
        if isinstance(answer, VitDeployError):
            raise answer
        return answer

    with ours:
        with theirs:  # closed here once the worker has its copy, so that each side sees the other's end
            process.start()
        try:
            yield ask
        finally:
            process.kill()
            process.join()


def _serve(connection: Connection, bundle: str, backend: str, precision: str) -> None:
    """Send the runtime's details, then for each request (batch sizes, runs) a list of milliseconds for each size."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is interrupted too, and ends this process
    with contextlib.suppress(EOFError, ConnectionError):  # the parent is gone
        try:
            opened = Bundle.open(bundle)
            processor = load_processor(opened)
            with open_runtime(opened, backend, precision=precision) as runtime:
                connection.send(runtime.details)
                while True:
                    batch_sizes, runs = connection.recv()
                    time.sleep(PAUSE_S)
                    connection.send([_times(runtime, _inputs(runtime, processor, size), runs) for size in batch_sizes])
        except VitDeployError as exc:
            connection.send(exc)


def _inputs(runtime: Runtime, processor: ImageProcessor, batch_size: int) -> Mapping[str, np.ndarray]:
    images = synthetic_images(batch_size, *(processor.output_size or SYNTHETIC_SIZE))
    return feeds(runtime.inputs, processor(images, pixels=runtime.pixels))


def _times(runtime: Runtime, inputs: Mapping[str, np.ndarray], runs: int) -> list[float]:
    times = [_elapsed_ms(runtime.run, inputs) for _ in range(WARM_UP_RUNS + runs)]
    return times[WARM_UP_RUNS:]


def _elapsed_ms(call: Callable[[_T], object], argument: _T) -> float:
    start = time.perf_counter()
    call(argument)
    return 1e3 * (time.perf_counter() - start)
