"""Search for the nodes that must stay in float32: delta debugging, and mixed-precision search by sensitivity."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from vitdeploy.errors import check_count

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

FEWEST_RUNS = 2  # with nothing kept, and with everything
MAX_RUNS = 100


class Measure(Protocol):
    """A measurement of an artifact; its text is for people."""

    @property
    def value(self) -> float:
        """The larger the better."""


K = TypeVar("K")
V = TypeVar("V")
M = TypeVar("M", bound="Measure")


@dataclasses.dataclass(frozen=True)
class MinimalSet:
    """Result of delta debugging.

    Attributes:
        kept: The nodes; empty where nothing need be kept, everything where even that does not pass.
        error_without: With nothing kept.
        error: With `kept`.
        error_with_all: With everything kept; None where nothing need be.
        runs: How many sets were evaluated.
        minimal: Whether it was shown that none of `kept` can be left out.
    """

    kept: frozenset[str]
    error_without: float
    error: float
    error_with_all: float | None
    runs: int
    minimal: bool


@dataclasses.dataclass(frozen=True)
class KeptLayers(Generic[M]):
    """Result of a search by sensitivity.

    Attributes:
        kept: The layers, the most sensitive first; where nothing is enough, those with which the most is reached.
        accuracy: With them.
        without: With none.
        enough: Whether that is enough.
        runs: How many sets were measured.
        minimal: Whether it was shown that none of `kept` can be left out.
    """

    kept: tuple[str, ...]
    accuracy: M
    without: M
    enough: bool
    runs: int
    minimal: bool


class _OutOfRunsError(Exception):
    """The search ends here, with the best set so far."""


@dataclasses.dataclass(frozen=True)
class _Measurements(Generic[K, V]):
    """Measurements by set; none is made twice, and no more than `max_runs` are made."""

    measure: Callable[[K], V]
    max_runs: int
    by_set: dict[K, V] = dataclasses.field(default_factory=dict, init=False)

    def __call__(self, kept: K) -> V:
        if kept not in self.by_set:
            if len(self.by_set) == self.max_runs:
                raise _OutOfRunsError
            self.by_set[kept] = self.measure(kept)
        return self.by_set[kept]

    @property
    def runs(self) -> int:
        return len(self.by_set)


def delta_debug(
    groups: Sequence[Sequence[str]], evaluate: Callable[[frozenset[str]], float], tolerance: float, max_runs: int
) -> MinimalSet:
    """Find a set of nodes with which the error is within `tolerance`, and without any one of which it is not.

    That is 1-minimal, as delta debugging has it (Zeller and Hildebrandt 2002, doi:10.1109/32.988498). A set with fewer
    nodes may exist: to rule that out would take a run for every set.

    From everything kept, as much as possible is let go at a time, and halved where that is too much: whole groups
    first, the least harmful ones before the others, then the nodes of those that are left. With n candidates, g groups
    and m nodes that must be kept this takes about 2 + g + 2m(1 + log2(n / m)) + m runs, the last m of them to show that
    each is needed. The answer is the same for the same errors. Where keeping more makes the error larger, as rounding
    may by luck, the answer still passes and is still 1-minimal.

    Args:
        groups: The candidates, in groups that are likely to matter together.
        evaluate: The error with these nodes kept, from 0 up; infinite where the result is of no use. Never asked twice
            for one set.
        tolerance: The largest error that passes.
        max_runs: Sets to evaluate at most, from 2 up; after that the best set so far is returned, as not minimal.

    Raises:
        UsageError: If `max_runs` is less.
    """
    check_count("max_runs", max_runs, FEWEST_RUNS)
    error = _Measurements(evaluate, max_runs)
    kept: frozenset[str] = frozenset(node for group in groups for node in group)
    without = error(frozenset())
    if without <= tolerance:
        return MinimalSet(frozenset(), without, without, None, error.runs, minimal=True)
    with_all = error(kept)
    if not with_all <= tolerance:
        return MinimalSet(kept, without, with_all, with_all, error.runs, minimal=False)

    def passes_without(part: frozenset[str]) -> bool:
        """Whether the set without `part` passes; it is then kept."""
        nonlocal kept
        passes = error(kept - part) <= tolerance
        if passes:
            kept -= part
        return passes

    def let_go(parts: Sequence[frozenset[str]]) -> None:
        """Let all of `parts` go; where that does not pass, what can go of their first half, and then of the second."""
        if parts and not passes_without(frozenset().union(*parts)) and len(parts) > 1:
            middle = len(parts) // 2
            let_go(parts[:middle])
            let_go(parts[middle:])

    try:
        ranked = sorted(groups, key=lambda group: error(kept.difference(group)))
        let_go([frozenset(group) for group in ranked])
        let_go([frozenset([node]) for group in ranked for node in group if node in kept])
        while any(passes_without(frozenset([node])) for node in sorted(kept)):
            pass  # only where more kept means more error is there any left that can go
        minimal = True
    except _OutOfRunsError:
        minimal = False
    return MinimalSet(kept, without, error(kept), with_all, error.runs, minimal)


def search_by_sensitivity(
    rank: Callable[[], Sequence[str]],
    measure: Callable[[frozenset[str]], M],
    enough: Callable[[M], bool],
    max_runs: int = MAX_RUNS,
) -> KeptLayers[M]:
    """Find a set of layers with which the accuracy is enough, and without any one of which it is not.

    1. Of a ranking, 1, 2, 4, ... of the first are kept, until that is enough; then the number is halved in on.
    2. Each that is kept is let go, the least sensitive first, where the others are enough; again, until none can go.

    With n layers and m kept this takes some 2 log2(n) + m runs, and m more where a layer could go. The answer is
    1-minimal, not the smallest set of all. At least one layer is not kept.

    Args:
        rank: Gives the layers, the most sensitive first; called where keeping none is not enough.
        measure: The accuracy with these layers kept.
        enough: Whether it is.
        max_runs: Sets to measure at most, from 2 up; the best one so far is then the answer.
    """
    accuracy: _Measurements[tuple[str, ...], M] = _Measurements(lambda kept: measure(frozenset(kept)), max_runs)
    without = accuracy(())
    if enough(without):
        return KeptLayers((), without, without, enough=True, runs=accuracy.runs, minimal=True)
    ranked = tuple(rank())

    def passes(kept: tuple[str, ...]) -> bool:
        return enough(accuracy(kept))

    try:
        kept = _shortest_prefix(ranked, passes)
        minimal = kept is not None
        before = None
        while kept is not None and kept != before:  # what is rounded elsewhere may, by luck, make up for a layer
            before = kept
            for layer in reversed(before):
                others = tuple(name for name in kept if name != layer)
                if passes(others):
                    kept = others
    except _OutOfRunsError:
        minimal = False
    passing = [kept for kept, measured in accuracy.by_set.items() if enough(measured)]
    best = (
        min(passing, key=len)
        if passing
        else max(accuracy.by_set, key=lambda kept: (accuracy.by_set[kept].value, -len(kept)))
    )
    return KeptLayers(best, accuracy.by_set[best], without, enough=bool(passing), runs=accuracy.runs, minimal=minimal)


def _shortest_prefix(ranked: tuple[str, ...], passes: Callable[[tuple[str, ...]], bool]) -> tuple[str, ...] | None:
    """The shortest that is enough, by halving; None where all but one of the layers are not."""
    low, high, most = 0, 1, len(ranked) - 1  # low is not enough
    while high < most and not passes(ranked[:high]):
        low, high = high, 2 * high
    high = min(high, most)
    if not passes(ranked[:high]):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if passes(ranked[:middle]) else (middle, high)
    return ranked[:high]
