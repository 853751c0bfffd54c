"""Find a smallest set of nodes that must stay in float32, from nothing but the error that each set gives."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from vitdeploy.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

FEWEST_RUNS = 2  # with nothing kept, and with everything


@dataclasses.dataclass(frozen=True)
class Found:
    """What the search came to.

    Attributes:
        kept: the set; empty where nothing need be kept, everything where even that does not pass.
        error_without: with nothing kept.
        error: with `kept`.
        error_with_all: with everything kept; None where nothing need be.
        runs: how many sets were evaluated.
        minimal: whether it was shown that none of `kept` can be left out.
    """

    kept: frozenset[str]
    error_without: float
    error: float
    error_with_all: float | None
    runs: int
    minimal: bool


def smallest_kept(
    groups: Sequence[Sequence[str]],
    evaluate: Callable[[frozenset[str]], float],
    tolerance: float,
    max_runs: int,
) -> Found:
    """Find a set of nodes with which the error is within `tolerance`, and without any one of which it is not.

    That is 1-minimal, as delta debugging has it (Zeller and Hildebrandt 2002, doi:10.1109/32.988498). A set with fewer
    nodes may exist: to rule that out would take a run for every set.

    From everything kept, as much as possible is let go at a time, and halved where that is too much: whole groups
    first, the least harmful ones before the others, then the nodes of those that are left. With n candidates, g groups
    and m nodes that must be kept this takes about 2 + g + 2m(1 + log2(n / m)) + m runs, the last m of them to show that
    each is needed. The answer is the same for the same errors. Where keeping more makes the error larger, as rounding
    may by luck, the answer still passes and is still 1-minimal.

    Args:
        groups: the candidates, in groups that are likely to matter together.
        evaluate: the error with these nodes kept, from 0 up; infinite where the result is of no use. Never asked twice
            for one set.
        tolerance: the largest error that passes.
        max_runs: sets to evaluate at most, from 2 up; after that the best set so far is returned, as not minimal.

    Raises:
        UsageError: `max_runs` is less.
    """
    if max_runs < FEWEST_RUNS:
        raise UsageError(f"max_runs must be at least {FEWEST_RUNS}, got {max_runs}", what="max_runs", found=max_runs)
    search = _Search(groups, evaluate, tolerance, max_runs)
    without = search.error(frozenset())
    if without <= tolerance:
        return Found(frozenset(), without, without, None, search.runs, minimal=True)
    with_all = search.error(search.kept)
    if not with_all <= tolerance:
        return Found(search.kept, without, with_all, with_all, search.runs, minimal=False)
    try:
        ranked = sorted(groups, key=lambda group: search.error(search.kept.difference(group)))
        search.let_go([frozenset(group) for group in ranked])
        search.let_go([frozenset([node]) for group in ranked for node in group if node in search.kept])
        search.let_go_one_by_one()
        minimal = True
    except _OutOfRunsError:
        minimal = False
    return Found(search.kept, without, search.error(search.kept), with_all, search.runs, minimal)


class _OutOfRunsError(Exception):
    """The search ends here, with what it has."""


class _Search:
    """A set that passes, and becomes smaller."""

    def __init__(
        self,
        groups: Iterable[Iterable[str]],
        evaluate: Callable[[frozenset[str]], float],
        tolerance: float,
        max_runs: int,
    ) -> None:
        self.kept = frozenset(node for group in groups for node in group)
        self._evaluate, self._tolerance, self._max_runs = evaluate, tolerance, max_runs
        self._errors: dict[frozenset[str], float] = {}

    @property
    def runs(self) -> int:
        return len(self._errors)

    def error(self, kept: frozenset[str]) -> float:
        if kept not in self._errors:
            if self.runs == self._max_runs:
                raise _OutOfRunsError
            self._errors[kept] = self._evaluate(kept)
        return self._errors[kept]

    def let_go(self, parts: Sequence[frozenset[str]]) -> None:
        """Let all of `parts` go; where that does not pass, what can go of their first half, and then of the second."""
        if not parts or self._passes_without(frozenset().union(*parts)) or len(parts) == 1:
            return
        middle = len(parts) // 2
        self.let_go(parts[:middle])
        self.let_go(parts[middle:])

    def let_go_one_by_one(self) -> None:
        """Until none can go: only where more kept means more error has `let_go` left any that can."""
        while any(self._passes_without(frozenset([node])) for node in sorted(self.kept)):
            pass

    def _passes_without(self, part: frozenset[str]) -> bool:
        """Whether the set without `part` passes; it is then kept."""
        passes = self.error(self.kept - part) <= self._tolerance
        if passes:
            self.kept -= part
        return passes
