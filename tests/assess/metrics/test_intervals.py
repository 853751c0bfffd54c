"""Intervals against synthetic measurements whose truth is known: processes with offsets, drift, and slow spells."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from raising import raises

from vitdeploy.assess.metrics.intervals import _t, interval_of, unpaired_ratio
from vitdeploy.errors import UsageError

EXPERIMENTS = 200
# Of 200 intervals of 95 %, 181 or more contain the truth with a probability of 99.7 % (binomial).
FEWEST = 181


def experiments(
    processes: int, rounds: int, *, offsets: float, noise: float, drift: float = 0.0, spells: float = 0.0
) -> NDArray[np.float64]:
    """Times (2, experiments, processes, rounds) of two settings of 10 ms that take turns.

    Args:
        processes: Processes of each.
        rounds: Rounds of each process.
        offsets: Standard deviation of a process's speed, relative.
        noise: That of a round's.
        drift: Relative slowdown of the machine over an experiment.
        spells: Share of rounds in which other work slows both down, 1.1 to 3 times.
    """
    generator = np.random.default_rng(processes * 100 + rounds)
    shape = (EXPERIMENTS, processes, rounds)
    of_process = generator.normal(0, offsets, (2, *shape[:2], 1))
    of_round = generator.normal(0, noise, (2, *shape))
    shared = np.linspace(0, drift, processes * rounds).reshape(1, processes, rounds)
    slow = np.where(generator.random(shape) < spells, np.log(generator.uniform(1.1, 3, shape)), 0)
    times: NDArray[np.float64] = 10 * np.exp(of_process + of_round + shared + slow)
    return times


@pytest.mark.parametrize(
    ("processes", "rounds", "more"),
    [
        (5, 2, {"offsets": 0.02, "noise": 0.01}),
        (5, 2, {"offsets": 0.02, "noise": 0.02, "drift": 0.3, "spells": 0.3}),
        (3, 4, {"offsets": 0.03, "noise": 0.005}),
        (8, 3, {"offsets": 0.01, "noise": 0.03, "spells": 0.2}),
        (1, 10, {"offsets": 0.0, "noise": 0.02}),
    ],
)
def test_intervals_of_ratios_contain_the_truth_19_times_of_20(
    processes: int, rounds: int, more: dict[str, float]
) -> None:
    first, second = experiments(processes, rounds, **more)
    contained = sum(1 in interval_of(ratios.tolist()) for ratios in first / second)
    assert contained >= FEWEST
    unpaired = experiments(processes, rounds, **{**more, "drift": 0.0, "spells": 0.0})
    contained = sum(1 in unpaired_ratio(one.tolist(), two.tolist()) for one, two in zip(*unpaired, strict=True))
    assert contained >= FEWEST
    contained = sum(10 in interval_of(times.tolist()) for times in unpaired[0])
    assert contained >= FEWEST


def test_resampling_rounds_alone_would_be_too_sure() -> None:
    """The reason for the levels: as one process, the same rounds miss the truth far more often."""
    first, second = experiments(5, 8, offsets=0.02, noise=0.005)
    ratios = first / second
    flat = sum(1 in interval_of([values.ravel().tolist()]) for values in ratios)
    assert flat < 0.7 * EXPERIMENTS
    assert sum(1 in interval_of(values.tolist()) for values in ratios) >= FEWEST


def test_a_slowdown_of_5_percent_is_seen() -> None:
    first, second = experiments(5, 2, offsets=0.01, noise=0.01, drift=0.2, spells=0.2)
    seen = [interval_of(ratios.tolist()) for ratios in 1.05 * first / second]
    assert sum(interval.low > 1 for interval in seen) > 0.85 * EXPERIMENTS
    assert np.median([interval.estimate for interval in seen]) == pytest.approx(1.05, abs=0.005)


def test_an_interval_is_the_same_each_time_and_scales() -> None:
    numbers = [[3.0, 4.0], [3.5], [3.2, 3.1, 3.3]]
    assert interval_of(numbers) == interval_of(numbers)
    doubled = interval_of([[2 * value for value in rounds] for rounds in numbers])
    assert doubled == pytest.approx([2 * value for value in interval_of(numbers)])
    assert interval_of([[2.0, 2.0], [2.0]]) == pytest.approx((2, 2, 2))


def test_the_factor_is_a_quantile_of_student_s_distribution() -> None:
    tabulated = {1: 12.706, 4: 2.776, 15: 2.1314, 16: 2.1199, 20: 2.0860, 30: 2.0423, 60: 2.0003}
    assert {freedom: _t(freedom) for freedom in tabulated} == pytest.approx(tabulated, abs=1e-3)


def test_one_number_has_no_finite_interval() -> None:
    alone = interval_of([[4.0]])
    assert alone == (4.0, 0.0, math.inf)
    assert alone.to_list() == [0.0, None]
    assert unpaired_ratio([[4.0]], [[2.0], [2.0]]) == (2.0, 0.0, math.inf)


@pytest.mark.parametrize("numbers", [[], [[]], [[1.0], []], [[0.0]], [[1.0, -1.0]]])
def test_other_numbers_are_refused(numbers: list[list[float]]) -> None:
    with raises(UsageError, what="processes", found=numbers):
        interval_of(numbers)
