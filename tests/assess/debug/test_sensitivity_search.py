"""Mixed-precision search from the accuracy of each set of layers."""

from __future__ import annotations

from collections.abc import Callable, Collection

import pytest

from vitdeploy.assess.debug.search import KeptLayers, search_by_sensitivity
from vitdeploy.assess.metrics.accuracy import Accuracy

LAYERS = [f"layer {index}" for index in range(72)]
TOTAL = 1000


def search(
    lost: Callable[[frozenset[str]], int], allowed: int = 10, ranked: Collection[str] = LAYERS, max_runs: int = 100
) -> KeptLayers[Accuracy]:
    """The answer for a model that is wrong of `lost` images with these layers kept."""
    asked: list[frozenset[str]] = []

    def measure(kept: frozenset[str]) -> Accuracy:
        assert kept not in asked, "no set is measured twice"
        asked.append(kept)
        return Accuracy(TOTAL - lost(kept), TOTAL)

    result = search_by_sensitivity(
        lambda: list(ranked), measure, lambda each: each.correct >= TOTAL - allowed, max_runs
    )
    assert result.runs == len(asked) <= max_runs
    assert result.accuracy == Accuracy(TOTAL - lost(frozenset(result.kept)), TOTAL)
    assert result.without == Accuracy(TOTAL - lost(frozenset()), TOTAL)
    return result


def missing(needed: Collection[str], each: int = 50) -> Callable[[frozenset[str]], int]:
    """Every one of these that is not kept costs so many images."""
    return lambda kept: each * len(set(needed) - kept)


def test_nothing_need_be_kept() -> None:
    def rank() -> list[str]:
        raise AssertionError("layers are ranked only where it is needed")

    result = search_by_sensitivity(rank, lambda _: Accuracy(995, TOTAL), lambda each: each.correct >= 990)
    assert (result.kept, result.enough, result.runs, result.minimal) == ((), True, 1, True)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 24, 70, 71])
def test_the_first_of_the_ranking(count: int) -> None:
    result = search(missing(LAYERS[:count]))
    assert result.kept == tuple(LAYERS[:count])
    assert result.enough
    assert result.minimal
    assert result.runs <= 2 * 7 + count + 2


def test_what_can_go_only_after_another_has_gone() -> None:
    """The first layer harms as long as the third is kept."""
    sets = [LAYERS[:3], [LAYERS[0], LAYERS[1]], [LAYERS[1]]]
    result = search(lambda kept: 0 if kept in map(frozenset, sets) else 100)
    assert result.kept == (LAYERS[1],)
    assert result.minimal


def test_what_need_not_be_kept_is_let_go_again() -> None:
    needed = [LAYERS[3], LAYERS[11], LAYERS[20]]
    result = search(missing(needed))
    assert result.kept == tuple(needed)
    assert result.enough
    assert result.minimal


def test_all_of_them_are_needed() -> None:
    result = search(missing(LAYERS))
    assert not result.enough
    assert len(result.kept) < len(LAYERS), "an artifact with nothing in 8 bits is none"
    assert result.accuracy.correct == TOTAL - 50, "the best that was found"


def test_one_layer_alone_cannot_be_kept() -> None:
    result = search(missing(LAYERS[:1]), ranked=LAYERS[:1])
    assert not result.enough
    assert result.kept == ()


def test_runs_are_used_up() -> None:
    needed = LAYERS[:40:2]
    result = search(missing(needed), max_runs=16)
    assert result.runs == 16
    assert result.enough
    assert not result.minimal
    assert set(needed) <= set(result.kept)
    early = search(missing(LAYERS[:40]), max_runs=3)
    assert not early.enough
    assert not early.minimal
    assert early.accuracy.correct == TOTAL - 50 * 38


def test_keeping_more_may_harm() -> None:
    result = search(lambda kept: 0 if kept == frozenset(LAYERS[:4]) else 100)
    assert result.kept == tuple(LAYERS[:4])
    assert result.enough


def test_of_sets_that_are_equally_good_the_smaller_one_is_the_best() -> None:
    result = search(lambda _: 500)
    assert not result.enough
    assert result.kept == ()
