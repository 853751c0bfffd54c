"""A bounded queue of images that groups those that can share a run into batches."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

import numpy as np

from vitdeploy.errors import OverloadedError, UsageError
from vitdeploy.images.open import ImageSource
from vitdeploy.predictor import Predictor
from vitdeploy.serving.in_process.batch_counters import BatchCounters, BatchStatistics


class Group(NamedTuple):
    """Requests that can share a run.

    Attributes:
        predictor: Runs them.
        shape: Shape of each one's `pixel_values`.
        limit: Most images in a run.
    """

    predictor: Predictor
    shape: tuple[int, ...]
    limit: int


@dataclasses.dataclass(frozen=True, eq=False)
class PreparedImage:
    """An image that was read, and the step from its outputs to its result.

    Attributes:
        group: Requests that can share its run.
        pixel_values: (1, ...) in the format of the predictor's runtime.
        finish: Computes the result from the image's rows of the outputs, (1, ...) by name.
    """

    group: Group
    pixel_values: np.ndarray
    finish: Callable[[Mapping[str, np.ndarray]], Any]


@dataclasses.dataclass(eq=False)
class Request:
    """One image on its way.

    Attributes:
        future: Its result, for the caller.
        image: The image until it is read, or the future is cancelled.
        index: Position in its call, for messages about images without a path.
        prepared: The image once it is read.
        accepted_s: Time of its acceptance.
        queued_s: Time since which it waits for a run.
    """

    image: ImageSource | None
    index: int = 0
    future: Future[Any] = dataclasses.field(default_factory=Future)
    prepared: PreparedImage | None = None
    accepted_s: float = 0.0
    queued_s: float = 0.0


class RequestQueue:
    """Requests in the order of their arrival, by predictor and image shape. All methods are thread-safe.

    Args:
        max_queue: Most requests that wait: those that are being read, and those that were read.
        max_delay: Seconds that a request waits for others of its group, unless they are a full batch.
        clock: Current time in seconds.
    """

    def __init__(self, max_queue: int, max_delay: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_queue, self._max_delay, self._clock = max_queue, max_delay, clock
        self._changed = threading.Condition()
        self._waiting: set[Request] = set()
        self._groups: dict[Group, deque[Request]] = {}
        self._closed = False
        self._counters = BatchCounters()

    def accept(self, requests: Sequence[Request]) -> None:
        """Reserve a place for each request of a call, which is then read and `put`; for all or for none.

        Raises:
            OverloadedError: If there are too few places.
            UsageError: If the queue is closed.
        """
        with self._changed:
            if self._closed:
                raise UsageError("this micro-batcher is closed", what="batcher", found="closed", hint="make another")
            if len(self._waiting) + len(requests) > self._max_queue:
                self._counters.refused += len(requests)
                raise OverloadedError(
                    f"{len(self._waiting)} images wait, and the queue takes {self._max_queue}", what="max_queue",
                    expected=self._max_queue, found=len(self._waiting) + len(requests),
                    hint="try again later, or send less",
                )  # fmt: skip
            self._waiting.update(requests)
            self._counters.requests += 1
            self._counters.images += len(requests)
            for request in requests:
                request.accepted_s = self._clock()

    def put(self, request: Request, prepared: PreparedImage) -> None:
        """Let an accepted request, which was read, wait for a run; no longer if it was cancelled meanwhile."""
        with self._changed:
            if request not in self._waiting:
                return
            request.prepared, request.queued_s = prepared, self._clock()
            self._groups.setdefault(prepared.group, deque()).append(request)
            self._changed.notify_all()

    def settle(self, request: Request) -> None:
        """Count a request whose future is done, and free its place if it still waited."""
        future, now = request.future, self._clock()
        with self._changed:
            if request in self._waiting:
                self._waiting.remove(request)
                if request.prepared is not None:
                    group = request.prepared.group
                    self._groups[group].remove(request)
                    if not self._groups[group]:
                        del self._groups[group]  # it holds its predictor
                self._changed.notify_all()
            if future.cancelled():
                self._counters.cancelled += 1
            elif future.exception() is not None:
                self._counters.failed += 1
            else:
                self._counters.add_answer(now - request.accepted_s)
        request.image = request.prepared = None

    def take(self) -> list[Request] | None:
        """Wait for the next batch: a full one, or one whose first request waited long enough.

        None once the queue is closed, and every accepted request was taken or cancelled.
        """
        with self._changed:
            while self._waiting or not self._closed:
                now = self._clock()
                oldest = {group: requests[0].queued_s for group, requests in self._groups.items()}
                due = [group for group, queued_s in oldest.items() if self._is_due(group, now - queued_s)]
                if due:
                    return self._pop(min(due, key=oldest.__getitem__))
                self._changed.wait(min(oldest.values()) + self._max_delay - now if oldest else None)
            return None

    def close(self) -> tuple[Request, ...]:
        """Accept no more; the waiting requests, for which there is no delay any more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            return tuple(self._waiting)

    def add_batch(self, size: int) -> None:
        """Count a run."""
        with self._changed:
            self._counters.add_batch(size)

    def statistics(self) -> BatchStatistics:
        with self._changed:
            return self._counters.statistics(len(self._waiting))

    def _is_due(self, group: Group, waited_s: float) -> bool:
        return self._closed or waited_s >= self._max_delay or len(self._groups[group]) >= group.limit

    def _pop(self, group: Group) -> list[Request]:
        requests = self._groups.pop(group)
        batch = [requests.popleft() for _ in range(min(len(requests), group.limit))]
        if requests:
            self._groups[group] = requests
        self._waiting.difference_update(batch)
        return batch
