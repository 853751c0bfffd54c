"""Intervals, tests and sample sizes, against published figures and scipy."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from raising import raises

from vitdeploy.assess.metrics.shares import images_needed, mcnemar, mcnemar_power, wilson
from vitdeploy.errors import UsageError


@pytest.mark.parametrize(
    ("correct", "total", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),  # Newcombe (1998), Statistics in Medicine 17, 857-872: table I, method 3
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (29, 29, 0.8830, 1.0000),  # of the same formula: 1 / (1 + z * z / 29)
        (1, 1, 0.2065, 1.0000),
    ],
)
def test_interval_is_wilson_s(correct: int, total: int, low: float, high: float) -> None:
    interval = wilson(correct, total)
    assert interval == pytest.approx((low, high), abs=5e-5)
    assert 0 <= interval[0] <= correct / total <= interval[1] + 1e-15 <= 1 + 1e-15


@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.99])
def test_interval_of_another_confidence(confidence: float) -> None:
    wanted = scipy.stats.binomtest(37, 91).proportion_ci(confidence, method="wilson")
    assert wilson(37, 91, confidence) == pytest.approx((wanted.low, wanted.high), abs=1e-12)


@pytest.mark.parametrize("arguments", [(0, 0), (3, 2), (-1, 2), (1, 2, 1.0)])
def test_no_interval_of_nothing(arguments: tuple[int, int]) -> None:
    with raises(UsageError, found=(*arguments, 0.95)[:3]):
        wilson(*arguments)


@pytest.mark.parametrize(("first", "second"), [(0, 0), (5, 0), (0, 6), (7, 2), (2, 7), (10, 10), (40, 61), (300, 200)])
def test_mcnemar_is_the_exact_binomial_test(first: int, second: int) -> None:
    wanted = scipy.stats.binomtest(first, first + second).pvalue if first + second else 1.0
    assert mcnemar(first, second) == pytest.approx(wanted, rel=1e-9)


def test_mcnemar_of_many_images() -> None:
    assert mcnemar(25_000, 25_000) == 1.0
    assert 0 < mcnemar(10_000, 10_500) < 1e-3
    with raises(UsageError, found=(-1, 2)):
        mcnemar(-1, 2)


def test_power_is_the_share_of_drawn_samples_that_are_found() -> None:
    images, lost, gained = 400, 0.05, 0.02
    draws = np.random.default_rng(0).multinomial(images, [lost, gained, 1 - lost - gained], size=4000)
    mean = np.mean([a > b and mcnemar(a, b) <= 0.05 for a, b, _ in draws.tolist()])
    assert mcnemar_power(images, lost, gained) == pytest.approx(mean, abs=0.03)  # four deviations of 4000 draws


def test_power_beyond_what_is_allowed() -> None:
    images, lost, gained = 400, 0.05, 0.02
    draws = np.random.default_rng(0).multinomial(images, [lost, gained, 1 - lost - gained], size=4000)
    mean = np.mean([a - b > 0.03 * images and mcnemar(a, b) <= 0.05 for a, b, _ in draws.tolist()])
    assert mcnemar_power(images, lost, gained, beyond=0.03) == pytest.approx(mean, abs=0.03)


@pytest.mark.parametrize("beyond", [0.0, 0.0195])
def test_power_of_many_images_is_approximated(beyond: float) -> None:
    summed, approximated = (mcnemar_power(images, 0.06, 0.04, beyond=beyond) for images in (99_000, 101_000))
    assert approximated == pytest.approx(summed, abs=0.01)
    few, many = (images_needed(0.002, disagreement=share) for share in (0.01, 0.2))  # which is quick
    assert 15 < many / few < 25


def test_a_drop_without_gains_needs_six_losses() -> None:
    """Two-sided, 2 / 2**5 is above 0.05 and 2 / 2**6 below: the power is the chance of six losses."""
    assert mcnemar_power(100, 0.1, 0.0) == pytest.approx(scipy.stats.binom.sf(5, 100, 0.1), rel=1e-9)
    assert mcnemar_power(5, 0.9, 0.0) == 0


@pytest.mark.parametrize(("drop", "disagreement"), [(0.02, None), (0.02, 0.04), (0.005, 0.01), (0.3, 0.3)])
def test_images_needed_are_enough_and_not_many_more(drop: float, disagreement: float | None) -> None:
    count = images_needed(drop, disagreement=disagreement)
    share = disagreement or drop
    lost, gained = (share + drop) / 2, (share - drop) / 2
    assert mcnemar_power(count, lost, gained) >= 0.9
    assert mcnemar_power(int(count * 0.95) - 1, lost, gained) < 0.9


def test_images_needed_grow_with_what_is_asked() -> None:
    assert images_needed(0.01) > images_needed(0.02)
    assert images_needed(0.02, disagreement=0.1) > images_needed(0.02)
    assert images_needed(0.02, alpha=0.01) > images_needed(0.02)
    assert images_needed(0.02, power=0.99) > images_needed(0.02)
    with raises(UsageError, found=(0.0, 0.02, 0.01, 0.05, 0.9)):
        images_needed(0.02, disagreement=0.01)
