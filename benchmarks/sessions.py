"""Latency of models in engines on the CPU, in turns.

Each session has its own process, because sessions in one process disturb each other. The processes take turns, so that
a slow phase of the machine affects all, and are restarted several times, because the location of a session's memory
changes its speed by some percent for its whole life.
"""

from __future__ import annotations

import dataclasses
import pickle
import statistics
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from common import turns

from vitdeploy.system.cpu import session_threads

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

WORKER = Path(__file__).with_name("session_worker.py")
TIMED_RUNS = 3  # a turn's time is their median


@dataclasses.dataclass(frozen=True)
class Session:
    """A model file and its engine.

    Attributes:
        file: ONNX graph, or another format that the engine reads.
        engine: Name in `session_worker.ENGINES`.
        python: Interpreter of the engine's environment.
        options: Engine options, "NAME=VALUE".
    """

    file: Path
    engine: str = "onnxruntime"
    python: Path = Path(sys.executable)
    options: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Latencies:
    """Results of the sessions for one batch size.

    Attributes:
        times_ms: Time of each turn, by name, without failed sessions.
        logits: Logits for the same images, by name.
        problems: First error line of each failed session, by name.
    """

    times_ms: dict[str, list[float]]
    logits: dict[str, np.ndarray]
    problems: dict[str, str]


def latencies(
    sessions: Mapping[str, Session],
    batch_sizes: tuple[int, ...],
    processes: int,
    rounds: int,
    *,
    processor_time: bool = False,
) -> dict[int, Latencies]:
    """Time every session at every batch size, `rounds` turns in each of `processes` sets of new processes.

    Every engine gets the number of threads that vitdeploy gives ONNX Runtime. With `processor_time`, the result is the
    processor time of single-threaded sessions, which other work disturbs less.
    """
    found = {batch_size: Latencies({name: [] for name in sessions}, {}, {}) for batch_size in batch_sizes}
    for index in range(processes):
        print(f"processes {index}", file=sys.stderr)
        with _started(sessions, processor_time) as workers:
            for batch_size, of_one in found.items():
                _add(of_one, workers, batch_size, rounds)
    return found


def outputs(sessions: Mapping[str, Session], pixel_values: np.ndarray) -> dict[str, np.ndarray]:
    """Outputs of each session, (N, ...) by name, for images (N, 3, H, W), one at a time."""
    found = {}
    for name, of_one in sessions.items():
        with _started({name: of_one}, processor_time=False) as workers:
            replies = [workers[name].ask(image[None], runs=0) for image in pixel_values]
        if any(isinstance(reply, str) for reply in replies):
            raise SystemExit(f"{name} must run, got: {next(each for each in replies if isinstance(each, str))}")
        found[name] = np.concatenate([values for values, _ in replies])
    return found


def _add(to: Latencies, workers: dict[str, _Worker], batch_size: int, rounds: int) -> None:
    pixel_values = np.random.default_rng(0).standard_normal((batch_size, 3, 224, 224), np.float32)
    for name in list(to.times_ms):
        reply = workers[name].ask(pixel_values, runs=0)
        if isinstance(reply, str):
            to.problems[name] = reply.strip().partition("\n")[0]
            del to.times_ms[name]
        else:
            to.logits[name], _ = reply
    for order in turns(list(to.times_ms), rounds):
        for name in order:
            _, times = workers[name].ask(pixel_values, runs=TIMED_RUNS)
            to.times_ms[name].append(statistics.median(times))


@dataclasses.dataclass(frozen=True)
class _Worker:
    command: list[str]
    requests: Any
    replies: Any

    def ask(self, pixel_values: np.ndarray, runs: int) -> Any:
        """See `session_worker.py`."""
        pickle.dump((pixel_values, runs), self.requests)
        self.requests.flush()
        return self.reply()

    def reply(self) -> Any:
        try:
            return pickle.load(self.replies)
        except EOFError as exc:
            command = subprocess.list2cmdline(self.command)
            raise SystemExit(f"a session must answer, but its process ended, see its error above: {command}") from exc


@contextmanager
def _started(sessions: Mapping[str, Session], processor_time: bool) -> Iterator[dict[str, _Worker]]:
    threads = ["--processor-time"] if processor_time else ["--threads", str(session_threads().count)]
    with ExitStack() as stack:
        workers = {}
        for name, of_one in sessions.items():
            command = [str(of_one.python), str(WORKER), *threads, of_one.engine, str(of_one.file), *of_one.options]
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            stack.enter_context(process)  # at this process's exit the worker's input ends, and so does the worker
            workers[name] = _Worker(command, process.stdin, process.stdout)
            workers[name].reply()  # the session is open
        yield workers
