"""The Pareto front of time and quality."""

from __future__ import annotations

import pytest

from vitdeploy.assess.metrics.accuracy import Accuracy
from vitdeploy.assess.metrics.pareto import Quality, pareto_front


@pytest.mark.parametrize(
    ("points", "front"),
    [
        ([], ()),
        ([(5.0, 0.9)], (True,)),
        ([(5.0, 0.9), (4.0, 0.9)], (False, True)),
        ([(5.0, 0.95), (4.0, 0.9), (6.0, 0.94), (3.0, 0.1)], (True, True, False, True)),
        ([(5.0, 0.9), (5.0, 0.9), (5.0, 0.8)], (True, True, False)),
        ([(5.0, -1.0), (6.0, 0.5)], (True, True)),
    ],
)
def test_no_other_point_is_better_in_both(points: list[tuple[float, float]], front: tuple[bool, ...]) -> None:
    assert pareto_front(points) == front


def test_quality_is_accuracy_with_labels_and_else_the_cosine() -> None:
    labelled = Quality(4, Accuracy(3, 4), Accuracy(4, 4), 0.999)
    assert (labelled.value, str(labelled)) == (0.75, "75.00% top-1, 100.00% agree")
    assert str(Quality(4, Accuracy(3, 4))) == "75.00% top-1"
    similar = Quality(64, None, None, 0.99812)
    assert (similar.value, str(similar)) == (0.99812, "cosine 0.99812")
    assert labelled.to_dict() == {"images": 4, "top1": 0.75, "agreement": 1.0, "mean_cosine": 0.999}
