"""Comparison of logits, against figures worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from vitdeploy.assess.metrics.logits import compare_logits


def test_equal_logits_agree_in_everything() -> None:
    logits = np.random.default_rng(0).standard_normal((4, 10)).astype(np.float32)
    difference = compare_logits(logits, logits, 1e-4)
    assert (difference.kl_divergence, difference.top5_agreement) == (0, 1)
    assert (difference.low_margin_flips, difference.flips) == (0, 0)
    assert difference.rank_correlation == pytest.approx(1)


def test_divergence_is_that_of_the_candidate_from_the_reference() -> None:
    difference = compare_logits(np.log([[0.5, 0.5]]), np.log([[0.25, 0.75]]), 0.1)
    assert difference.kl_divergence == pytest.approx(0.5 * np.log(2) + 0.5 * np.log(2 / 3))


def test_ties_have_their_mean_rank() -> None:
    # ranks 1, 2.5, 2.5, 4 and 1, 2, 3, 4: 4.5 / sqrt(4.5 * 5)
    difference = compare_logits(np.array([[0.0, 1, 1, 2]]), np.array([[0.0, 1, 2, 3]]), 0.1)
    assert difference.rank_correlation == pytest.approx(4.5 / np.sqrt(4.5 * 5))


def test_flips_within_twice_what_is_allowed_are_counted_apart() -> None:
    reference = np.array([[10.0, 9.9, 0], [10.0, 5.0, 0], [10.0, 1.0, 0]])
    candidate = np.array([[9.9, 10.0, 0], [5.0, 10.0, 0], [10.0, 1.0, 0]])
    difference = compare_logits(reference, candidate, 0.01)  # margins of up to 0.2
    assert (difference.low_margin_flips, difference.flips) == (1, 1)


def test_logits_that_are_all_equal_have_no_order() -> None:
    assert compare_logits(np.zeros((1, 3)), np.zeros((1, 3)), 0.1).rank_correlation is None
