"""Counters of a micro-batcher, for an application's metrics."""

from __future__ import annotations

import bisect
import dataclasses
from collections import Counter
from collections.abc import Mapping
from typing import Any

# Seconds; a run takes from a millisecond on a GPU to seconds for a large model on a small CPU.
LATENCY_BOUNDS = 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0


@dataclasses.dataclass(frozen=True)
class Histogram:
    """A distribution in buckets.

    Attributes:
        bounds: Largest value of each bucket, ascending.
        counts: Values in each bucket, which belong to no bucket before it; one more for values above all bounds.
        total: Sum of the values.
    """

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    total: float


@dataclasses.dataclass(frozen=True)
class BatchStatistics:
    """State of a micro-batcher at one moment. `images` equals `answered + failed + cancelled + waiting + running`.

    Attributes:
        requests: Accepted calls of `submit`, `predict`, `embed` ...
        images: Images of these calls.
        refused: Images refused because the queue was full.
        answered: Images with a result.
        failed: Images with an error.
        cancelled: Images whose future was cancelled before their run.
        waiting: Length of the queue: images that are being read, or wait for a run.
        running: Images in a run, or whose results are being computed from it.
        batches: Runs.
        batch_sizes: Number of runs by number of images.
        latency: Seconds from acceptance to the result, of answered images.
    """

    requests: int
    images: int
    refused: int
    answered: int
    failed: int
    cancelled: int
    waiting: int
    running: int
    batches: int
    batch_sizes: Mapping[int, int]
    latency: Histogram

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


class BatchCounters:
    """The counters themselves; the caller holds a lock."""

    def __init__(self) -> None:
        self.requests = self.images = self.refused = self.answered = self.failed = self.cancelled = 0
        self._batch_sizes: Counter[int] = Counter()
        self._latency_counts, self._latency_sum = [0] * (len(LATENCY_BOUNDS) + 1), 0.0

    def add_batch(self, size: int) -> None:
        self._batch_sizes[size] += 1

    def add_answer(self, latency_s: float) -> None:
        self.answered += 1
        self._latency_counts[bisect.bisect_left(LATENCY_BOUNDS, latency_s)] += 1
        self._latency_sum += latency_s

    def statistics(self, waiting: int) -> BatchStatistics:
        done = self.answered + self.failed + self.cancelled
        return BatchStatistics(
            self.requests, self.images, self.refused, self.answered, self.failed, self.cancelled, waiting,
            self.images - done - waiting, sum(self._batch_sizes.values()), dict(sorted(self._batch_sizes.items())),
            Histogram(LATENCY_BOUNDS, tuple(self._latency_counts), self._latency_sum),
        )  # fmt: skip
