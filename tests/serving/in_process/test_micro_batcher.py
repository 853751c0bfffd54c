"""Requests of many threads become batches, and each has its own answer or error."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import os
import sys
import threading
import time
import weakref
from concurrent.futures import CancelledError, Executor, Future, ThreadPoolExecutor
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from environments import run
from forking import in_child
from gated_runtime import WAIT_S, GatedRuntime, gated_predictor, gray
from raising import raises

import vitdeploy
from vitdeploy.errors import DeviceError, ImageError, NotFiniteError, OverloadedError, UsageError
from vitdeploy.predictor import Predictor
from vitdeploy.serving.in_process.micro_batcher import MicroBatcher
from vitdeploy.specs import AxisRange

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from vitdeploy.bundle.bundle import Bundle

DIGITS = np.random.default_rng(0).integers(0, 256, (12, 28, 28, 3), np.uint8)


@pytest.fixture
def gated() -> tuple[Predictor, GatedRuntime]:
    return gated_predictor()


@pytest.fixture
def runtime(gated: tuple[Predictor, GatedRuntime]) -> GatedRuntime:
    return gated[1]


@pytest.fixture
def batcher(gated: tuple[Predictor, GatedRuntime]) -> Iterator[MicroBatcher]:
    with MicroBatcher(gated[0], max_batch_size=4, max_delay=0, max_queue=6) as made:
        yield made
        gated[1].gate.set()


def occupied(batcher: MicroBatcher, runtime: GatedRuntime) -> Any:
    """Begin a run that waits; the future of its image."""
    runtime.hold()
    future = batcher.submit(gray(0))
    runtime.wait_for_run()
    return future


@pytest.mark.parametrize("threads", [1, 8])
def test_answers_are_those_of_the_predictor(digits: Bundle, threads: int) -> None:
    images = list(DIGITS)
    with vitdeploy.load(digits.path) as predictor, MicroBatcher(predictor, max_batch_size=4) as batcher:
        alone = [predictor.predict(image, top_k=3)[0] for image in images]
        with ThreadPoolExecutor(threads) as pool:
            singles = list(pool.map(lambda image: batcher.predict(image, top_k=3)[0], images))
        together = batcher.predict(images, top_k=3)
        statistics = batcher.statistics()
    for answers in (singles, together):
        for answer, wanted in zip(answers, alone, strict=True):
            assert [best.label for best in answer] == [best.label for best in wanted]
            scores = [best.score for best in answer]
            assert scores == pytest.approx([best.score for best in wanted], rel=1e-5, abs=1e-7)  # of float32
    assert statistics.answered == statistics.images == 24
    assert sum(size * count for size, count in statistics.batch_sizes.items()) == 24
    assert max(statistics.batch_sizes) == 4


def test_vectors_are_those_of_the_predictor(features: Path) -> None:
    with vitdeploy.load(features) as predictor, MicroBatcher(predictor) as batcher:
        for options in ({}, {"pool": "mean", "normalize": True}):
            vectors = batcher.embed(list(DIGITS[:3]), **options)  # type: ignore[arg-type]
            wanted = predictor.embed(list(DIGITS[:3]), **options)  # type: ignore[arg-type]
            np.testing.assert_allclose(vectors, wanted, rtol=1e-4, atol=1e-5)
        vector = batcher.submit_embedding(DIGITS[0]).result()
        np.testing.assert_allclose(vector, predictor.embed(DIGITS[0])[0], rtol=1e-4, atol=1e-5)
        assert vector.base is None
        with raises(UsageError, what="outputs"):
            batcher.predict(DIGITS[0])
        with raises(UsageError, what="normalize"):
            batcher.embed(DIGITS[0], normalize=1)  # type: ignore[arg-type]


def test_images_gather_while_a_batch_runs(batcher: MicroBatcher, runtime: GatedRuntime) -> None:
    first = occupied(batcher, runtime)
    others = [batcher.submit(gray(value), top_k=1) for value in range(0, 250, 50)]
    runtime.gate.set()
    assert [best.label for best in first.result()] == ["dark", "light"]
    assert [future.result()[0].label for future in others] == ["dark", "dark", "dark", "light", "light"]
    assert [shape[0] for shape in runtime.shapes] == [1, 4, 1]


def test_a_batch_waits_for_others_until_the_delay(gated: tuple[Predictor, GatedRuntime]) -> None:
    """Without a time that the test measures: a full batch is there long before the delay, and ends the wait."""
    with MicroBatcher(gated[0], max_batch_size=3, max_delay=WAIT_S) as batcher:
        futures = [batcher.submit(gray(value)) for value in (0, 1, 2)]
        for future in futures:
            future.result(WAIT_S / 2)
    assert gated[1].shapes == [(3, 3, 5, 5)]


def test_a_full_queue_refuses_at_once(batcher: MicroBatcher, runtime: GatedRuntime) -> None:
    first = occupied(batcher, runtime)
    futures = [batcher.submit(gray(9)) for _ in range(6)]
    with raises(OverloadedError, what="max_queue", expected=6, found=7):
        batcher.submit(b"not read")
    with raises(OverloadedError, found=8):
        batcher.predict([gray(0)] * 2)
    assert batcher.statistics().to_dict() | {"waiting": 6, "running": 1, "refused": 3, "images": 7} == (
        batcher.statistics().to_dict()
    )
    runtime.gate.set()
    assert [len(future.result()) for future in (first, *futures)] == [2] * 7
    assert len(batcher.predict(gray(0))) == 1


def test_a_bad_image_fails_alone(batcher: MicroBatcher, runtime: GatedRuntime) -> None:
    occupied(batcher, runtime)
    good, bad, other = batcher.submit(gray(0)), batcher.submit(b"no image"), batcher.submit(gray(255))
    with raises(ImageError):
        bad.result()
    runtime.gate.set()
    assert good.result()
    with raises(NotFiniteError, what="logits", found=["images[0]"]):
        other.result()
    assert runtime.shapes == [(1, 3, 5, 5), (2, 3, 5, 5)]
    statistics = batcher.statistics()
    assert (statistics.failed, statistics.waiting, statistics.running) == (2, 0, 0)


def test_a_bad_image_of_a_call_is_named_and_the_others_are_dropped(batcher: MicroBatcher, tmp_path: Path) -> None:
    with raises(ImageError, what="images[1]"):
        batcher.predict([gray(0), b"no image", gray(0)])
    (tmp_path / "cat.jpg").write_bytes(b"no image")
    with raises(ImageError, what=str(tmp_path / "cat.jpg")):
        batcher.predict([gray(0), tmp_path / "cat.jpg"])
    statistics = batcher.statistics()
    assert statistics.images == statistics.answered + statistics.failed + statistics.cancelled == 5


def test_a_failed_run_fails_its_images_alone(batcher: MicroBatcher, runtime: GatedRuntime) -> None:
    first = occupied(batcher, runtime)
    others = [batcher.submit(gray(0)) for _ in range(2)]
    runtime.error = DeviceError("out of memory", what="device")
    runtime.gate.set()
    errors = [future.exception() for future in (first, *others)]
    assert {(type(error), str(error)) for error in errors} == {(DeviceError, "out of memory")}
    assert len(set(map(id, errors))) == 3
    runtime.error = None
    assert batcher.predict(gray(0))
    runtime.error = SystemExit()  # nothing ends the thread
    with pytest.raises(SystemExit):
        batcher.predict(gray(0))
    runtime.error = None
    assert batcher.predict(gray(0))


@pytest.mark.parametrize("error", [SystemExit, asyncio.CancelledError])
def test_an_error_of_a_callback_ends_neither_the_thread_nor_other_images(
    batcher: MicroBatcher, runtime: GatedRuntime, error: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: Future[Any]) -> None:
        raise error

    first = occupied(batcher, runtime)
    futures = [batcher.submit(gray(value)) for value in (0, 255, 0)]  # the second has no result
    for future in (first, *futures[:2]):
        future.add_done_callback(fail)
    runtime.gate.set()
    assert futures[2].result(WAIT_S)
    assert batcher.predict(gray(0), timeout=WAIT_S)
    assert [record.exc_info and record.exc_info[0] for record in caplog.records] == [error] * 3


class RunError(Exception):
    """Of an engine."""


@pytest.mark.parametrize(("image", "error"), [(b"no image", None), (gray(255), None), (gray(0), RunError)])
def test_an_error_does_not_keep_itself_and_its_images_until_a_garbage_collection(
    batcher: MicroBatcher, runtime: GatedRuntime, image: Any, error: type[BaseException] | None
) -> None:
    runtime.error = None if error is None else error()
    gc.disable()
    try:
        try:
            batcher.predict([image] * 2)
        except (ImageError, NotFiniteError, RunError) as exc:
            kept = weakref.ref(exc)
        runtime.error = None
        batcher.predict(gray(0))  # the thread is done with the others
        assert kept() is None
    finally:
        gc.enable()


def test_images_of_different_shapes_run_apart() -> None:
    predictor, runtime = gated_predictor(fixed_size=False)
    with MicroBatcher(predictor, max_delay=0) as batcher:
        occupied(batcher, runtime)
        futures = [batcher.submit(gray(7, *size)) for size in ((6, 7), (2, 2), (6, 7))]
        runtime.gate.set()
        assert [future.result()[0] for future in futures] == [predictor.predict(gray(7))[0][0]] * 3
    assert runtime.shapes[1:3] == [(2, 3, 6, 7), (1, 3, 2, 2)]


@pytest.mark.parametrize(
    ("limits", "sizes"),
    [
        ({"axes": {"batch": AxisRange(1, 2, 2)}}, [2, 2, 1]),
        ({"size_problem": lambda count, *_: "too large" if count > 3 else None}, [3, 2]),
        ({}, [5]),
    ],
)
def test_a_batch_is_no_larger_than_the_artifact_takes(limits: dict[str, Any], sizes: list[int]) -> None:
    predictor, runtime = gated_predictor()
    for name, value in limits.items():
        setattr(runtime, name, value)
    with MicroBatcher(predictor, max_delay=0) as batcher:
        occupied(batcher, runtime)
        futures = [batcher.submit(gray(0)) for _ in range(5)]
        runtime.gate.set()
        for future in futures:
            future.result()
    assert [shape[0] for shape in runtime.shapes[1:]] == sizes


def test_a_cancelled_image_does_not_run(batcher: MicroBatcher, runtime: GatedRuntime) -> None:
    first = occupied(batcher, runtime)
    futures = [batcher.submit(gray(0)) for _ in range(6)]
    assert futures[2].cancel()
    assert not first.cancel()
    batcher.submit(gray(0))  # in its place
    runtime.gate.set()
    assert [len(future.result()) for future in (first, *futures[:2], *futures[3:])] == [2] * 6
    assert sum(shape[0] for shape in runtime.shapes) <= 7


def test_a_call_ends_at_its_timeout(batcher: MicroBatcher, runtime: GatedRuntime) -> None:
    occupied(batcher, runtime)
    with pytest.raises(TimeoutError):
        batcher.predict([gray(0), gray(0)], timeout=0.01)
    assert batcher.statistics().cancelled == 2
    assert batcher.statistics().waiting == 0


def test_accepted_images_are_answered_before_the_end(gated: tuple[Predictor, GatedRuntime]) -> None:
    predictor, runtime = gated
    batcher = MicroBatcher(predictor, max_batch_size=2, max_delay=WAIT_S)
    first = [batcher.submit(gray(0)) for _ in range(2)]
    runtime.hold()
    others = [batcher.submit(gray(0)) for _ in range(3)]
    closing = threading.Thread(target=batcher.close)
    closing.start()
    while not batcher._queue._closed:
        time.sleep(0.001)
    with raises(UsageError, what="batcher", found="closed"):
        batcher.submit(gray(0))
    assert closing.is_alive()
    runtime.gate.set()
    closing.join(WAIT_S)
    assert all(future.done() and future.result() for future in (*first, *others))
    batcher.close()
    assert predictor.predict(gray(0)), "the predictor stays open"


def test_without_a_drain_what_waits_is_cancelled(gated: tuple[Predictor, GatedRuntime]) -> None:
    batcher = MicroBatcher(gated[0], max_batch_size=1, max_delay=0)
    first = occupied(batcher, gated[1])
    other = batcher.submit(gray(0))
    closing = threading.Thread(target=batcher.close, kwargs={"drain": False})
    closing.start()
    with pytest.raises(CancelledError):
        other.result(WAIT_S)
    gated[1].gate.set()
    closing.join(WAIT_S)
    assert first.result()


def test_images_are_read_in_an_executor(batcher: MicroBatcher) -> None:
    with ThreadPoolExecutor(1) as executor:
        assert batcher.submit(gray(0), executor=executor).result()
        with raises(ImageError):
            batcher.submit(b"no image", executor=executor).result()
        entered, leave = threading.Event(), threading.Event()
        executor.submit(entered.set)
        executor.submit(leave.wait, WAIT_S)
        entered.wait(WAIT_S)
        waiting = [batcher.submit(gray(0), executor=executor) for _ in range(2)]
        waiting[0].cancel()
        executor.shutdown(wait=False, cancel_futures=True)  # the other one will never be read
        with pytest.raises(CancelledError):
            waiting[1].result(WAIT_S)
        leave.set()
    with pytest.raises(RuntimeError):
        batcher.submit(gray(0), executor=executor)
    assert batcher.statistics().waiting == 0


def test_an_executor_that_cannot_read_leaves_nothing_behind(batcher: MicroBatcher) -> None:
    class Processes(Executor):
        def submit(self, *_: Any, **__: Any) -> Future[Any]:
            failed: Future[Any] = Future()
            failed.set_exception(TypeError("cannot pickle"))
            return failed

    with pytest.raises(TypeError):
        batcher.submit(gray(0), executor=Processes()).result(WAIT_S)
    with pytest.raises(AttributeError):
        batcher.submit(gray(0), executor="threads")  # type: ignore[arg-type]
    assert batcher.statistics().waiting == 0


@pytest.mark.parametrize("seconds", [np.float32(0), np.longdouble(0), np.int64(0), Fraction(0)])
def test_seconds_are_any_number(gated: tuple[Predictor, GatedRuntime], seconds: Any) -> None:
    with MicroBatcher(gated[0], max_delay=seconds) as batcher:
        assert batcher.predict(gray(0), timeout=seconds + WAIT_S)
    with MicroBatcher(gated[0], max_delay=seconds + 0.001) as batcher:
        assert batcher.predict(gray(0), timeout=WAIT_S)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("max_batch_size", 0), ("max_queue", 1.5), ("max_delay", -0.1), ("max_delay", float("nan")), ("max_delay", "1"),
        ("max_delay", 1e10), ("predictor", None), ("predictor", "vit"),
    ],
)  # fmt: skip
def test_arguments(gated: tuple[Predictor, GatedRuntime], option: str, value: Any) -> None:
    with raises(UsageError, what=option):
        MicroBatcher(**{"predictor": gated[0], option: value})


def test_arguments_of_a_call(batcher: MicroBatcher) -> None:
    for images in ([], [gray(0)] * 7):
        with raises(UsageError, what="images", expected=6, found=len(images)):
            batcher.predict(images)
    with raises(UsageError, what="top_k"):
        batcher.submit(gray(0), top_k=0).result()
    with raises(UsageError, what="images[0]", found="list"):
        batcher.submit([gray(0)]).result()  # type: ignore[arg-type]
    with raises(UsageError, what="images[0]", found="NoneType"):
        batcher.submit(None).result(WAIT_S)  # type: ignore[arg-type]
    with raises(UsageError, what="timeout", found="1"):
        batcher.predict(gray(0), timeout="1")  # type: ignore[arg-type]
    assert batcher.predict(gray(0), timeout=float("inf"))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_is_refused(batcher: MicroBatcher) -> None:
    def use() -> list[str]:
        told = []
        for call in (lambda: batcher.predict(gray(0)), batcher.statistics):
            try:
                call()
            except UsageError as exc:
                told.append(f"{exc.what} {exc.found}")
        batcher.close()
        return told

    assert dataclasses.astuple(in_child(use)) == (["batcher forked"] * 2, 0)
    assert batcher.predict(gray(0)), "the parent goes on"


def test_a_process_ends_although_its_batcher_was_not_closed(digits: Bundle) -> None:
    """Nor does the end of a forked child wait for the thread, which it does not have."""
    code = """
import os, sys, warnings
import numpy as np, vitdeploy
image = np.zeros((9, 9, 3), np.uint8)
batcher = vitdeploy.MicroBatcher(vitdeploy.load(sys.argv[1]))
print(len(batcher.predict(image)[0]))
if hasattr(os, "fork"):
    warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads
    child = os.fork()
    if not child:
        sys.exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
batcher.submit(image)
"""
    printed = run(sys.executable, "-W", "error", "-c", code, digits.path).split()
    assert printed == (["5", "0"] if hasattr(os, "fork") else ["5"])
