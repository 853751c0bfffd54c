"""Combine single images from many threads into batches."""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from collections.abc import Sequence
from concurrent import futures
from concurrent.futures import Executor, Future
from typing import Any

import numpy as np

from vitdeploy.errors import UsageError, check_count, shown
from vitdeploy.images.open import ImageSource
from vitdeploy.images.processor import as_batch
from vitdeploy.predictor import Prediction, Predictor
from vitdeploy.runtimes.base import Runtime
from vitdeploy.serving.in_process.batch_counters import BatchStatistics
from vitdeploy.serving.in_process.batch_thread import BatchThread
from vitdeploy.serving.in_process.image_results import FinishFor, classes, vector
from vitdeploy.serving.in_process.leases import Lender, lease
from vitdeploy.serving.in_process.request_queue import Group, PreparedImage, Request, RequestQueue
from vitdeploy.specs import MOST_A_BATCH, Pool
from vitdeploy.system.argument_types import check_type
from vitdeploy.system.closing import ClosedOnExit


class MicroBatcher(ClosedOnExit):
    """Answers requests for single images, from any number of threads, in batches.

    A thread runs the batches one after the other; while one runs, the next one gathers. An image is read in the thread
    of its caller, and fails alone if it cannot be read. An error of a run is that of its images only. Images of
    different shapes, for a model that takes several, run apart. Results are those of the predictor.

    A context manager, which leaves the predictor open. In a forked child it refuses every call.

    Args:
        predictor: A `Predictor`, which may be used beside it, or a `ReloadingPredictor`.
        max_batch_size: Most images in a run, at least 1; less for an engine that takes less.
        max_delay: Seconds that an image waits for others, at least 0. With 0, a batch has the images that came during
            the run before it.
        max_queue: Most images that wait, at least 1. Each takes the memory of the model's input: 0.6 MB for 224x224
            pixels in float32.

    Raises:
        UsageError: If an argument is invalid.
    """

    def __init__(
        self,
        predictor: Predictor | Lender,
        *,
        max_batch_size: int = 8,
        max_delay: float = 0.005,
        max_queue: int = 128,
    ) -> None:
        check_count("max_batch_size", max_batch_size, most=MOST_A_BATCH)
        check_count("max_queue", max_queue)
        check_type("max_delay", max_delay, float)
        if not 0 <= max_delay <= threading.TIMEOUT_MAX:
            message = f"max_delay takes seconds from 0 up, got {shown(max_delay)}"
            raise UsageError(message, what="max_delay", found=max_delay)
        if not isinstance(predictor, Predictor) and not hasattr(predictor, "lease"):
            message, hint = f"a micro-batcher takes a predictor, got {shown(predictor)}", "open it with vitdeploy.load"
            raise UsageError(message, what="predictor", found=predictor, hint=hint)
        self._predictor, self._max_batch_size, self._max_queue = predictor, max_batch_size, max_queue
        self._queue = RequestQueue(max_queue, float(max_delay))
        self._thread = BatchThread(self._queue)

    def submit(
        self, image: ImageSource, *, top_k: int | None = None, executor: Executor | None = None
    ) -> Future[list[Prediction]]:
        """Predict the top classes of an image.

        Args:
            image: One image; see `ImageProcessor`.
            top_k: See `Predictor.predict`.
            executor: Reads the image, instead of this thread.

        Returns:
            A future of the predictions, best first, or of the error of `Predictor.predict`. Cancelled before its run,
            it frees its place in the queue.

        Raises:
            OverloadedError: If the queue is full.
            UsageError: If the micro-batcher is closed, or was made before the process forked.
        """
        return self._submit(image, classes(top_k), executor)

    def submit_embedding(
        self,
        image: ImageSource,
        *,
        pool: Pool | None = None,
        normalize: bool = False,
        executor: Executor | None = None,
    ) -> Future[np.ndarray]:
        """Compute the vector of an image: a future of (D,) float32, or of the error of `Predictor.embed`.

        See `submit` for `image`, `executor` and errors, and `Predictor.embed` for the rest.
        """
        return self._submit(image, vector(pool, normalize), executor)

    def predict(
        self,
        images: ImageSource | Sequence[ImageSource],
        *,
        top_k: int | None = None,
        timeout: float | None = None,
    ) -> list[list[Prediction]]:
        """`Predictor.predict`, in batches with the images of other calls.

        Args:
            images: From 1 to `max_queue` images.
            top_k: See `Predictor.predict`.
            timeout: Seconds to wait for the results. Default: no limit.

        Raises:
            OverloadedError: If the queue has too few places for these images.
            TimeoutError: If the results are not there in time; the images that still wait are dropped.
            VitDeployError: As `submit` and `Predictor.predict`.
        """
        return self._answer(images, classes(top_k), timeout)

    def embed(
        self,
        images: ImageSource | Sequence[ImageSource],
        *,
        pool: Pool | None = None,
        normalize: bool = False,
        timeout: float | None = None,
    ) -> np.ndarray:
        """`Predictor.embed`, in batches with the images of other calls: (N, D) float32.

        See `predict` for `images`, `timeout` and errors, and `Predictor.embed` for the rest.
        """
        return np.stack(self._answer(images, vector(pool, normalize), timeout))

    def statistics(self) -> BatchStatistics:
        """Counters since the start, for an application's metrics."""
        self._check_process()
        return self._queue.statistics()

    def close(self, *, drain: bool = True) -> None:
        """Refuse new images, and wait until the accepted ones are answered. A second call does nothing.

        Args:
            drain: False to cancel the futures of images that are not in a run yet.
        """
        self._thread.end(drain=drain)

    def _submit(self, image: ImageSource, finish_for: FinishFor, executor: Executor | None) -> Future[Any]:
        (request,) = self._accept([image])
        if executor is None:
            self._prepare(request, finish_for)
            return request.future
        try:
            reading = executor.submit(self._prepare, request, finish_for)
        except BaseException:  # it was shut down, or is none
            request.future.cancel()
            raise
        reading.add_done_callback(functools.partial(_pass_on, request.future))
        return request.future

    def _answer(
        self, images: ImageSource | Sequence[ImageSource], finish_for: FinishFor, timeout: float | None
    ) -> list[Any]:
        check_type("timeout", timeout, float | None)
        batch = as_batch(images)
        if not 1 <= len(batch) <= self._max_queue:
            message = f"a call takes from 1 to {self._max_queue} images, got {len(batch)}"
            raise UsageError(message, what="images", expected=self._max_queue, found=len(batch))
        end = None if timeout is None else time.monotonic() + float(min(timeout, threading.TIMEOUT_MAX))
        requests = self._accept(batch)
        try:
            for request in requests:
                self._prepare(request, finish_for)
            answers = []
            for request in requests:
                answers.append(request.future.result(None if end is None else max(0.0, end - time.monotonic())))  # noqa: PERF401  (a comprehension's frame holds a request)
            return answers
        except futures.TimeoutError as exc:  # in Python 3.10 it is not the built-in one
            raise TimeoutError(f"no result within {timeout} s") from exc
        finally:
            for request in requests:
                request.future.cancel()
            del request, requests  # or an error, which holds this frame, would hold itself and the images

    def _accept(self, images: Sequence[ImageSource]) -> list[Request]:
        self._check_process()
        requests = [Request(image, index) for index, image in enumerate(images)]
        self._queue.accept(requests)
        for request in requests:
            request.future.add_done_callback(functools.partial(self._settle, [request]))
        return requests

    def _check_process(self) -> None:
        if self._thread.is_lost:
            message, hint = "this micro-batcher was made before the process forked", "make it in each process"
            raise UsageError(message, what="batcher", found="forked", hint=hint)

    def _settle(self, request: list[Request], _: Future[Any]) -> None:
        self._queue.settle(request.pop())  # or each future would hold itself by its callback

    def _prepare(self, request: Request, finish_for: FinishFor) -> None:
        """Read the request's image, and let it wait for a run; an error goes to its future."""
        image: Any = request.image  # also a caller's None, which the processor refuses
        if request.future.done():  # it was cancelled
            return
        try:
            lent = lease(self._predictor)
            request.future.add_done_callback(lambda _: lent.release())
            self._queue.put(request, self._prepared(lent.predictor, image, request.index, finish_for))
        except Exception as exc:  # noqa: BLE001  (raised by the future)
            if request.future.set_running_or_notify_cancel():
                request.future.set_exception(exc)
        except BaseException:  # an interrupt of the caller
            request.future.cancel()
            raise
        finally:
            request.image = None
            del request  # or an error, which holds this frame, would hold itself and the image

    def _prepared(self, predictor: Predictor, image: ImageSource, index: int, finish_for: FinishFor) -> PreparedImage:
        finish = finish_for(predictor, image, index)
        pixel_values = predictor.processor([image], pixels=predictor.runtime.pixels, threads=1, first_index=index)
        limit = _limit(predictor.runtime, pixel_values.shape, self._max_batch_size)
        return PreparedImage(Group(predictor, pixel_values.shape, limit), pixel_values, finish)


def _pass_on(future: Future[Any], reading: Future[Any]) -> None:
    """End an image's future if the executor could not read it: it was shut down, or is one of processes."""
    if reading.cancelled():
        future.cancel()
    elif (error := reading.exception()) is not None:
        with contextlib.suppress(futures.InvalidStateError):  # it was cancelled
            future.set_exception(error)


def _limit(runtime: Runtime, shape: tuple[int, ...], wanted: int) -> int:
    """Most images of a shape, (1, ...), in a run, up to `wanted`."""
    axis = runtime.inputs[0].shape[0]
    most = axis if isinstance(axis, int) else runtime.axes[axis].maximum if axis in runtime.axes else None
    limit = wanted if most is None else min(wanted, most)
    problem = runtime.size_problem
    if problem is not None:  # an image alone is checked by the run
        size = runtime.pixels.size(shape)
        limit = next((count for count in range(limit, 1, -1) if problem(count, *size) is None), 1)
    return limit
