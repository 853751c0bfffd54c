"""Latency of every artifact of a bundle, each in its own process."""

from __future__ import annotations

import contextlib
import io
import os
import statistics
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from vitdeploy.assess.benchmark.worker import MOST_WINDOWS, WINDOW, WITHIN, Job, Opened, Round, check_threads, worker
from vitdeploy.assess.data.folder_listing import LeftOut, list_images
from vitdeploy.assess.data.images import synthetic_images
from vitdeploy.assess.environment.machine import machine
from vitdeploy.assess.metrics.latency import Benchmark, Latency, NotMeasured
from vitdeploy.assess.runs.targets import REFERENCE, Selected, select
from vitdeploy.bundle.bundle import Bundle
from vitdeploy.bundle.retry import retry_if_changed
from vitdeploy.errors import MissingDependencyError, NotFiniteError, UnavailableError, UsageError, check_count, readable
from vitdeploy.files.regular_file import MOST_IMAGE_BYTES, read_regular
from vitdeploy.images.open import open_image
from vitdeploy.predictor import check_batch_size, load_processor
from vitdeploy.system.argument_types import typed
from vitdeploy.system.progress import SILENT, Progress

if TYPE_CHECKING:
    from pathlib import Path


# (height, width) of the synthetic image files: VGA photographs, as many cameras write them.
_SYNTHETIC_SIZE = (480, 640)
_JPEG_QUALITY = 90
_MOST_SYNTHETIC = 64  # larger batches repeat them


@typed
@retry_if_changed
def benchmark(
    bundle: str | os.PathLike[str] | Bundle,
    *,
    batch_sizes: Sequence[int] = (1, 8),
    backends: Sequence[str] | None = None,
    device: str = "cpu",
    threads: int = 0,
    images: str | os.PathLike[str] | None = None,
    rounds: int = 10,
    runs: int = 10,
    progress: Progress = SILENT,
) -> Benchmark:
    """Time every artifact and the reference, in turns, each in its own process.

    The backends take turns in every round. In its turn, a backend runs every batch size on preprocessed input and then
    from encoded image files. Backends that cannot be measured here are listed in `skipped`. The processes are spawned,
    so a script that calls this needs the usual `if __name__ == "__main__":`. No process outlives the call.

    Args:
        bundle: The bundle or its folder.
        batch_sizes: Images per run, 1 to 2**20.
        backends: Backends such as "onnxruntime:fp16", see `select`. Default: the reference and every artifact.
        device: "cpu", "cuda" or "cuda:1".
        threads: Threads per backend, up to 1024; 0 for the default: `vitdeploy.system.cpu.session_threads` for ONNX
            Runtime, torch's choice within the cgroup quota for torch.
        images: Folder of images, searched recursively. Default: synthetic JPEG files of 640x480 pixels.
        rounds: Turns per backend.
        runs: Timed runs per turn, of each kind and batch size.
        progress: Receives each step and its progress.

    Raises:
        UsageError: If an argument is invalid.
        BundleError: If the bundle or an artifact is missing or was altered.
        InputError: If there are no images, or one cannot be read.
    """
    sizes = tuple(dict.fromkeys(batch_sizes))
    if not sizes:
        raise UsageError("batch_sizes is empty", what="batch_sizes", found=sizes, hint="give one or more sizes")
    for size in sizes:
        check_batch_size(size)
    for name, value in (("rounds", rounds), ("runs", runs)):
        check_count(name, value)
    bundle = Bundle.of(bundle)
    selection = select(bundle, backends)
    check_threads(threads, selection)
    load_processor(bundle)  # or raises before a process is started
    encoded, kind, left_out = _encoded(images, max(sizes))
    with contextlib.ExitStack() as stack:
        timed = [
            _Timed(
                selected,
                stack.enter_context(worker(Job(bundle, selected, device, threads, encoded))),
                sizes,
                asked=backends is not None or selected.artifact != REFERENCE,
            )
            for selected in selection
        ]
        for backend in timed:
            progress.step(f"opening {backend.selected}")
            backend.open()
        for turn in range(rounds):
            progress.step(f"timing, round {turn + 1} of {rounds}")
            for backend in timed:
                backend.time(runs)
        for backend in timed:
            backend.finish()
    return Benchmark(
        bundle=str(bundle.path),
        machine=machine(),
        settings={
            "batch_sizes": list(sizes),
            "rounds": rounds,
            "runs": runs,
            "device": device,
            "threads": threads,
            "images": kind,
            "warm_up": f"until the medians of {WINDOW} runs are within {WITHIN:.0%}, at most {MOST_WINDOWS} times",
        },
        latencies=tuple(latency for size in sizes for backend in timed for latency in backend.latency(size)),
        skipped=tuple(reason for backend in timed for reason in backend.skipped),
        processor=bundle.manifest.processor,
        left_out=left_out,
    )


class _Timed:
    """A backend's process and its measurements; `asked` is set for a reference that was named."""

    def __init__(self, selected: Selected, ask: Callable[..., Any], sizes: Sequence[int], *, asked: bool) -> None:
        self.selected, self._asked = selected, asked
        self.skipped: list[NotMeasured] = []
        self._ask = ask
        self._sizes = list(sizes)
        self._opened: Opened | None = None
        self._first_ms: float | None = None
        self._peak: int | None = None
        self._steady: dict[int, bool] = {}
        self._rounds: dict[int, list[Round]] = {size: [] for size in sizes}

    def open(self) -> None:
        try:
            self._opened = self._ask("open")
        except MissingDependencyError as exc:
            self._give_up(str(exc), "skipped" if self._asked else "left out")
        except UnavailableError as exc:
            self._give_up(str(exc))
        for size in sorted(self._sizes):
            self._first_ms = self._at(size, "first_run", size)
            if self._first_ms is not None:
                break
        for size in list(self._sizes):
            self._steady[size] = self._at(size, "warm_up", size)

    def time(self, runs: int) -> None:
        for size in list(self._sizes):
            self._rounds[size].append(self._at(size, "time", size, runs))

    def finish(self) -> None:
        if self._sizes:
            try:
                self._peak = self._ask("peak_memory_bytes")
            except UnavailableError as exc:
                self._give_up(str(exc))

    def latency(self, size: int) -> list[Latency]:
        """Measured times at a batch size; None without any."""
        if size not in self._sizes or self._opened is None:
            return []
        rounds = self._rounds[size]
        return [
            Latency(
                *self.selected,
                size,
                rounds_ms=tuple(turn.ready_ms for turn in rounds),
                image_rounds_ms=tuple(turn.images_ms for turn in rounds),
                processing_ms=statistics.median(value for turn in rounds for value in turn.processing_ms),
                load_ms=self._opened.load_ms,
                first_ms=self._first_ms,
                peak_memory_bytes=self._peak,
                steady=self._steady[size],
                threads=self._opened.threads,
                details=self._opened.details,
            )
        ]

    def _at(self, size: int, *request: Any) -> Any:
        """The process's answer, unless the backend was given up; a batch size that cannot run is dropped."""
        if size not in self._sizes:
            return None
        try:
            return self._ask(*request)
        except UsageError as exc:  # the artifact has other sizes
            self._sizes.remove(size)
            self.skipped.append(NotMeasured(*self.selected, size, str(exc)))
        except NotFiniteError as exc:
            self._give_up(str(exc), "failed")
        except UnavailableError as exc:
            self._give_up(str(exc))
        return None

    def _give_up(self, reason: str, status: Literal["failed", "skipped", "left out"] = "skipped") -> None:
        self._sizes.clear()
        self.skipped.append(NotMeasured(*self.selected, None, reason, status))


def _encoded(images: str | os.PathLike[str] | None, count: int) -> tuple[tuple[bytes, ...], str, LeftOut | None]:
    """Encoded image files, their kind, and the files of the folder that are not images."""
    if images is not None:
        listing = list_images(images)
        files = listing.files[:count]
        return tuple(_read(file) for file in files), f"{len(files)} files of a folder", listing.left_out
    encoded = []
    for image in synthetic_images(min(count, _MOST_SYNTHETIC), *_SYNTHETIC_SIZE):
        file = io.BytesIO()
        image.save(file, "JPEG", quality=_JPEG_QUALITY)
        encoded.append(file.getvalue())
    height, width = _SYNTHETIC_SIZE
    return tuple(encoded), f"synthetic JPEG files of {width}x{height} pixels", None


def _read(file: Path) -> bytes:
    """Read an image file that can be decoded."""
    with readable(file, "an image"):
        encoded = read_regular(file, MOST_IMAGE_BYTES)
    open_image(encoded, name=repr(str(file)))
    return encoded
