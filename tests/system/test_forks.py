"""A forked child runs what works there, is refused the rest at once, and ends; with the engines, and real forks."""

from __future__ import annotations

import json
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import reference, tiny_model, write_bundle
from environments import ROOT, run
from forking import SHAPE, Outcome, in_child
from PIL import Image

from vitdeploy.bundle.bundle import Bundle
from vitdeploy.files import locks
from vitdeploy.images import pixel_limit as image_limit
from vitdeploy.images.open import open_image
from vitdeploy.system import forks

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

ENDS = ("close", "forget", "exit", "close and exit")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """With what its model gives for the images of `forking.children`."""
    bundle = write_bundle(tmp_path_factory.mktemp("bundle"), formats=("onnx", "torchscript"))
    images = np.random.default_rng(0).standard_normal(SHAPE, np.float32)
    np.save(bundle.path / "expected.npy", reference(tiny_model(), {"pixel_values": images})["logits"])
    return bundle


def script(*arguments: str | Path, **environ: str) -> Any:
    environ |= {"PYTHONPATH": str(ROOT)}
    return json.loads(run(sys.executable, ROOT / "tests" / "support" / "forking.py", *arguments, **environ))


def uses(bundle: Bundle, backend: str, threads: int) -> dict[str, Outcome]:
    # Not by torch.set_num_threads, after which torch 2.13 itself crashes when a child ends.
    found = script("children", bundle.path, backend, str(threads), OMP_NUM_THREADS=str(threads))
    outcomes = {use: Outcome(**outcome) for use, outcome in found.items()}
    assert {use: outcome.exit_code for use, outcome in outcomes.items()} == dict.fromkeys(outcomes, 0)
    assert [outcomes[use].answer for use in ENDS] == [None] * len(ENDS)
    assert "is closed" in outcomes["run when closed"].answer
    return outcomes


@pytest.mark.parametrize(
    ("backend", "threads"), [("onnxruntime", 1), ("openvino", 1), ("torch", 4), ("torchscript", 4)]
)
def test_an_engine_that_loses_no_threads_runs_in_a_child(bundle: Bundle, backend: str, threads: int) -> None:
    """Without threads of its own; torch whatever the parent computed, since it works in a new thread."""
    used = uses(bundle, backend, threads)
    runs = ("run", "run in a thread", "run with one thread", "reopen", "reopen and exit")
    assert [used[use].answer for use in runs] == [True] * len(runs)
    assert used["predict"].answer == 2
    assert used["child of a child"].answer == {"answer": True, "exit_code": 0}


@pytest.mark.parametrize(("backend", "threads"), [("onnxruntime", "onnxruntime's"), ("openvino", "OpenVINO's")])
def test_an_engine_whose_threads_are_lost_is_refused_with_what_to_do(
    bundle: Bundle, backend: str, threads: str
) -> None:
    used = uses(bundle, backend, 4)
    refused = [used[use].answer for use in ("run", "predict", "run in a thread", "run with one thread")]
    for answer in [*refused, used["child of a child"].answer["answer"]]:
        assert answer.startswith("UsageError: ")
        assert f"{threads} threads" in answer
        assert "post_fork" in answer
    assert used["reopen"].answer is used["reopen and exit"].answer is True


def test_the_thread_that_forked_computes_elsewhere() -> None:
    def fails() -> None:
        raise KeyError("x")

    def names() -> list[Any]:
        own = threading.current_thread().name
        call = forks.call_with_threads
        found: list[Any] = [call(lambda: threading.current_thread().name) for _ in range(2)]
        found.append(call(lambda: call(lambda: threading.current_thread().name)))
        try:
            call(fails)
        except KeyError as exc:
            found.append(str(exc))
        with ThreadPoolExecutor(1) as pool:
            found.append(pool.submit(call, lambda: threading.current_thread().name).result() != found[0])
        return [own != found[0], *found]

    assert forks.call_with_threads(threading.get_ident) == threading.get_ident()
    helper = "vitdeploy-after-fork"
    assert in_child(names) == Outcome([True, helper, helper, helper, "'x'", True], 0)


def test_processes_of_a_pool_open_predictors_of_their_own(bundle: Bundle) -> None:
    assert script("pool", bundle.path) == [3] * 4


@pytest.mark.parametrize("held", [True, False])
def test_what_another_thread_was_reading_does_not_keep_a_child_from_it(held: bool) -> None:
    before = Image.MAX_IMAGE_PIXELS
    reading, may_end = threading.Event(), threading.Event()

    def read() -> None:
        with image_limit.limit_lifted(), image_limit._lifted._lock if held else threading.Lock():
            reading.set()
            may_end.wait()

    def read_in_child() -> list[Any]:
        size = open_image(Image.new("RGB", (3, 2))).size
        return [size, Image.MAX_IMAGE_PIXELS, image_limit.max_pixels()]

    thread = threading.Thread(target=read)
    thread.start()
    reading.wait()
    try:
        outcome = in_child(read_in_child)
    finally:
        may_end.set()
        thread.join()
    assert before is not None
    assert outcome == Outcome([[3, 2], before, 2 * before], 0)


def test_a_child_holds_none_of_the_locks_of_its_parents_threads(tmp_path: Path) -> None:
    with locks.locked(tmp_path):
        ready, wait = os.pipe(), os.pipe()
        child = os.fork()
        if not child:
            os.write(ready[1], b".")
            os.read(wait[0], 1)
            os._exit(0)
        os.read(ready[0], 1)
    try:
        descriptor = locks.try_lock(tmp_path)
        assert descriptor is not None
        locks.release(descriptor)
    finally:
        os.write(wait[1], b".")
        os.waitpid(child, 0)
        for each in (*ready, *wait):
            os.close(each)
