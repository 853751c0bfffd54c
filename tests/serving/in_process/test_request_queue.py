"""The order, the size and the time of batches, on a clock of the test."""

from __future__ import annotations

import numpy as np
import pytest
from gated_runtime import gated_predictor
from raising import raises

from vitdeploy.errors import OverloadedError, UsageError
from vitdeploy.serving.in_process.request_queue import Group, PreparedImage, Request, RequestQueue

PREDICTOR, _ = gated_predictor()
MAX_QUEUE, MAX_DELAY = 8, 1.0


class Clock:
    """Time passes when the test says so."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def queue(clock: Clock) -> RequestQueue:
    return RequestQueue(MAX_QUEUE, MAX_DELAY, clock)


def put(queue: RequestQueue, *sides: int, limit: int = 3) -> list[Request]:
    """One request for each image, by its side."""
    requests = [Request(b"") for _ in sides]
    queue.accept(requests)
    for request, side in zip(requests, sides, strict=True):
        pixel_values = np.zeros((1, 3, side, side), np.float32)
        queue.put(request, PreparedImage(Group(PREDICTOR, pixel_values.shape, limit), pixel_values, lambda _: None))
    return requests


def test_a_full_batch_does_not_wait(queue: RequestQueue) -> None:
    requests = put(queue, 4, 4, 4, 4)
    assert queue.take() == requests[:3]
    assert queue.statistics().waiting == 1


def test_an_image_waits_no_longer_than_the_delay(queue: RequestQueue, clock: Clock) -> None:
    requests = put(queue, 4)
    clock.now = 0.6
    requests += put(queue, 4)
    clock.now = 1.0
    assert queue.take() == requests


def test_shapes_run_apart_and_the_oldest_first(queue: RequestQueue, clock: Clock) -> None:
    small, large, other = put(queue, 4, 8, 4)
    clock.now = 1.0
    assert queue.take() == [small, other]
    assert queue.take() == [large]


def test_a_full_batch_overtakes_an_image_that_still_waits(queue: RequestQueue, clock: Clock) -> None:
    (waits,) = put(queue, 8)
    full = put(queue, 4, 4, 4)
    assert queue.take() == full
    clock.now = 1.0
    assert queue.take() == [waits]


def test_a_call_is_refused_whole(queue: RequestQueue) -> None:
    put(queue, *[4] * 6)
    with raises(OverloadedError, what="max_queue", expected=MAX_QUEUE, found=9):
        put(queue, 4, 4, 4)
    put(queue, 4, 4)
    statistics = queue.statistics()
    assert (statistics.images, statistics.refused, statistics.waiting) == (8, 3, 8)


def test_an_image_that_is_being_read_has_its_place(queue: RequestQueue) -> None:
    queue.accept([Request(b"")] + [Request(b"") for _ in range(7)])
    with raises(OverloadedError):
        queue.accept([Request(b"")])


def test_a_cancelled_image_gives_its_place_to_another(queue: RequestQueue, clock: Clock) -> None:
    requests = put(queue, *[4] * MAX_QUEUE)
    for request in (requests[0], requests[7]):
        request.future.cancel()
        queue.settle(request)
    requests += put(queue, 4, 4)
    clock.now = 1.0
    assert [queue.take(), queue.take(), queue.take()] == [requests[1:4], requests[4:7], requests[8:]]
    assert queue.statistics().cancelled == 2


def test_a_queue_without_images_holds_no_predictor(queue: RequestQueue, clock: Clock) -> None:
    """One that was replaced is closed by then; its memory is free once nothing refers to it."""
    cancelled, _ = put(queue, 4, 8)
    cancelled.future.cancel()
    queue.settle(cancelled)
    clock.now = 1.0
    assert len(queue.take() or ()) == 1
    assert not queue._groups


def test_an_image_that_was_cancelled_while_it_was_read_does_not_run(queue: RequestQueue) -> None:
    request = Request(b"")
    queue.accept([request])
    request.future.cancel()
    queue.settle(request)
    queue.put(request, PreparedImage(Group(PREDICTOR, (), 1), np.zeros(1), lambda _: None))
    queue.close()
    assert queue.take() is None


def test_a_closed_queue_ends_after_the_accepted_images(queue: RequestQueue) -> None:
    requests = put(queue, 4, 8)
    queue.close()
    with raises(UsageError, what="batcher", found="closed"):
        put(queue, 4)
    assert [queue.take(), queue.take(), queue.take()] == [requests[:1], requests[1:], None]


def test_latencies_are_counted_from_the_acceptance(queue: RequestQueue, clock: Clock) -> None:
    for request, end in zip(put(queue, 4, 4, 4), (0.001, 0.3, 99.0), strict=True):
        clock.now = end
        request.future.set_result(None)
        queue.settle(request)
    latency = queue.statistics().latency
    assert dict(zip((*latency.bounds, None), latency.counts, strict=True)) | {0.001: 1, 0.5: 1, None: 1} == dict(
        zip((*latency.bounds, None), latency.counts, strict=True)
    )
    assert sum(latency.counts) == 3
    assert latency.total == pytest.approx(99.301)
