"""The micro-batcher's and the bundle's statistics as Prometheus metrics."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from vitdeploy.serving.in_process.batch_counters import BatchStatistics
from vitdeploy.serving.in_process.reloading_predictor import ReloadStatus

SIZES = 1, 2, 4, 8, 16, 32, 64


class ServingCollector(Collector):
    """Reads both at each scrape."""

    def __init__(self, statistics: Callable[[], BatchStatistics], status: Callable[[], ReloadStatus]) -> None:
        self._statistics, self._status = statistics, status

    def collect(self) -> Iterator[Metric]:
        now, bundle = self._statistics(), self._status()
        images = CounterMetricFamily("vitdeploy_images", "Images by outcome.", labels=["outcome"])
        for outcome in ("answered", "failed", "cancelled", "refused"):
            images.add_metric([outcome], getattr(now, outcome))
        yield images
        yield GaugeMetricFamily("vitdeploy_queue_length", "Images that wait for a run.", now.waiting)
        yield GaugeMetricFamily("vitdeploy_running", "Images in a run.", now.running)
        sizes = [(size, sum(count for of, count in now.batch_sizes.items() if of <= size)) for size in SIZES]
        images_run = sum(size * count for size, count in now.batch_sizes.items())
        yield _histogram("vitdeploy_batch_size", "Images per run.", [*sizes, (math.inf, now.batches)], images_run)
        latencies = zip((*now.latency.bounds, math.inf), itertools.accumulate(now.latency.counts), strict=True)
        yield _histogram(
            "vitdeploy_latency_seconds", "Seconds from acceptance to answer.", latencies, now.latency.total
        )
        yield CounterMetricFamily("vitdeploy_reloads", "New bundles that came into use.", bundle.reloads)
        yield CounterMetricFamily("vitdeploy_reload_failures", "New bundles that were refused.", bundle.failures)


def _histogram(name: str, text: str, counts: Iterable[tuple[float, int]], total: float) -> HistogramMetricFamily:
    """Prometheus's: each bucket counts the values up to its bound."""
    buckets = [("+Inf" if math.isinf(bound) else str(float(bound)), float(count)) for bound, count in counts]
    return HistogramMetricFamily(name, text, buckets, total)
