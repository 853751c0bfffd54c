"""The asyncio face: no call blocks the event loop, and a cancelled one leaves nothing behind."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from gated_runtime import WAIT_S, GatedRuntime, gated_predictor, gray
from raising import raises

import vitdeploy
from vitdeploy.errors import ImageError, OverloadedError, UsageError
from vitdeploy.serving.in_process.async_predictor import AsyncPredictor
from vitdeploy.serving.in_process.micro_batcher import MicroBatcher

if TYPE_CHECKING:
    from pathlib import Path


def with_predictor(body: Any, **options: Any) -> GatedRuntime:
    """Run a coroutine with an asynchronous predictor of one image a batch."""
    predictor, runtime = gated_predictor()

    async def main() -> None:
        batcher = MicroBatcher(predictor, **{"max_batch_size": 1, "max_delay": 0, "max_queue": 4} | options)
        async with AsyncPredictor(batcher, decoding_threads=1) as served:
            try:
                await asyncio.wait_for(body(served, runtime), WAIT_S)
            finally:
                runtime.gate.set()

    asyncio.run(main())
    return runtime


async def wait_for_run(runtime: GatedRuntime) -> None:
    await asyncio.to_thread(runtime.wait_for_run)


def test_many_calls_are_batches() -> None:
    async def body(served: AsyncPredictor, runtime: GatedRuntime) -> None:
        answers = await asyncio.gather(*(served.predict(gray(value), top_k=1) for value in (0, 250, 100, 200)))
        assert [answer[0].label for answer in answers] == ["dark", "light", "dark", "light"]

    runtime = with_predictor(body, max_batch_size=4, max_delay=WAIT_S)
    assert runtime.shapes == [(4, 3, 5, 5)]


def test_vectors(features: Path) -> None:
    async def main() -> None:
        async with AsyncPredictor(MicroBatcher(predictor)) as served:
            found = await served.embed(gray(9, 40, 40), pool="mean", normalize=True)
            wanted = predictor.embed(gray(9, 40, 40), pool="mean", normalize=True)[0]
            np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)

    with vitdeploy.load(features) as predictor:
        asyncio.run(main())


def test_errors_are_those_of_the_call() -> None:
    async def body(served: AsyncPredictor, runtime: GatedRuntime) -> None:
        with raises(ImageError):
            await served.predict(b"no image")
        runtime.hold()
        tasks = [asyncio.create_task(served.predict(gray(0)))]
        await wait_for_run(runtime)
        tasks += [asyncio.create_task(served.predict(gray(0))) for _ in range(4)]
        await asyncio.sleep(0)
        with raises(OverloadedError, what="max_queue", expected=4):
            await served.predict(gray(0))
        runtime.gate.set()
        assert len(await asyncio.gather(*tasks)) == 5

    with_predictor(body)


def test_the_event_loop_runs_while_images_are_read_and_batches_run() -> None:
    class Slow:
        """A file whose reading waits."""

        def __init__(self) -> None:
            self.begun, self.gate = threading.Event(), threading.Event()

        def read(self, *_: int) -> bytes:
            self.begun.set()
            assert self.gate.wait(WAIT_S)
            return b""

        seek = tell = read

    async def body(served: AsyncPredictor, runtime: GatedRuntime) -> None:
        file: Any = Slow()
        task = asyncio.create_task(served.predict(file))
        await asyncio.to_thread(file.begun.wait)
        assert not task.done()
        file.gate.set()
        with raises(ImageError):
            await task

    with_predictor(body)


def test_a_cancelled_call_leaves_nothing_behind() -> None:
    async def body(served: AsyncPredictor, runtime: GatedRuntime) -> None:
        runtime.hold()
        running = asyncio.create_task(served.predict(gray(0)))
        await wait_for_run(runtime)
        for _ in range(3):  # more than there are places
            waiting = [asyncio.create_task(served.predict(gray(0))) for _ in range(3)]
            await asyncio.sleep(0.001)
            for task in waiting:
                task.cancel()
            assert {type(result) for result in await asyncio.gather(*waiting, return_exceptions=True)} == {
                asyncio.CancelledError
            }
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(served.predict(gray(0)), 0.01)
        running.cancel()  # its run goes on, for nobody
        assert served.batcher.statistics().waiting == 0
        runtime.gate.set()
        assert await served.predict(gray(0))
        statistics = served.batcher.statistics()
        assert (statistics.cancelled, statistics.answered, statistics.running) == (10, 2, 0)

    assert len(with_predictor(body).shapes) == 2


def test_accepted_calls_are_answered_before_the_end() -> None:
    async def body(served: AsyncPredictor, runtime: GatedRuntime) -> None:
        runtime.hold()
        tasks = [asyncio.create_task(served.predict(gray(0))) for _ in range(3)]
        await wait_for_run(runtime)
        closing = asyncio.create_task(served.close())
        await asyncio.sleep(0.01)
        assert not closing.done()
        runtime.gate.set()
        await closing
        assert [len(answer) for answer in await asyncio.gather(*tasks)] == [2, 2, 2]
        with raises(UsageError, what="batcher", found="closed"):
            await served.predict(gray(0))

    with_predictor(body)


def test_arguments() -> None:
    with MicroBatcher(gated_predictor()[0]) as batcher, raises(UsageError, what="decoding_threads", found=0):
        AsyncPredictor(batcher, decoding_threads=0)
    predictor: Any = gated_predictor()[0]
    with raises(UsageError, what="batcher", found=predictor):
        AsyncPredictor(predictor)
