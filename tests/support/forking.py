"""Forked children of a process, each within a time limit; run as a script, those of one that has a predictor open."""

from __future__ import annotations

import dataclasses
import gc
import json
import multiprocessing
import os
import select
import signal
import sys
import time
import traceback
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import vitdeploy
from vitdeploy.errors import VitDeployError
from vitdeploy.runtimes import BACKENDS

if TYPE_CHECKING:
    from collections.abc import Callable

    from vitdeploy.predictor import Predictor

LIMIT_S = 60.0  # reached only where a child hangs
SHAPE = 64, 3, 32, 32  # so large that torch uses several threads


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a child ended.

    Attributes:
        answer: What it gave, or the error that it raised; None where it gave nothing.
        exit_code: Negative for a signal; None where it had to be killed.
    """

    answer: Any
    exit_code: int | None


def in_child(work: Callable[[], Any], leave: Callable[[int], Any] = os._exit, *, limit_s: float = LIMIT_S) -> Outcome:
    """Do something in a forked child, and leave it by `leave`.

    Args:
        work: Its result is JSON; a VitDeployError that it raises is the answer, too.
        leave: `sys.exit` for the usual end of a process, which destroys what there is.
        limit_s: The child is killed then. Of a child of a child: less, so that none is left.
    """
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
        child = os.fork()
    if child == 0:
        try:
            answer = work()
        except VitDeployError as exc:
            answer = f"{type(exc).__name__}: {exc}"
        except Exception:  # noqa: BLE001  (a child must not go on as a second pytest)
            traceback.print_exc()
            os._exit(70)
        os.write(writing, json.dumps(answer).encode())
        leave(0)
    os.close(writing)
    end = time.monotonic() + limit_s
    content = os.read(reading, 1 << 16) if select.select([reading], [], [], limit_s)[0] else b""
    os.close(reading)
    answer = json.loads(content) if content else None
    while time.monotonic() < end:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return Outcome(answer, os.waitstatus_to_exitcode(status))
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return Outcome(answer, None)


def children(bundle: str, backend: str, threads: int) -> dict[str, Outcome]:
    """The outcome of each use of an open predictor, each in its own child."""

    def load() -> Predictor:
        return vitdeploy.load(bundle, backend=backend, **options)

    def runs(of: Predictor) -> bool:
        return np.allclose(of.runtime.run(feeds)["logits"], expected, rtol=0, atol=1e-4)

    def closes() -> None:
        with predictor:
            pass
        predictor.close()

    def closes_and_runs() -> bool:
        closes()
        return runs(predictor)

    def reopens() -> bool:
        with load() as other:
            return runs(other)

    def runs_in_a_thread() -> bool:
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(runs, predictor).result()

    def runs_with_one_thread() -> bool:
        if not option:
            import torch

            torch.set_num_threads(1)
        return runs(predictor)

    def forgets() -> None:
        predictor.runtime = None  # type: ignore[assignment]
        gc.collect()

    option = BACKENDS[backend].threads_option  # torch has OMP_NUM_THREADS
    options: dict[str, Any] = {option: threads} if option else {}
    feeds = {"pixel_values": np.random.default_rng(0).standard_normal(SHAPE, np.float32)}
    predictor = load()
    expected = np.load(Path(bundle, "expected.npy"))
    assert runs(predictor)
    predictor.predict([np.zeros((9, 9, 3), np.uint8)] * 2)  # starts the threads that read images
    found = {
        "run": in_child(lambda: runs(predictor)),
        "predict": in_child(lambda: len(predictor.predict([np.zeros((9, 9, 3), np.uint8)] * 2))),
        "run in a thread": in_child(runs_in_a_thread),
        "run with one thread": in_child(runs_with_one_thread),
        "close": in_child(closes),
        "run when closed": in_child(closes_and_runs),
        "forget": in_child(forgets),
        "reopen": in_child(reopens),
        "exit": in_child(lambda: None, sys.exit),
        "close and exit": in_child(closes, sys.exit),
        "reopen and exit": in_child(reopens, sys.exit),
        "child of a child": in_child(
            lambda: dataclasses.asdict(in_child(lambda: runs(predictor), sys.exit, limit_s=LIMIT_S / 2))
        ),
    }
    assert runs(predictor), "the parent goes on"
    predictor.close()
    return found


def pool(bundle: str) -> list[int]:
    """Predictions of processes of a pool, each with a predictor of its own, beside one that is open here."""
    with (
        vitdeploy.load(bundle, intra_op_threads=4),
        multiprocessing.get_context("fork").Pool(2, _load, [bundle]) as made,
    ):
        answers = made.map(_predict, range(4))
        made.close()
        made.join()
    return answers


def _load(bundle: str) -> None:
    globals()["_predictor"] = vitdeploy.load(bundle, intra_op_threads=4)


def _predict(_: int) -> int:
    return len(globals()["_predictor"].predict(np.zeros((9, 9, 3), np.uint8))[0])


if __name__ == "__main__":
    name, *arguments = sys.argv[1:]
    if name == "pool":
        result: Any = pool(*arguments)
    else:
        bundle, backend, threads = arguments
        outcomes = children(bundle, backend, int(threads))
        result = {use: dataclasses.asdict(outcome) for use, outcome in outcomes.items()}
    print(json.dumps(result))
