"""Latency of our ViT-B ONNX file and of optimum's, in ONNX Runtime on the CPU in float32, in turns.

Both hold the same weights. Each is alone in its process, as sessions in one process disturb each other; the processes
take turns, so that a slow spell of the machine falls on both, and are made anew several times, because where the memory
of a session lies changes its speed by some percent for as long as it lives. The ratio is the median over all turns.
"""

from __future__ import annotations

import multiprocessing
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort
from common import add_optimum_python, optimum_export, parser, peer_versions, random_bundle, record, start, wait

if TYPE_CHECKING:
    from collections.abc import Iterator

BATCH_SIZES = (1, 8)
_worker: dict[str, Any] = {}  # the state of a worker process: its session


def measure(optimum_python: Path, processes: int, rounds: int) -> list[dict[str, float]]:
    times: dict[int, list[tuple[float, float]]] = {batch_size: [] for batch_size in BATCH_SIZES}
    difference = dict.fromkeys(BATCH_SIZES, 0.0)
    with tempfile.TemporaryDirectory() as folder:
        model = random_bundle(Path(folder, "model"))
        wait(start(optimum_export(optimum_python, model, Path(folder, "optimum"))))
        files = (model / "onnx" / "model.onnx", Path(folder, "optimum", "model.onnx"))
        for _ in range(processes):
            with sessions(*files) as workers:
                for batch_size in BATCH_SIZES:
                    pixel_values = np.random.default_rng(0).standard_normal((batch_size, 3, 224, 224), np.float32)
                    ours, theirs = (worker.submit(_logits, pixel_values).result() for worker in workers)
                    difference[batch_size] = float(np.abs(ours - theirs).max())
                    times[batch_size] += alternate(workers, pixel_values, rounds)
    return [summary(batch_size, times[batch_size], difference[batch_size]) for batch_size in BATCH_SIZES]


@contextmanager
def sessions(*files: Path) -> Iterator[list[ProcessPoolExecutor]]:
    """A session for each file, each in a process of its own."""
    context = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        workers = [stack.enter_context(ProcessPoolExecutor(1, mp_context=context)) for _ in files]
        for worker, file in zip(workers, files, strict=True):
            worker.submit(_open, str(file)).result()
        yield workers


def alternate(workers: list[ProcessPoolExecutor], pixel_values: np.ndarray, rounds: int) -> list[tuple[float, float]]:
    """Times of both in milliseconds, a pair a round; who goes first changes."""
    times = []
    for index in range(rounds):
        order = (0, 1) if index % 2 else (1, 0)
        turn = {which: workers[which].submit(_time, pixel_values).result() for which in order}
        times.append((turn[0], turn[1]))
    return times


def summary(batch_size: int, times: list[tuple[float, float]], difference: float) -> dict[str, float]:
    ratios = [ours / theirs for ours, theirs in times]
    return {
        "batch_size": batch_size,
        "vitdeploy_ms": statistics.median(ours for ours, _ in times),
        "optimum_ms": statistics.median(theirs for _, theirs in times),
        "ratio": statistics.median(ratios),
        "ratio_p25": float(np.percentile(ratios, 25)),
        "ratio_p75": float(np.percentile(ratios, 75)),
        "max_difference": difference,
    }


def _open(file: str) -> None:
    _worker["session"] = ort.InferenceSession(file, providers=["CPUExecutionProvider"])


def _logits(pixel_values: np.ndarray) -> np.ndarray:
    (logits,) = _worker["session"].run(["logits"], {"pixel_values": pixel_values})
    return np.asarray(logits)


def _time(pixel_values: np.ndarray, runs: int = 3) -> float:
    """The median of a turn in milliseconds, after a run that is not timed."""
    _logits(pixel_values)
    times = []
    for _ in range(runs):
        start_time = time.perf_counter()
        _logits(pixel_values)
        times.append(1e3 * (time.perf_counter() - start_time))
    return statistics.median(times)


def main() -> None:
    arguments_parser = parser(__doc__)
    add_optimum_python(arguments_parser)
    arguments_parser.add_argument("--processes", type=int, default=8, help="pairs of fresh processes")
    arguments_parser.add_argument("--rounds", type=int, default=4, help="turns of each file in each pair")
    arguments = arguments_parser.parse_args()
    results = measure(arguments.optimum_python, arguments.processes, arguments.rounds)
    print("batch   vitdeploy     optimum   ratio (quartiles)   largest difference of logits")
    for row in results:
        print(
            f"{row['batch_size']:5} {row['vitdeploy_ms']:8.1f} ms {row['optimum_ms']:8.1f} ms {row['ratio']:7.3f} "
            f"({row['ratio_p25']:.3f} to {row['ratio_p75']:.3f})   {row['max_difference']:.1e}"
        )
    record(arguments, {"optimum": peer_versions(arguments.optimum_python), "results": results})


if __name__ == "__main__":
    main()
