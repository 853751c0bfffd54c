"""One predictor under load for a long time: memory, latency and wrong answers, minute by minute.

Threads call one predictor of a ViT-tiny with dynamic image size in ONNX Runtime on the CPU, without a pause: seeded
photographs of many sizes, in batches of 1 to 8, at five sizes of the model's input. Every answer is compared with the
one that its image gave alone. Memory is flat if the resident memory of the last half's minutes, each the median of its
seconds, is within 2 %.

A 99th percentile depends on the machine's other work. A minute is quiet if other processes had at most 10 % of the
CPUs' time. Percentiles are stable if the medians of the quiet minutes of the third and the last quarter are within
20 %; if less than half of a quarter's minutes are quiet, there is no judgement.

With `--stress`, all threads run the largest shapes at once, again and again, before the first minute. The warm-up must
have taken the memory of these runs: malloc maps ONNX Runtime's arena by itself (`mapped_mb`). The memory that decoding
photographs takes comes with the first of them (`held_free_mb`: malloc's free memory, in use from time to time).
"""

from __future__ import annotations

import os
import random
import statistics
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from common import parser, record, resident_mb, start, vitdeploy_export, wait
from growth import LARGEST_BATCH, PRESET, memory, write_photographs
from numpy.typing import NDArray

import vitdeploy
from vitdeploy.errors import VitDeployError
from vitdeploy.system.cpu import usable_cpus

if TYPE_CHECKING:
    from vitdeploy.predictor import Predictor

SIZES = ((224, 224), (160, 160), (224, 320), (320, 224), (288, 288))
# Sums of another order, in float32: of another batch, another kernel.
TOLERANCE = 1e-3
LOOK_S = 1.0  # between looks at the memory: requests in progress hold some, so a minute has its median
FLAT = 0.02
STABLE = 0.2
QUIET = 0.1  # of the CPUs' time for other processes
_BUSY = (0, 1, 2, 5, 6, 7)  # of /proc/stat: user, nice, system, irq, softirq, steal
LARGEST = tuple(sorted(SIZES, key=lambda size: size[0] * size[1]))[-3:]

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
    return predictor.logits(predictor.processor.resized(*size)(files, pool=predictor.readers))


def measure(minutes: int, threads: int, minute_s: float, stress: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        files = write_photographs(Path(folder), random.Random(0))
        bundle = Path(folder, "model")
        wait(start([*vitdeploy_export(bundle, "--random-weights", PRESET), "--dynamic-image-size"]))
        with vitdeploy.load(
            bundle, backend="onnxruntime", intra_op_threads=1, concurrent_runs=usable_cpus().workers
        ) as predictor:
            warmed = predictor.warm_up((1, LARGEST_BATCH), SIZES, callers=threads)
            answers = {size: np.concatenate([logits_at(predictor, [file], size) for file in files]) for size in SIZES}
            points = [{"minute": 0, **memory()}]
            coincide(predictor, files, threads, stress)
            stressed = {"times": stress, **memory()}
            callers = Callers(predictor, files, answers, threads)
            begin, others_s = time.monotonic(), busy_s() - time.process_time()
            for minute in range(1, minutes + 1):
                resident = []
                while (left := begin + minute * minute_s - time.monotonic()) > 0:
                    time.sleep(min(left, LOOK_S))
                    resident.append(resident_mb())
                earlier_s, others_s = others_s, busy_s() - time.process_time()
                share = (others_s - earlier_s) / minute_s / (os.cpu_count() or 1)
                points.append(_point(minute, callers.latencies(), resident, share))
            callers.stop()
            details = ("intra_op_threads", "concurrent_runs", "allow_spinning")
            options = {name: predictor.runtime.details[name] for name in details}
            options["MALLOC_ARENA_MAX"] = os.environ.get("MALLOC_ARENA_MAX")
    return {
        "options": options,
        "warm_up": [each.to_dict() for each in warmed],
        "stress": stressed,
        "points": points,
        "problems": callers.problems,
        "judgement": judged(points[1:]),
    }


def coincide(predictor: Predictor, files: list[Path], threads: int, times: int) -> None:
    """Run each of the largest shapes in all threads at once, `times` times."""
    with ThreadPoolExecutor(threads) as pool:
        for size in LARGEST * times:
            ready = threading.Barrier(threads)

            def call(size: tuple[int, int] = size, ready: threading.Barrier = ready) -> None:
                pixel_values = predictor.processor.resized(*size)(files[-LARGEST_BATCH:], pool=predictor.readers)
                ready.wait()
                predictor.logits(pixel_values)

            for future in [pool.submit(call) for _ in range(threads)]:
                future.result()


def _point(minute: int, latencies: list[float], resident: list[float], share: float) -> dict[str, float]:
    median, high = np.percentile(latencies, [50, 99]) if latencies else (np.nan, np.nan)
    now = memory()
    return {
        "minute": minute,
        "mapped_mb": now["mapped_mb"],
        "held_free_mb": now["held_free_mb"],
        "calls": len(latencies),
        "p50_ms": float(1e3 * median),
        "p99_ms": float(1e3 * high),
        "resident_mb": statistics.median(resident),
        "resident_peak_mb": max(resident),
        "threads": threading.active_count(),
        "load_average": os.getloadavg()[0],
        "others_share": share,
    }


def judged(points: list[dict[str, float]]) -> dict[str, Any]:
    """The last half's resident memory, and the 99th percentiles of the quiet minutes of its two parts."""
    half = points[len(points) // 2 :]
    resident = [point["resident_mb"] for point in half]
    spread = max(resident) / min(resident) - 1
    middle = len(half) // 2
    parts = [[point for point in part if point["others_share"] <= QUIET] for part in (half[:middle], half[middle:])]
    enough = all(2 * len(part) >= middle > 0 for part in parts)
    ratio = None
    if enough:
        before, after = (statistics.median(point["p99_ms"] for point in part) for part in parts)
        ratio = after / before
    return {
        "resident_spread": spread,
        "flat": spread <= FLAT,
        "quiet_minutes": [len(part) for part in parts],
        "p99_ratio": ratio,
        "p99_stable": None if ratio is None else abs(ratio - 1) <= STABLE,
    }


def busy_s() -> float:
    """Seconds that the machine's CPUs worked, since its start (proc_stat(5))."""
    ticks = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    return sum(int(ticks[index]) for index in _BUSY) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    arguments_parser = parser(__doc__)
    arguments_parser.add_argument("--minutes", type=int, default=60, help="of load")
    arguments_parser.add_argument("--threads", type=int, default=8, help="that call the predictor")
    arguments_parser.add_argument("--minute-s", type=float, default=60.0, help="seconds of a minute, less to rehearse")
    arguments_parser.add_argument("--stress", type=int, default=0, help="times that the largest shapes coincide first")
    arguments = arguments_parser.parse_args()
    found = measure(arguments.minutes, arguments.threads, arguments.minute_s, arguments.stress)
    record(arguments, {"results": found})


if __name__ == "__main__":
    main()
