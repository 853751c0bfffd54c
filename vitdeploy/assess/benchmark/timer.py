"""Time one setting in this process."""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import os
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitdeploy.assess.data.images import feeds
from vitdeploy.assess.environment.gpu_memory import gpu_memory_bytes
from vitdeploy.assess.metrics.features import TokenVector, vectors
from vitdeploy.assess.runs.reference import Batches, run_batches
from vitdeploy.errors import NotFiniteError, UsageError, typed_line
from vitdeploy.predictor import load_processor
from vitdeploy.runtimes import BACKENDS, runtime_class
from vitdeploy.specs import PixelStage
from vitdeploy.system.cpu import openmp_is_set, usable_cpus

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vitdeploy.assess.benchmark.setting import Load, Setting
    from vitdeploy.bundle.bundle import Bundle
    from vitdeploy.images.processor import ImageProcessor
    from vitdeploy.runtimes.base import Runtime
    from vitdeploy.system.cpu import ThreadCount

# Warm-up ends when the median of a window of runs is within this fraction of the previous window's.
WINDOW, WITHIN, MOST_WINDOWS = 3, 0.05, 10
# ONNX Runtime's idle threads spin for 40 ms after a run, torch's for 10 ms (1.32 and 2.13, by their processes' CPU
# time): the next process waits until the cores are free.
PAUSE_S = 0.1
_BATCH = 8  # images per run where time does not matter


@dataclasses.dataclass(frozen=True)
class Job:
    """The job of a timing process.

    Attributes:
        bundle: The setting's bundle.
        setting: Setting to time.
        device: "cpu", "cuda" or "cuda:1".
        images: Encoded image files.
        from_files: True to time runs from image files too.
        any_size: True for images of other sizes than the model's.
    """

    bundle: Bundle
    setting: Setting
    device: str
    images: tuple[bytes, ...]
    from_files: bool = True
    any_size: bool = False


@dataclasses.dataclass(frozen=True)
class Opened:
    """An opened artifact; see `Latency`."""

    load_ms: float
    threads: ThreadCount | None
    details: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Round:
    """Times of a turn, in milliseconds.

    Attributes:
        ready_ms: Each run on preprocessed input.
        images_ms: Each run from image files.
        processing_ms: Preprocessing in these.
        device_ms: Each run on arrays of the GPU.
    """

    ready_ms: tuple[float, ...]
    images_ms: tuple[float, ...]
    processing_ms: tuple[float, ...]
    device_ms: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True)
class Usage:
    """Resources of a process so far; see `Latency`."""

    peak_memory_bytes: int | None
    gpu_memory_bytes: int | None


class Timer:
    """Handles the requests to a worker: `open` first."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._ready: dict[Load, Mapping[str, np.ndarray]] = {}
        self._on_device: dict[Load, tuple[dict[str, Any], dict[str, Any]]] = {}
        self._processors: dict[tuple[int, int] | None, ImageProcessor] = {}

    def open(self) -> Opened:
        job, backend = self._job, self._job.setting.selected.backend
        self._processors[None] = load_processor(job.bundle)
        if backend:
            runtime_class(backend)  # imports its libraries
            if BACKENDS[backend].package == "torch":
                _set_torch_threads(job.setting.threads)
        begin = time.perf_counter()
        self._runtime: Runtime = job.setting.open(job.bundle, job.device, any_size=job.any_size)
        load_ms = _since(begin)
        return Opened(load_ms, self._runtime.threads, self._runtime.details)

    def first_run(self, load: Load) -> float:
        """Milliseconds of the first run; raises NotFiniteError if an output is NaN or infinite."""
        inputs = self._inputs(load)
        begin = time.perf_counter()
        outputs = self._runtime.run(inputs)
        elapsed = _since(begin)
        for name, value in outputs.items():
            if not np.isfinite(value).all():
                raise NotFiniteError(
                    f"{self._job.setting} gives NaN or infinite {name}, so it was not timed",
                    what=name, where=str(self._job.setting),
                    hint=f"find the cause: {typed_line('compare', self._job.bundle.path)}",
                )  # fmt: skip
        return elapsed

    def warm_up(self, load: Load) -> bool:
        """Run until times are steady; True if they are."""
        inputs, before = self._inputs(load), None
        for _ in range(MOST_WINDOWS):
            median = statistics.median(self._run_ms(inputs) for _ in range(WINDOW))
            if before is not None and abs(median - before) <= WITHIN * before:
                return True
            before = median
        return False

    def pause(self) -> None:
        """Wait until the threads of the process before are idle."""
        time.sleep(PAUSE_S)

    def time(self, load: Load, runs: int) -> Round:
        """Time runs, after one untimed run of each kind."""
        inputs = self._inputs(load)
        ready = [self._run_ms(inputs) for _ in range(runs + 1)]
        images = [self._images_ms(load) for _ in range(runs + 1 if self._job.from_files else 0)]
        device = self._device_ms(load, runs + 1)
        totals, parts = (tuple(pair[side] for pair in images[1:]) for side in (0, 1))
        return Round(tuple(ready[1:]), totals, parts, tuple(device[1:]))

    def vectors(self, files: tuple[bytes, ...], image_size: tuple[int, int] | None) -> dict[str, np.ndarray]:
        """Vectors (N, D) of N image files by output; see `vitdeploy.assess.metrics.features.vectors`."""
        batches = Batches(self._processor(image_size), files, _BATCH)
        token = TokenVector.of_dict(self._job.bundle.read_config().model)
        return run_batches(self._runtime, batches.feeds(self._runtime), keep=lambda outputs: vectors(outputs, token))

    def usage(self) -> Usage:
        gpu = None if self._runtime.gpu is None else gpu_memory_bytes(self._runtime.gpu)
        return Usage(self.peak_memory_bytes(), gpu)

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

    def _inputs(self, load: Load) -> Mapping[str, np.ndarray]:
        if load not in self._ready:
            self._ready[load] = feeds(self._runtime.inputs, self._pixel_values(load))
        return self._ready[load]

    def _pixel_values(self, load: Load) -> np.ndarray:
        images, processor = self._job.images, self._processor(load.image_size)
        if self._runtime.pixels.stage is PixelStage.DECODED or processor.output_size is None:
            images = images[:1]  # others may have other sizes
        batch = list(itertools.islice(itertools.cycle(images), load.batch_size))
        return processor(batch, pixels=self._runtime.pixels)

    def _processor(self, size: tuple[int, int] | None) -> ImageProcessor:
        if size not in self._processors:
            if size is not None and self._runtime.pixels.stage is PixelStage.DECODED:
                raise UsageError(
                    f"{self._job.setting} resizes images itself, so image sizes do not apply",
                    what="image_size", found=size, hint="leave them out",
                )  # fmt: skip
            self._processors[size] = self._processors[None].resized(*(size or ()))
        return self._processors[size]

    def _run_ms(self, inputs: Mapping[str, np.ndarray]) -> float:
        begin = time.perf_counter()
        self._runtime.run(inputs)
        return _since(begin)

    def _images_ms(self, load: Load) -> tuple[float, float]:
        begin = time.perf_counter()
        inputs = feeds(self._runtime.inputs, self._pixel_values(load))
        processing = _since(begin)
        self._runtime.run(inputs)
        return _since(begin), processing

    def _device_ms(self, load: Load, runs: int) -> list[float]:
        """Times without transfers; none if the backend has no GPU, or torch has no arrays there."""
        gpu, inputs = self._runtime.gpu, self._inputs(load)
        if gpu is None or not _torch_has(gpu):
            return []
        import torch

        if load not in self._on_device:
            place = _device_name(gpu)
            outputs = self._runtime.run(inputs)
            self._on_device[load] = (
                {name: torch.from_numpy(array).to(place) for name, array in inputs.items()},
                {name: torch.empty_like(torch.from_numpy(value), device=place) for name, value in outputs.items()},
            )
        feeds_there, outputs = self._on_device[load]
        times = []
        for _ in range(runs):
            begin = time.perf_counter()
            self._runtime.run_device(feeds_there, outputs)  # which returns when its work is complete
            times.append(_since(begin))
        return times


def _device_name(gpu: int) -> str:
    return f"cuda:{gpu}"


def _torch_has(gpu: int) -> bool:
    """True if torch is installed and can hold arrays on the GPU."""
    if importlib.util.find_spec("torch") is None:
        return False
    import torch

    return gpu < torch.cuda.device_count()


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
