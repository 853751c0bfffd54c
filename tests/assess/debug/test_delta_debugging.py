"""Delta debugging on synthetic errors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import pytest
from raising import raises

from vitdeploy.assess.debug.search import MinimalSet, delta_debug
from vitdeploy.errors import UsageError

GROUPS = [[f"{group}.{node}" for node in range(20)] for group in range(12)]
NODES = [node for group in GROUPS for node in group]


def search(
    evaluate: Callable[[frozenset[str]], float], tolerance: float = 0.01, max_runs: int = 1000
) -> tuple[MinimalSet, list[frozenset[str]]]:
    """The result and the sets that were evaluated, each of them once."""
    asked: list[frozenset[str]] = []

    def counted(kept: frozenset[str]) -> float:
        asked.append(kept)
        return evaluate(kept)

    result = delta_debug(GROUPS, counted, tolerance, max_runs)
    assert len(set(asked)) == len(asked) == result.runs <= max_runs
    return result, asked


def needs(culprits: Iterable[str], error: float = math.inf) -> Callable[[frozenset[str]], float]:
    wanted = frozenset(culprits)
    return lambda kept: 0.001 if wanted <= kept else error


def test_nothing_need_be_kept() -> None:
    found, asked = search(lambda _: 0.01)
    assert (found, asked) == (MinimalSet(frozenset(), 0.01, 0.01, None, 1, minimal=True), [frozenset()])


@pytest.mark.parametrize("error", [0.02, math.inf, math.nan])
def test_nothing_helps(error: float) -> None:
    found, asked = search(lambda _: error)
    assert found.kept == frozenset(NODES)
    assert not found.error <= 0.01
    assert not found.minimal
    assert asked == [frozenset(), frozenset(NODES)]


@pytest.mark.parametrize("error", [0.02, math.inf])
@pytest.mark.parametrize(
    "culprits",
    [["7.13"], ["0.0"], ["11.19"], ["3.4", "9.0"], [f"5.{node}" for node in range(8, 16)], NODES],
    ids=["one", "the first", "the last", "two that need each other", "part of a group", "all"],
)
def test_exactly_the_culprits_are_kept(culprits: list[str], error: float) -> None:
    found, _ = search(needs(culprits, error))
    assert found.kept == frozenset(culprits)
    assert (found.error_without, found.error, found.error_with_all) == (error, 0.001, 0.001)
    assert found.minimal
    n, m = len(NODES), len(culprits)
    assert found.runs <= 2 + len(GROUPS) + 2 * m * (1 + math.log2(n / m)) + m


def test_errors_add_up_and_the_worst_is_kept() -> None:
    """Each node adds a little, and those of one group more: letting go of the others first leaves that group."""
    harm = {node: 5e-3 if node.startswith("4.") else 1e-5 for node in NODES}
    found, _ = search(lambda kept: sum(harm[node] for node in harm if node not in kept))
    assert found.kept < frozenset(GROUPS[4])
    assert len(found.kept) == 19  # 220 nodes of 1e-5 leave room for one of 5e-3
    assert found.minimal


def test_errors_that_are_not_monotone() -> None:
    """Keeping 2.1 without 2.0 makes things worse, so that 2.1 can go only once 2.0 has: a second look finds it."""

    def error(kept: frozenset[str]) -> float:
        if "6.3" not in kept:
            return 1.0
        return 1.0 if "1.0" in kept and "1.1" not in kept else 0.001

    found, _ = search(error)
    assert found.minimal
    assert found.error == 0.001
    assert all(error(found.kept - {node}) > 0.01 for node in found.kept)


def test_the_same_errors_give_the_same_runs() -> None:
    evaluate = needs(["2.2", "8.8"])
    assert search(evaluate) == search(evaluate)


@pytest.mark.parametrize("max_runs", [2, 3, 10, 20, 30])
def test_runs_are_bounded_and_the_best_passes(max_runs: int) -> None:
    culprits = ["0.3", "4.4", "9.1", "11.0"]
    found, asked = search(needs(culprits), max_runs=max_runs)
    assert len(asked) == max_runs
    assert found.kept >= frozenset(culprits)
    assert found.error == 0.001
    assert not found.minimal


def test_fewer_than_two_runs() -> None:
    with raises(UsageError, what="max_runs", found=1):
        delta_debug(GROUPS, lambda _: 0.0, 0.01, 1)
