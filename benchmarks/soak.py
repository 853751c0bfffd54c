"""One predictor under load for a long time: memory, latency and wrong answers, minute by minute.

Threads call one predictor of a ViT-tiny with dynamic image size in ONNX Runtime on the CPU, without a pause: seeded
photographs of many sizes, in batches of 1 to 8, at five sizes of the model's input. Every answer is compared with the
one that its image gave alone. Memory is flat if the resident memory of the last half's minutes, each the median of its
seconds, is within 2 %.
"""

from __future__ import annotations

import os
import random
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from common import parser, record, start, vitdeploy_export, wait
from growth import LARGEST_BATCH, PRESET, write_photographs
from numpy.typing import NDArray

import vitdeploy
from vitdeploy.errors import VitDeployError

if TYPE_CHECKING:
    from vitdeploy.predictor import Predictor

SIZES = ((224, 224), (160, 160), (224, 320), (320, 224), (288, 288))
# Sums of another order, in float32: of another batch, another kernel.
TOLERANCE = 1e-3
LOOK_S = 1.0  # between looks at the memory: requests in progress hold some, so a minute has its median
FLAT = 0.02
STABLE = 0.2

Answers = dict[tuple[int, int], NDArray[np.float32]]


class Callers:
    """Threads that call the predictor, and their latencies since the last look.

    Attributes:
        problems: Errors and wrong answers, by message.
    """

    def __init__(self, predictor: Predictor, files: list[Path], answers: Answers, threads: int) -> None:
        self._predictor, self._files, self._answers = predictor, files, answers
        self._lock, self._stopping = threading.Lock(), threading.Event()
        self._latencies: list[float] = []
        self.problems: dict[str, int] = {}
        self._threads = [threading.Thread(target=self._call_often, args=(seed,)) for seed in range(threads)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def latencies(self) -> list[float]:
        """Seconds of each call since the last look."""
        with self._lock:
            taken, self._latencies = self._latencies, []
        return taken

    def _call_often(self, seed: int) -> None:
        draw = random.Random(seed)
        while not self._stopping.is_set():
            size = draw.choice(SIZES)
            chosen = [draw.randrange(len(self._files)) for _ in range(draw.randint(1, LARGEST_BATCH))]
            begin = time.perf_counter()
            try:
                given = logits_at(self._predictor, [self._files[index] for index in chosen], size)
                wrong = np.abs(given - self._answers[size][chosen]).max()
                problem = f"{wrong:.1e} from the answer" if not wrong <= TOLERANCE else None
            except VitDeployError as exc:
                problem = str(exc)
            took = time.perf_counter() - begin
            with self._lock:
                self._latencies.append(took)
                if problem is not None:
                    self.problems[problem] = self.problems.get(problem, 0) + 1


def logits_at(predictor: Predictor, files: list[Path], size: tuple[int, int]) -> NDArray[np.float32]:
    """As `predict` does it, at a size of the input that is not the model's own too."""
    if size == predictor.processor.output_size:
        labels = predictor.predict(files, top_k=len(predictor.labels), batch_size=LARGEST_BATCH)
        return np.array([[found.score for found in sorted(row, key=lambda found: found.index)] for row in labels])
    return predictor.logits(predictor.processor.resized(*size)(files))


def measure(minutes: int, threads: int, minute_s: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        files = write_photographs(Path(folder), random.Random(0))
        bundle = Path(folder, "model")
        wait(start([*vitdeploy_export(bundle, "--random-weights", PRESET), "--dynamic-image-size"]))
        with vitdeploy.load(bundle, backend="onnxruntime", intra_op_threads=1) as predictor:
            warmed = predictor.warm_up((1, LARGEST_BATCH), SIZES)
            answers = {size: np.concatenate([logits_at(predictor, [file], size) for file in files]) for size in SIZES}
            points = [{"minute": 0, "resident_mb": resident_mb()}]
            callers = Callers(predictor, files, answers, threads)
            begin = time.monotonic()
            for minute in range(1, minutes + 1):
                resident = []
                while (left := begin + minute * minute_s - time.monotonic()) > 0:
                    time.sleep(min(left, LOOK_S))
                    resident.append(resident_mb())
                points.append(_point(minute, callers.latencies(), resident))
            callers.stop()
            options = {name: predictor.runtime.details[name] for name in ("intra_op_threads", "allow_spinning")}
    return {
        "options": options,
        "warm_up": [each.to_dict() for each in warmed],
        "points": points,
        "problems": callers.problems,
        "judgement": judged(points[1:]),
    }


def _point(minute: int, latencies: list[float], resident: list[float]) -> dict[str, float]:
    median, high = np.percentile(latencies, [50, 99]) if latencies else (np.nan, np.nan)
    return {
        "minute": minute,
        "calls": len(latencies),
        "p50_ms": float(1e3 * median),
        "p99_ms": float(1e3 * high),
        "resident_mb": statistics.median(resident),
        "resident_peak_mb": max(resident),
        "threads": threading.active_count(),
        "load_average": os.getloadavg()[0],
    }


def judged(points: list[dict[str, float]]) -> dict[str, Any]:
    """The last half's resident memory, and the 99th percentiles of its two halves."""
    half = points[len(points) // 2 :]
    resident = [point["resident_mb"] for point in half]
    spread = max(resident) / min(resident) - 1
    earlier, later = half[: len(half) // 2] or half, half[len(half) // 2 :]
    before, after = (statistics.median(point["p99_ms"] for point in part) for part in (earlier, later))
    return {
        "resident_spread": spread,
        "flat": spread <= FLAT,
        "p99_ratio": after / before,
        "p99_stable": abs(after / before - 1) <= STABLE,
    }


def resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def main() -> None:
    arguments_parser = parser(__doc__)
    arguments_parser.add_argument("--minutes", type=int, default=60, help="of load")
    arguments_parser.add_argument("--threads", type=int, default=8, help="that call the predictor")
    arguments_parser.add_argument("--minute-s", type=float, default=60.0, help="seconds of a minute, less to rehearse")
    arguments = arguments_parser.parse_args()
    record(arguments, {"results": measure(arguments.minutes, arguments.threads, arguments.minute_s)})


if __name__ == "__main__":
    main()
