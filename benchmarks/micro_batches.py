"""Requests for single images from many threads: `Predictor.predict` in each thread, and `MicroBatcher`.

Each client sends a JPEG file, waits for its labels, and sends the next. Ways to answer take turns on one open bundle,
in a new order each round; a turn lasts some seconds. Numbers are medians over the rounds: images per second of all
clients, percentiles of one client's wait, and processor time per image, with decoding, which depends less on other work
on the machine.
"""

from __future__ import annotations

import contextlib
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import sklearn.datasets
from common import parser, record, start, turns, vitdeploy_export, wait

import vitdeploy
from vitdeploy.assets import default_checkpoint

if TYPE_CHECKING:
    from vitdeploy.predictor import Predictor

PHOTOGRAPH = (Path(sklearn.datasets.__file__).parent / "images" / "china.jpg").read_bytes()  # 640x427
WAYS = {"predict": None, "gathered during runs": 0.0, "5 ms": 0.005}  # seconds of `max_delay`
EMBEDDED = "embedded"
BACKENDS: dict[str, dict[str, Any]] = {
    "onnxruntime": {"backend": "onnxruntime"},
    "onnxruntime, parallel_runs=0": {"backend": "onnxruntime", "parallel_runs": 0},
    "openvino": {"backend": "openvino"},
}
Answer = Callable[[bytes], Any]


def measure(models: list[str], backends: list[str], clients: list[int], rounds: int, seconds: int) -> list[Any]:
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for model in models:
            bundle = Path(folder, model)
            source = [str(default_checkpoint())] if model == EMBEDDED else ["--random-weights", model]
            wait(start(vitdeploy_export(bundle, *(["--model", *source] if model == EMBEDDED else source))))
            for backend in backends:
                with vitdeploy.load(bundle, **BACKENDS[backend]) as predictor:
                    predictor.warm_up([1, 8])
                    results += [
                        {
                            "model": model,
                            "backend": backend,
                            "clients": count,
                            **_compare(predictor, count, rounds, seconds),
                        }
                        for count in clients
                    ]
    return results


def _compare(predictor: Predictor, clients: int, rounds: int, seconds: int) -> dict[str, Any]:
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for order in turns(list(WAYS), rounds):
        for way in order:
            with _answering(predictor, WAYS[way]) as (answer, mean_batch):
                began_s = time.process_time()
                rate, waits_ms = _ask(answer, clients, seconds)
                cpu_ms = 1e3 * (time.process_time() - began_s) / len(waits_ms)
                found[way].append(
                    {
                        "images_per_s": rate,
                        "p50_ms": float(np.percentile(waits_ms, 50)),
                        "p99_ms": float(np.percentile(waits_ms, 99)),
                        "cpu_ms": cpu_ms,
                        "batch": mean_batch(),
                    }
                )
    names = next(iter(found.values()))[0]
    return {
        "ways": {
            way: {name: statistics.median(turn[name] for turn in each) for name in names} for way, each in found.items()
        },
        "ratios": {
            way: statistics.median(
                turn["images_per_s"] / alone["images_per_s"] for turn, alone in zip(each, found["predict"], strict=True)
            )
            for way, each in found.items()
        },
    }


@contextlib.contextmanager
def _answering(predictor: Predictor, max_delay: float | None) -> Iterator[tuple[Answer, Callable[[], float]]]:
    """The call of a client, and the mean images of a run so far."""
    if max_delay is None:
        yield predictor.predict, lambda: 1.0
        return
    with vitdeploy.MicroBatcher(predictor, max_delay=max_delay) as batcher:

        def mean_batch() -> float:
            now = batcher.statistics()
            return now.answered / now.batches

        yield batcher.predict, mean_batch


def _ask(answer: Answer, clients: int, seconds: int) -> tuple[float, list[float]]:
    """Images per second of all clients, and each wait in milliseconds."""
    waits_ms: list[float] = []
    begin = threading.Barrier(clients + 1)
    end = 0.0

    def ask() -> None:
        begin.wait()
        while (sent := time.perf_counter()) < end:
            answer(PHOTOGRAPH)
            waits_ms.append(1e3 * (time.perf_counter() - sent))

    threads = [threading.Thread(target=ask) for _ in range(clients)]
    for thread in threads:
        thread.start()
    started = time.perf_counter()
    end = started + seconds
    begin.wait()
    for thread in threads:
        thread.join()
    return len(waits_ms) / (time.perf_counter() - started), waits_ms


def main() -> None:
    arguments_parser = parser(__doc__)
    arguments_parser.add_argument("--models", nargs="+", default=[EMBEDDED, "vit-tiny-patch16-224"], help="presets")
    arguments_parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=list(BACKENDS))
    arguments_parser.add_argument("--clients", nargs="+", type=int, default=[1, 8], help="threads that ask")
    arguments_parser.add_argument("--rounds", type=int, default=5, help="turns of each way")
    arguments_parser.add_argument("--seconds", type=int, default=2, help="length of a turn")
    arguments = arguments_parser.parse_args()
    results = measure(arguments.models, arguments.backends, arguments.clients, arguments.rounds, arguments.seconds)
    record(arguments, {"results": results})


if __name__ == "__main__":
    main()
