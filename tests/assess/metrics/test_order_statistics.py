"""Percentiles with their confidence: the binomial behind them, MLPerf's counts, and intervals that hold."""

from __future__ import annotations

import math

import numpy as np
import pytest

from vitdeploy.assess.metrics.order_statistics import Percentile, allowed_late, binomial_cdf, queries_needed


@pytest.mark.parametrize(("count", "chance"), [(1, 0.5), (7, 0.1), (60, 0.99)])
def test_a_binomial_distribution(count: int, chance: float) -> None:
    pmf = [math.comb(count, k) * chance**k * (1 - chance) ** (count - k) for k in range(count + 1)]
    np.testing.assert_allclose(binomial_cdf(count, chance), np.cumsum(pmf), rtol=1e-9)


def test_the_queries_that_early_stopping_needs() -> None:
    # Without a late query 0.99^n <= 0.01, thus n = 459. The rules' appendix defines the others.
    assert queries_needed(99) == math.ceil(math.log(0.01) / math.log(0.99)) == 459
    assert (queries_needed(99, late=1), queries_needed(90, late=1)) == (662, 64)
    for percent, late in ((99, 1), (99, 3), (90, 5)):
        count = queries_needed(percent, late=late)
        assert allowed_late(count, percent / 100) == late
        assert allowed_late(count - 1, percent / 100) == late - 1
    assert allowed_late(458, 0.99) == 0


def test_a_percentile_is_an_order_statistic() -> None:
    found = Percentile.of(90, [float(value) for value in range(100, 0, -1)])
    assert (found.value_ms, found.count, found.needed) == (90.0, 100, 64)
    assert found.early_stopping_ms == 100 - (allowed_late(100, 0.9) - 1)
    assert found.high_ms is not None
    assert found.low_ms < 90 < found.high_ms < 100
    few = Percentile.of(99, [1.0, 3.0, 2.0])
    assert (few.value_ms, few.low_ms, few.high_ms, few.early_stopping_ms) == (3.0, 2.0, None, None)
    assert Percentile.of(50, [1.0, 2.0]).value_ms == 1.0


@pytest.mark.parametrize(("percent", "count"), [(90, 200), (99, 700), (50, 30)])
def test_an_interval_holds_the_true_percentile(percent: int, count: int) -> None:
    true = -math.log(1 - percent / 100)
    draws = np.random.default_rng(0).exponential(size=(1000, count))
    found = [Percentile.of(percent, draw.tolist()) for draw in draws]
    inside = np.mean([one.low_ms <= true <= (math.inf if one.high_ms is None else one.high_ms) for one in found])
    assert inside >= 0.94  # at least 0.95, and 0.7 points of standard error
    above = [one.early_stopping_ms < true for one in found if one.early_stopping_ms is not None]
    assert sum(above) <= 0.02 * len(draws)  # at most 0.01
