"""Opening, using and closing a predictor again and again leaves no thread and no file descriptor behind."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import vitdeploy

if TYPE_CHECKING:
    from vitdeploy.bundle.bundle import Bundle

IMAGES = [np.full((9, 9, 3), value, np.uint8) for value in (10, 200)]


def fewest(counts: Callable[[], tuple[int, int]]) -> tuple[int, int]:
    """The counts once the kernel has removed the threads that have ended, a moment after their join."""
    end = time.monotonic() + 1
    seen = [counts()]
    while time.monotonic() < end:
        time.sleep(0.05)
        seen.append(counts())
    return min(seen)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc")
@pytest.mark.parametrize(
    "options", [{"intra_op_threads": 2}, {"parallel_runs": 2}], ids=["threads of an operator", "parallel runs"]
)
def test_threads_and_descriptors_stay_as_many(digits: Bundle, options: dict[str, Any]) -> None:
    def open_and_close() -> None:
        with vitdeploy.load(digits.path, backend="onnxruntime", **options) as predictor:
            predictor.predict(IMAGES)
            assert counts() > before, "it has threads while it is open"

    def counts() -> tuple[int, int]:
        return sum(1 for _ in Path("/proc/self/task").iterdir()), sum(1 for _ in Path("/proc/self/fd").iterdir())

    gc.collect()  # what earlier tests left behind has descriptors, too
    before = counts()
    for _ in range(10):
        open_and_close()
    settled = fewest(counts)
    for _ in range(30):
        open_and_close()
    threads, descriptors = fewest(counts)
    assert (threads <= settled[0], descriptors <= settled[1]) == (True, True), (threads, descriptors, settled)


def test_the_threads_of_one_that_is_forgotten_end(digits: Bundle) -> None:
    others = set(threading.enumerate())
    predictor = vitdeploy.load(digits.path, backend="onnxruntime")
    assert list(predictor.readers.map(abs, [-1, -2], threads=2)) == [1, 2]
    threads = [thread for thread in set(threading.enumerate()) - others if thread.name.startswith("vitdeploy-read")]
    assert threads
    del predictor
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
