"""Latency of ONNX files in ONNX Runtime on the CPU, in turns.

Each session is alone in its process, as sessions in one process disturb each other. The processes take turns, so that a
slow spell of the machine falls on all, and are made anew several times, because where the memory of a session lies
changes its speed by some percent for as long as it lives.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort
from common import turns

from vitdeploy.errors import first_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_worker: dict[str, Any] = {}  # the state of a worker process: its session


@dataclasses.dataclass(frozen=True)
class Latencies:
    """What the sessions gave for one batch size.

    Attributes:
        times_ms: a time for each turn, by name, without those that failed.
        logits: of the same images, by name.
        problems: the first line of the error of those that failed, by name.
    """

    times_ms: dict[str, list[float]]
    logits: dict[str, np.ndarray]
    problems: dict[str, str]


def latencies(
    files: dict[str, Path],
    batch_sizes: tuple[int, ...],
    processes: int,
    rounds: int,
    *,
    processor_time: bool = False,
) -> dict[int, Latencies]:
    """Time every file at every batch size, `rounds` turns in each of `processes` sets of fresh processes.

    With `processor_time`, it is the processor's time of sessions of one thread, which other work disturbs less.
    """
    found = {batch_size: Latencies({name: [] for name in files}, {}, {}) for batch_size in batch_sizes}
    for index in range(processes):
        print(f"processes {index}", file=sys.stderr)
        with _sessions(files, processor_time) as workers:
            for batch_size, of_one in found.items():
                _add(of_one, workers, batch_size, rounds)
    return found


def _add(to: Latencies, workers: dict[str, ProcessPoolExecutor], batch_size: int, rounds: int) -> None:
    pixel_values = np.random.default_rng(0).standard_normal((batch_size, 3, 224, 224), np.float32)
    for name in list(to.times_ms):
        answer = workers[name].submit(_answer, pixel_values).result()
        if isinstance(answer, str):
            to.problems[name] = answer
            del to.times_ms[name]
        else:
            to.logits[name] = answer
    for order in turns(list(to.times_ms), rounds):
        for name in order:
            to.times_ms[name].append(workers[name].submit(_time, pixel_values).result())


@contextmanager
def _sessions(files: dict[str, Path], processor_time: bool) -> Iterator[dict[str, ProcessPoolExecutor]]:
    context = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        workers = {name: stack.enter_context(ProcessPoolExecutor(1, mp_context=context)) for name in files}
        for name, file in files.items():
            workers[name].submit(_open, str(file), processor_time).result()
        yield workers


def _open(file: str, processor_time: bool) -> None:
    options = ort.SessionOptions()
    options.intra_op_num_threads = int(processor_time)
    _worker["session"] = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    _worker["clock"] = time.process_time if processor_time else time.perf_counter


def _logits(pixel_values: np.ndarray) -> np.ndarray:
    (logits,) = _worker["session"].run(["logits"], {"pixel_values": pixel_values})
    return np.asarray(logits)


def _answer(pixel_values: np.ndarray) -> np.ndarray | str:
    try:
        return _logits(pixel_values)
    except Exception as exc:  # noqa: BLE001  (whatever a peer's file raises is the result)
        return first_line(exc)


def _time(pixel_values: np.ndarray, runs: int = 3) -> float:
    """The median of a turn in milliseconds, after a run that is not timed."""
    _logits(pixel_values)
    clock: Callable[[], float] = _worker["clock"]
    times = []
    for _ in range(runs):
        start_time = clock()
        _logits(pixel_values)
        times.append(1e3 * (clock() - start_time))
    return statistics.median(times)
