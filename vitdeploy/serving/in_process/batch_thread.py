"""The thread that runs the batches of a queue, one after the other."""

from __future__ import annotations

import copy
import logging
import os
import threading
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np

from vitdeploy.errors import VitDeployError
from vitdeploy.serving.in_process.request_queue import PreparedImage, RequestQueue

logger = logging.getLogger(__name__)


class BatchThread:
    """Runs batches until the queue is closed; at the end of the process, until the current batch is complete."""

    def __init__(self, queue: RequestQueue) -> None:
        self._queue, self._process = queue, os.getpid()
        self._thread = threading.Thread(target=_run_batches, args=(queue,), name="vitdeploy-micro-batcher", daemon=True)
        self._thread.start()
        # A thread that still runs while the interpreter ends could crash the process.
        self._end = weakref.finalize(self, _end, queue, self._thread, self._process, drain=False)

    @property
    def is_lost(self) -> bool:
        """True in a forked child, which has no such thread; a lock of the queue may be held forever there."""
        return os.getpid() != self._process

    def end(self, *, drain: bool) -> None:
        """Close the queue, and wait for the end of its batches; see `MicroBatcher.close`."""
        self._end.detach()
        _end(self._queue, self._thread, self._process, drain=drain)


def _end(queue: RequestQueue, thread: threading.Thread, process: int, *, drain: bool) -> None:
    if os.getpid() != process:
        return
    waiting = queue.close()
    if not drain:
        for request in waiting:
            request.future.cancel()
    if threading.current_thread() is not thread:
        thread.join()


def _run_batches(queue: RequestQueue) -> None:
    while _run_next(queue):
        pass


def _run_next(queue: RequestQueue) -> bool:
    """Run the next batch; False if there will be none. A function, so that an idle thread holds no batch."""
    batch = queue.take()
    if batch is None:
        return False
    running = [
        (request.future, request.prepared)
        for request in batch
        if request.future.set_running_or_notify_cancel() and request.prepared is not None
    ]
    if running:
        queue.add_batch(len(running))
        _run(running)
    del batch, running  # the traceback of an error leads here: it would keep itself and the images
    return True


def _run(batch: Sequence[tuple[Future[Any], PreparedImage]]) -> None:
    """Run images of one group, and complete their futures, which are running."""
    predictor = batch[0][1].group.predictor
    try:
        pixel_values = np.concatenate([prepared.pixel_values for _, prepared in batch])
        outputs = predictor.runtime.run({"pixel_values": pixel_values})
    except BaseException as exc:  # noqa: BLE001  (raised by each future; the thread lives on)
        for future, _ in batch:
            # One error each: whoever raises it adds to its traceback.
            _complete(future.set_exception, copy.copy(exc) if isinstance(exc, VitDeployError) else exc)
        del batch, future  # as in `_run_next`
        return
    for row, (future, prepared) in enumerate(batch):
        try:
            result = prepared.finish({name: values[row : row + 1] for name, values in outputs.items()})
        except BaseException as exc:  # noqa: BLE001  (raised by the future)
            _complete(future.set_exception, exc)
        else:
            _complete(future.set_result, result)
    del batch, future


def _complete(complete: Callable[[Any], None], outcome: Any) -> None:
    """Complete a future. `Future` logs an `Exception` of its callbacks; the thread outlives SystemExit and the like."""
    try:
        complete(outcome)
    except BaseException:
        logger.exception("a callback of a result failed")
