"""Histograms, and ranges chosen from them, beside ONNX Runtime's own choices."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest
from onnxruntime.quantization.calibrate import HistogramCollector
from raising import raises

from vitdeploy.errors import CheckFailedError
from vitdeploy.exporters.quantization.number_format import FP8, INT8, UINT8, NumberFormat, Range
from vitdeploy.exporters.quantization.ranges.histogram import BINS, Histogram
from vitdeploy.exporters.quantization.ranges.methods import METHODS, Entropy, Mse, Percentile

SCALES = 10.0 ** np.arange(-4, 4)
PARTS = [(np.random.default_rng(0).standard_normal((3, 50)) * scale).astype(np.float32) for scale in SCALES]
NORMAL = np.random.default_rng(0).standard_normal(200_000, np.float32)
OUTLIERS = np.append(NORMAL, np.array([60, -45], np.float32))


def histogram_of(*parts: np.ndarray) -> Histogram:
    histogram = Histogram()
    for part in parts:
        histogram.add(part)
    return histogram


def error(values: np.ndarray, number_format: NumberFormat, of: Range) -> float:
    return float(np.square(number_format.rounded(values, of) - values).mean())


def peer(values: np.ndarray, method: str, **options: float) -> tuple[float, float]:
    """The range from ONNX Runtime's calibrator."""
    settings = {"symmetric": False, "num_bins": 4096, "num_quantized_bins": 128, "percentile": 99.9, "scenario": "same"}
    collector = HistogramCollector(method=method, **settings | options)
    with contextlib.redirect_stdout(io.StringIO()):
        collector.collect({"x": values})
        low, high, *_ = collector.compute_collection_result()["x"]
    return float(low), float(high)


def test_minmax_is_all_that_was_seen() -> None:
    assert METHODS["minmax"].range_of(histogram_of(OUTLIERS), INT8) == Range(-45, 60)


def test_percentile_is_onnxruntimes() -> None:
    found = Percentile(99.9).range_of(histogram_of(NORMAL), UINT8)
    low, high = peer(NORMAL, "percentile")
    width = 2 * float(np.abs(NORMAL).max()) / 2048  # a bin of either
    assert found.lowest == pytest.approx(low, abs=2 * width)
    assert found.highest == pytest.approx(high, abs=2 * width)
    inside = (found.lowest <= NORMAL) & (found.highest >= NORMAL)
    assert inside.mean() == pytest.approx(0.999, abs=1e-4)


def test_entropy_cuts_off_where_onnxruntime_does() -> None:
    values = np.append(NORMAL, np.linspace(4, 12, 40, dtype=np.float32))
    found = Entropy().range_of(histogram_of(values), INT8)
    # Its loop over bins is slow: fewer of them, which are as much wider.
    _, high = peer(values, "entropy", num_bins=1024)
    assert found.highest == pytest.approx(high, rel=0.15)
    assert found.highest < 12


@pytest.mark.parametrize("number_format", [UINT8, INT8, FP8], ids=["uint8", "int8", "fp8"])
def test_mse_is_no_worse_than_any_other(number_format: NumberFormat) -> None:
    for values in (NORMAL, OUTLIERS, np.maximum(NORMAL, -0.17)):
        histogram = histogram_of(values)
        found = error(values, number_format, Mse().range_of(histogram, number_format))
        others = [
            error(values, number_format, method.range_of(histogram, number_format)) for method in METHODS.values()
        ]
        assert found <= 1.02 * min(others)  # of the middles of bins, not of the values themselves
    if number_format is not FP8:
        assert found < 0.9 * error(values, number_format, METHODS["minmax"].range_of(histogram, number_format))


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_a_range_is_within_what_was_seen(method: Mse) -> None:
    for values in (NORMAL, *(np.array(few, np.float32) for few in ([3], [0], [-2, -1])), OUTLIERS):
        limits = method.range_of(histogram_of(values), UINT8)
        assert values.min() <= limits.lowest <= limits.highest <= values.max()


def test_a_range_needs_values() -> None:
    with raises(CheckFailedError, what="calibration_data"):
        Mse().range_of(Histogram(), INT8)


def test_the_order_of_a_histogram_does_not_matter() -> None:
    first, second = histogram_of(*PARTS), histogram_of(*PARTS[::-1])
    np.testing.assert_array_equal(first.counts, second.counts)
    assert (first.limit, first.seen) == (second.limit, second.seen)
    whole = histogram_of(np.concatenate([part.ravel() for part in PARTS]))
    np.testing.assert_array_equal(first.counts, whole.counts)


def test_what_a_histogram_counts() -> None:
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
def test_a_histogram_of_a_single_value(value: float) -> None:
    histogram = histogram_of(np.array([value], np.float32), np.zeros(2, np.float32))
    assert histogram.counts.sum() == 3
    assert histogram.counts.shape == (BINS,)
    exact = float(np.float32(value))
    assert histogram.seen == Range(min(exact, 0.0), max(exact, 0.0))
