"""Open a bundle, predict and close it a thousand times: memory, threads and file descriptors.

The embedded model in ONNX Runtime on the CPU, with a batch of two images, so that every kind of thread starts.
"""

from __future__ import annotations

import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import parser, record, start, vitdeploy_export, wait
from growth import memory

import vitdeploy
from vitdeploy.assets import default_checkpoint


def measure(times: int, every: int, options: dict[str, Any]) -> list[dict[str, float]]:
    """Memory, threads and descriptors after every so many times."""
    images = list(np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8))
    points = []
    with tempfile.TemporaryDirectory() as folder:
        wait(
            start(vitdeploy_export(Path(folder, "bundle"), str(default_checkpoint())))
        )  # without torch in this process
        for count in range(1, times + 1):
            with vitdeploy.load(Path(folder, "bundle"), backend="onnxruntime", **options) as predictor:
                predictor.predict(images)
            if count == 1 or count % every == 0:
                points.append({"times": count, **memory(), **held()})
    return points


def held() -> dict[str, int]:
    """Threads of the process, Python's and others, and its file descriptors."""
    return {
        "threads": _count("/proc/self/task"),
        "python_threads": threading.active_count(),
        "descriptors": _count("/proc/self/fd"),
    }


def _count(folder: str) -> int:
    return sum(1 for _ in Path(folder).iterdir())


def main() -> None:
    arguments_parser = parser(__doc__)
    arguments_parser.add_argument("--times", type=int, default=1000, help="that the bundle is opened")
    arguments_parser.add_argument("--every", type=int, default=100, help="times between figures")
    arguments = arguments_parser.parse_args()
    begin = time.perf_counter()
    points = measure(arguments.times, arguments.every, {"intra_op_threads": 2})
    record(arguments, {"results": {"seconds": time.perf_counter() - begin, "points": points}})


if __name__ == "__main__":
    main()
