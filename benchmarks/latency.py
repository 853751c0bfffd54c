"""Latency of our ViT-B ONNX file and of optimum's, in ONNX Runtime on the CPU in float32, in turns.

Both hold the same weights. Each is alone in its process, as sessions in one process disturb each other; the processes
take turns, and the ratio is the median of the ratios of the rounds, so that a slow spell of the machine falls on both.
"""

from __future__ import annotations

import multiprocessing
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from common import add_optimum_python, optimum_export, parser, peer_versions, random_bundle, record, start, wait

BATCH_SIZES = (1, 8)
_worker: dict[str, Any] = {}  # the state of a worker process: its session


def measure(optimum_python: Path, rounds: int) -> list[dict[str, float]]:
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        model = random_bundle(Path(folder, "model"))
        wait(start(optimum_export(optimum_python, model, Path(folder, "optimum"))))
        files = (model / "onnx" / "model.onnx", Path(folder, "optimum", "model.onnx"))
        context = multiprocessing.get_context("spawn")
        workers = [stack.enter_context(ProcessPoolExecutor(1, mp_context=context)) for _ in files]
        for worker, file in zip(workers, files, strict=True):
            worker.submit(_open, str(file)).result()
        return [alternate(workers, batch_size, rounds) for batch_size in BATCH_SIZES]


def alternate(workers: list[ProcessPoolExecutor], batch_size: int, rounds: int) -> dict[str, float]:
    pixel_values = np.random.default_rng(0).standard_normal((batch_size, 3, 224, 224), dtype=np.float32)
    ours, theirs = (worker.submit(_logits, pixel_values).result() for worker in workers)
    times: list[list[float]] = [[], []]
    for index in range(rounds):
        for which in (0, 1) if index % 2 else (1, 0):
            times[which].append(workers[which].submit(_time, pixel_values).result())
    ratios = [a / b for a, b in zip(*times, strict=True)]
    return {
        "batch_size": batch_size,
        "vitdeploy_ms": statistics.median(times[0]),
        "optimum_ms": statistics.median(times[1]),
        "ratio": statistics.median(ratios),
        "ratio_p25": float(np.percentile(ratios, 25)),
        "ratio_p75": float(np.percentile(ratios, 75)),
        "max_difference": float(np.abs(ours - theirs).max()),
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
    arguments_parser.add_argument("--rounds", type=int, default=20, help="turns of each file at each batch size")
    arguments = arguments_parser.parse_args()
    results = measure(arguments.optimum_python, arguments.rounds)
    print("batch   vitdeploy     optimum   ratio (quartiles)   largest difference of logits")
    for row in results:
        print(
            f"{row['batch_size']:5} {row['vitdeploy_ms']:8.1f} ms {row['optimum_ms']:8.1f} ms {row['ratio']:7.3f} "
            f"({row['ratio_p25']:.3f} to {row['ratio_p75']:.3f})   {row['max_difference']:.1e}"
        )
    record(arguments, {"optimum": peer_versions(arguments.optimum_python), "results": results})


if __name__ == "__main__":
    main()
