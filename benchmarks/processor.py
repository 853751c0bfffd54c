"""Time the image processor against transformers' PIL backend: one JPEG to (1, 3, 224, 224), and a batch of 16.

transformers copies the image several times; its time changes by half depending on whether the copies use memory that
the process still holds or new memory from the system (a thousand page faults per image). Each process does one or the
other, so the comparison runs in several new processes, and the spread of the ratio is part of the result.
"""

from __future__ import annotations

import multiprocessing
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import sklearn.datasets
from common import parser, record
from transformers import ViTImageProcessorPil
from transformers.image_utils import load_image

from vitdeploy.images.processor import ImageProcessor

if TYPE_CHECKING:
    from collections.abc import Callable

PHOTOGRAPH = Path(sklearn.datasets.__file__).parent / "images" / "china.jpg"  # 640x427
# Recorded on another machine, where transformers' PIL backend took 7.1 ms; torchvision is not a dependency.
TORCHVISION_NOTE = "transformers' torchvision backend: not run here; 4.5 ms recorded beside 7.1 ms for its PIL backend"


def interleaved_ms(candidates: dict[str, Callable[[], Any]], runs: int) -> dict[str, float]:
    """Median time of each candidate in milliseconds.

    They alternate in blocks of ten: a slow phase of the machine affects all, and each reuses its own memory.
    """
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(0, runs, 10):
        for name, call in candidates.items():
            call()
            for _ in range(10):
                start = time.perf_counter()
                call()
                times[name].append((time.perf_counter() - start) * 1e3)
    return {name: statistics.median(values) for name, values in times.items()}


def measure(runs: int) -> dict[str, Any]:
    ours, theirs = ImageProcessor(), ViTImageProcessorPil()
    path = str(PHOTOGRAPH)
    encoded = PHOTOGRAPH.read_bytes()

    def reference() -> Any:
        return theirs(load_image(path), return_tensors="np")["pixel_values"]

    if not np.array_equal(ours(path), reference()):
        raise SystemExit("the two processors differ: their times cannot be compared")
    image_ms = interleaved_ms(
        {"vitdeploy_file": lambda: ours(path), "vitdeploy_bytes": lambda: ours(encoded), "transformers_pil": reference},
        runs,
    )
    batch16_ms = interleaved_ms(
        {"1_thread": lambda: ours([path] * 16, threads=1), "2_threads": lambda: ours([path] * 16, threads=2)},
        max(runs // 10, 10),
    )
    return {
        "image_ms": image_ms,
        "speedup": image_ms["transformers_pil"] / image_ms["vitdeploy_file"],
        "batch16_ms": batch16_ms,
        "threads_speedup": batch16_ms["1_thread"] / batch16_ms["2_threads"],
    }


def measure_in_fresh_processes(runs: int, processes: int) -> list[dict[str, Any]]:
    context = multiprocessing.get_context("spawn")
    results = []
    for _ in range(processes):
        with context.Pool(1) as pool:
            results.append(pool.apply(measure, (runs,)))
    return results


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--runs", type=int, default=200, help="timed runs of each candidate on one image")
    options.add_argument("--processes", type=int, default=5, help="fresh processes to repeat it in")
    arguments = options.parse_args()
    results = measure_in_fresh_processes(arguments.runs, arguments.processes)
    print(TORCHVISION_NOTE)
    record(arguments, {"processes": results, "note": TORCHVISION_NOTE})


if __name__ == "__main__":
    main()
