"""Find few layers that must stay in float32 for an artifact to be accurate enough, the most harmful ones first."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

MAX_RUNS = 100


class Measure(Protocol):
    """What was measured of an artifact; its text is for people."""

    @property
    def value(self) -> float:
        """The larger the better."""


M = TypeVar("M", bound="Measure")


@dataclasses.dataclass(frozen=True)
class Fewest(Generic[M]):
    """What the search came to.

    Attributes:
        kept: the layers, the most harmful first; where nothing is enough, those with which the most is reached.
        accuracy: with them.
        without: with none.
        enough: whether that is enough.
        runs: how many sets were measured.
        minimal: whether it was shown that none of `kept` can be left out.
    """

    kept: tuple[str, ...]
    accuracy: M
    without: M
    enough: bool
    runs: int
    minimal: bool


def fewest_kept(
    rank: Callable[[], Sequence[str]],
    measure: Callable[[frozenset[str]], M],
    enough: Callable[[M], bool],
    max_runs: int = MAX_RUNS,
) -> Fewest[M]:
    """Find a set with which the accuracy is enough, and without any one of which it is not.

    1. Of a ranking, 1, 2, 4, ... of the first are kept, until that is enough; then the number is halved in on.
    2. Each that is kept is let go, the least harmful first, where the rest is enough; again, until none can go.

    With n layers and m kept this takes some 2 log2(n) + m runs, and m more where a layer could go. The answer is
    1-minimal, not the smallest set of all. At least one layer is not kept.

    Args:
        rank: gives the layers, the most harmful first; called where keeping none is not enough.
        measure: the accuracy with these layers kept.
        enough: whether it is.
        max_runs: sets to measure at most, from 2 up; the best one so far is then the answer.
    """
    search = _Search(measure, enough, max_runs)
    without = search.measured(())
    if enough(without):
        return Fewest((), without, without, enough=True, runs=search.runs, minimal=True)
    ranked = tuple(rank())
    try:
        kept = search.shortest_prefix(ranked)
        minimal = kept is not None
        if kept is not None:
            search.let_go_of_each(kept)
    except _OutOfRunsError:
        minimal = False
    kept, accuracy = search.best()
    return Fewest(kept, accuracy, without, enough=enough(accuracy), runs=search.runs, minimal=minimal)


class _OutOfRunsError(Exception):
    """The search ends here, with what it has."""


class _Search(Generic[M]):
    def __init__(self, measure: Callable[[frozenset[str]], M], enough: Callable[[M], bool], max_runs: int) -> None:
        self._measure, self._enough, self._max_runs = measure, enough, max_runs
        self._found: dict[tuple[str, ...], M] = {}

    @property
    def runs(self) -> int:
        return len(self._found)

    def measured(self, kept: tuple[str, ...]) -> M:
        if kept not in self._found:
            if self.runs == self._max_runs:
                raise _OutOfRunsError
            self._found[kept] = self._measure(frozenset(kept))
        return self._found[kept]

    def shortest_prefix(self, ranked: tuple[str, ...]) -> tuple[str, ...] | None:
        """The shortest that is enough, by halving; None where all but one of the layers are not."""
        low, high, most = 0, 1, len(ranked) - 1  # low is not enough
        while high < most and not self._passes(ranked[:high]):
            low, high = high, 2 * high
        high = min(high, most)
        if not self._passes(ranked[:high]):
            return None
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self._passes(ranked[:middle]) else (middle, high)
        return ranked[:high]

    def let_go_of_each(self, kept: tuple[str, ...]) -> None:
        """Until none can go, the least harmful first: what is rounded elsewhere may, by luck, make up for it."""
        before = None
        while kept != before:
            before = kept
            for layer in reversed(before):
                rest = tuple(each for each in kept if each != layer)
                if self._passes(rest):
                    kept = rest

    def best(self) -> tuple[tuple[str, ...], M]:
        """The fewest layers that are enough; where none are, those with which the most is reached."""
        found = self._found.items()
        passing = [item for item in found if self._enough(item[1])]
        if passing:
            return min(passing, key=lambda item: len(item[0]))
        return max(found, key=lambda item: (item[1].value, -len(item[0])))

    def _passes(self, kept: tuple[str, ...]) -> bool:
        return self._enough(self.measured(kept))
