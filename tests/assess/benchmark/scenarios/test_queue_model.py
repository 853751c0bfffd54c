"""The model of the request queue, against the theory of queues."""

from __future__ import annotations

import numpy as np
import pytest

from vitdeploy.assess.benchmark.scenarios.arrivals import poisson_arrivals
from vitdeploy.assess.benchmark.scenarios.queue_model import QueueModel, latencies_of, most_late


def test_a_schedule_by_hand() -> None:
    arrivals, services = np.array([[0.0, 1.0, 1.5, 9.0]]), np.array([[2.0, 2.0, 1.0, 3.0]])
    assert latencies_of(arrivals, services, 1).tolist() == [[2.0, 3.0, 3.5, 3.0]]
    assert latencies_of(arrivals, services, 2).tolist() == [[2.0, 2.0, 1.5, 3.0]]
    assert latencies_of(arrivals, services, 9).tolist() == services.tolist()


def test_arrivals_are_poisson_and_seeded() -> None:
    arrivals = poisson_arrivals(50, 20_000, 3)
    gaps = np.diff(arrivals)
    assert gaps.min() > 0
    assert gaps.mean() == pytest.approx(1 / 50, rel=0.03)
    assert gaps.std() == pytest.approx(1 / 50, rel=0.05)  # an exponential's deviation is its mean
    np.testing.assert_allclose(poisson_arrivals(100, 20_000, 3), arrivals / 2)
    assert (poisson_arrivals(50, 10, 4) != arrivals[:10]).all()


@pytest.mark.parametrize("load", [0.3, 0.7])
def test_the_mean_wait_is_that_of_pollaczek_and_khinchine(load: float) -> None:
    arrivals = np.stack([poisson_arrivals(load, 4000, seed) for seed in range(200)])
    latencies = latencies_of(arrivals, np.ones_like(arrivals), 1)
    assert latencies[:, 500:].mean() - 1 == pytest.approx(load / (2 * (1 - load)), rel=0.03)


def test_late_queries_are_counted_as_the_percentile_is() -> None:
    assert [most_late(count) for count in (99, 100, 199, 459, 1000)] == [0, 1, 1, 4, 10]


def test_replays_hold_at_low_rates_and_not_at_high_ones() -> None:
    services = np.full(300, 1e-3)
    model = QueueModel([services], 1, 5e-3)
    shares = [model.holds(rate, 1000) for rate in (100, 450, 500, 550, 990)]
    assert shares == sorted(shares, reverse=True)
    assert (shares[0], shares[-1]) == (1.0, 0.0)
    assert model.holds(450, 1000) == shares[1], "the draws are seeded"
    assert QueueModel([services], 2, 5e-3).holds(990, 1000) == 1.0
    assert model.holds(100, 10**9) == 1.0, "no more than 20,000 queries are modelled"
    assert QueueModel([services], 1, 10.0).holds(1001, 1000) == 0.0, "it grows slowly, and without end"


def test_runs_that_differ_predict_replays_that_differ() -> None:
    def runs(spread: float) -> list[np.ndarray]:
        return [np.full(300, 1e-3 * (1 + spread * place)) for place in (-1, 0, 1)]

    same, other = (QueueModel(runs(spread), 1, 5e-3).holds(450, 1000) for spread in (0.0, 0.05))
    assert same == QueueModel(runs(0.0)[:1], 1, 5e-3).holds(450, 1000) > 0.9
    assert other < same - 0.05
