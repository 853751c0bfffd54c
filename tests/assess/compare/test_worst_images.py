"""The images that differ most come first, whatever their logits are."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vitdeploy.assess.compare.worst_images import MOST_KEPT, most_different_images

REFERENCE = np.array([[1.0, 2.0, 0.0], [4.0, 1.0, 0.0], [0.0, 0.0, 3.0], [1.0, 0.0, 0.0]])


def test_the_furthest_come_first_and_equal_ones_not_at_all() -> None:
    candidate = REFERENCE.copy()
    candidate[0, 0] += 2.0  # another best class
    candidate[1, 1] += 0.4
    candidate[3, 2] = np.nan
    worst = most_different_images(REFERENCE, candidate, ["a.png", Path("b.png"), b"c", b"d"], ("cat", "dog"))
    assert [(each.position, each.image, round(each.distance, 9)) for each in worst] == [
        (3, "", np.inf),
        (0, "a.png", 0.5),
        (1, "b.png", 0.1),
    ]
    assert [(each.reference.label, each.artifact.label) for each in worst] == [
        ("cat", "not finite"),
        ("dog", "cat"),
        ("cat", "cat"),
    ]
    assert abs(worst[1].artifact.score - np.exp(3) / np.exp([3, 2, 0]).sum()) < 1e-6


def test_a_class_without_a_name_and_no_more_than_are_kept() -> None:
    reference = np.tile(REFERENCE[2], (MOST_KEPT + 2, 1))
    worst = most_different_images(reference, reference + 1, [b""] * len(reference), ("cat", "dog"))
    assert [each.position for each in worst] == list(range(MOST_KEPT))
    assert {each.reference.label for each in worst} == {"2"}


def test_logits_of_nothing_but_zeros() -> None:
    zeros = np.zeros((2, 3))
    assert most_different_images(zeros, zeros, [b"", b""], ()) == ()
    assert most_different_images(zeros, zeros + np.array([[0.0], [0.5]]), [b"", b""], ())[0].distance == 0.5
