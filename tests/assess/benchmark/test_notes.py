"""Trends: found where they are, and rarely where they are not."""

from __future__ import annotations

import numpy as np
import pytest

from vitdeploy.assess.benchmark.notes import trend


def test_a_rise_is_found_under_noise_and_offsets() -> None:
    generator = np.random.default_rng(0)
    rise = np.linspace(1, 1.1, 6)
    series = [rise * offset * np.exp(generator.normal(0, 0.01, 6)) for offset in (10.0, 30.0, 20.0)]
    found = trend(series)  # type: ignore[arg-type]
    assert found.is_drift
    assert found.change == pytest.approx(0.1, abs=0.03)
    assert trend([values[::-1] for values in series]).change == pytest.approx(-0.1, abs=0.03)  # type: ignore[misc]


def test_five_rounds_are_the_fewest() -> None:
    assert trend([[1.0, 1.1, 1.2, 1.3, 1.4]]).is_drift
    assert not trend([[1.0, 1.1, 1.2, 1.3]]).is_drift
    assert not trend([[1.0, 1.1, 1.2, 1.4, 1.3]]).is_drift
    assert not trend([[1.0, 1.001, 1.002, 1.003, 1.004]]).is_drift, "less than 2 % matters to nobody"
    assert trend([[1.0], [2.0]]) == (0, 0)


@pytest.mark.parametrize(("series", "rounds"), [(1, 5), (1, 10), (5, 2), (5, 4)])
def test_noise_is_seldom_a_drift(series: int, rounds: int) -> None:
    times = np.exp(np.random.default_rng(rounds).normal(0, 0.05, (300, series, rounds)))
    assert sum(trend(experiment.tolist()).is_drift for experiment in times) <= 300 * 0.06
