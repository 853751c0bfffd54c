"""Latency of backends side by side, each alone in its process."""

from __future__ import annotations

import dataclasses
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import numpy as np

from vitdeploy.assess.samples import feeds
from vitdeploy.bundle import Bundle
from vitdeploy.runtimes import open_runtime

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from vitdeploy.runtimes.base import Runtime


@dataclasses.dataclass(frozen=True)
class Latency:
    """Times of `Runtime.run` on ready input, image processing not included.

    Attributes:
        backend: what ran.
        precision: of the artifact.
        batch_size: images a run.
        times_ms: every run, in milliseconds, warm-up left out.
    """

    backend: str
    precision: str
    batch_size: int
    times_ms: tuple[float, ...]

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
        }


def measure_latency(
    bundle: str | os.PathLike[str],
    backends: Sequence[tuple[str, str]],
    *,
    batch_size: int = 1,
    rounds: int = 10,
    runs: int = 20,
) -> list[Latency]:
    """Time backends in turns, each in a process of its own: sessions in one process disturb each other.

    The processes are spawned, so a script that calls this needs the usual `if __name__ == "__main__":`.

    Args:
        bundle: its folder.
        backends: pairs (backend, precision).
        batch_size: images a run.
        rounds: turns that each backend gets.
        runs: timed runs a turn, after two that are not.
    """
    times: list[list[float]] = [[] for _ in backends]
    context = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        workers = [stack.enter_context(ProcessPoolExecutor(1, mp_context=context)) for _ in backends]
        for worker, (backend, precision) in zip(workers, backends, strict=True):
            worker.submit(_open, str(bundle), backend, precision, batch_size).result()
        for _ in range(rounds):
            for worker, collected in zip(workers, times, strict=True):
                collected.extend(worker.submit(_time, runs).result())
    return [
        Latency(backend, precision, batch_size, tuple(collected))
        for (backend, precision), collected in zip(backends, times, strict=True)
    ]


# The state of a worker process: one runtime and its input.
_worker: dict[str, Any] = {}


def _open(bundle: str, backend: str, precision: str, batch_size: int) -> None:
    runtime: Runtime = open_runtime(Bundle.open(bundle), backend, precision=precision)
    shape = (batch_size, *runtime.inputs[0].shape[1:])
    pixel_values = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)  # type: ignore[arg-type]
    _worker.update(runtime=runtime, feeds=feeds(runtime.inputs, pixel_values))


def _time(runs: int, warm_up: int = 2) -> list[float]:
    times = []
    for _ in range(warm_up + runs):
        start = time.perf_counter()
        _worker["runtime"].run(_worker["feeds"])
        times.append(1e3 * (time.perf_counter() - start))
    return times[warm_up:]
