"""Histograms that are the same whatever comes first."""

from __future__ import annotations

import numpy as np
import pytest

from vitdeploy.exporters.quantization.number_format import Range
from vitdeploy.exporters.quantization.ranges.histogram import BINS, Histogram

SCALES = 10.0 ** np.arange(-4, 4)
PARTS = [(np.random.default_rng(0).standard_normal((3, 50)) * scale).astype(np.float32) for scale in SCALES]


def histogram_of(*parts: np.ndarray) -> Histogram:
    histogram = Histogram()
    for part in parts:
        histogram.add(part)
    return histogram


def test_the_order_does_not_matter() -> None:
    first, second = histogram_of(*PARTS), histogram_of(*PARTS[::-1])
    np.testing.assert_array_equal(first.counts, second.counts)
    assert (first.limit, first.seen) == (second.limit, second.seen)
    whole = histogram_of(np.concatenate([part.ravel() for part in PARTS]))
    np.testing.assert_array_equal(first.counts, whole.counts)


def test_what_it_counts() -> None:
    values = np.concatenate([part.ravel() for part in PARTS])
    histogram = histogram_of(*PARTS)
    assert histogram.counts.sum() == len(values)
    assert histogram.seen == Range(values.min(), values.max())
    assert histogram.limit / 2 <= np.abs(values).max() < histogram.limit
    edges = np.linspace(-histogram.limit, histogram.limit, BINS + 1)
    np.testing.assert_array_equal(histogram.counts, np.histogram(values, edges)[0])
    np.testing.assert_allclose(histogram.centers, (edges[1:] + edges[:-1]) / 2)
    assert histogram.magnitudes().sum() == len(values)
    assert histogram.magnitudes()[0] == (np.abs(values) < edges[BINS // 2 + 1]).sum()


@pytest.mark.parametrize("value", [0.0, 1.0, -1.0, 3e38, -3e38, 1e-45])
def test_a_single_value(value: float) -> None:
    histogram = histogram_of(np.array([value], np.float32), np.zeros(2, np.float32))
    assert histogram.counts.sum() == 3
    assert histogram.counts.shape == (BINS,)
    exact = float(np.float32(value))
    assert histogram.seen == Range(min(exact, 0.0), max(exact, 0.0))
