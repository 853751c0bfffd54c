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
    """A measurement of an artifact; its text is for users."""

    @property
    def value(self) -> float:
        """The measured value; larger is better."""


K = TypeVar("K")
V = TypeVar("V")
M = TypeVar("M", bound="Measure")


@dataclasses.dataclass(frozen=True)
class MinimalSet:
    """Result of delta debugging.

    Attributes:
        kept: Nodes to keep; empty if none is needed, all of them if even that fails.
        error_without: Error with nothing kept.
        error: Error with `kept`.
        error_with_all: Error with everything kept; None if nothing is needed.
        runs: Number of evaluated sets.
        minimal: True if each of `kept` is proven necessary.
    """

    kept: frozenset[str]
    error_without: float
    error: float
    error_with_all: float | None
    runs: int
    minimal: bool


@dataclasses.dataclass(frozen=True)
class KeptLayers(Generic[M]):
    """Result of a mixed-precision search by sensitivity.

    Attributes:
        kept: Layers, the most sensitive first; if no set is enough, the one with the highest accuracy.
        accuracy: Accuracy with `kept`.
        without: Accuracy with no layer kept.
        enough: True if `accuracy` is enough.
        runs: Number of measured sets.
        minimal: True if each of `kept` is proven necessary.
    """

    kept: tuple[str, ...]
    accuracy: M
    without: M
    enough: bool
    runs: int
    minimal: bool


class _OutOfRunsError(Exception):
    """The runs are used up; the best set so far is the result."""


@dataclasses.dataclass(frozen=True)
class _Measurements(Generic[K, V]):
    """Measurements by set; none is repeated, and at most `max_runs` are made."""

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
    """Find a minimal set of nodes that brings the error within `tolerance`: without any one of them it is not.

    The set is 1-minimal in the sense of delta debugging (Zeller and Hildebrandt 2002, doi:10.1109/32.988498). A smaller
    set may exist; excluding that would need a run for every set.

    Starting from everything kept, as much as possible is released at a time, and half of it if that fails: whole groups
    first, the least harmful ones before others, then the nodes of the remaining groups. With n candidates, g groups and
    m nodes that must be kept, this takes about 2 + g + 2m(1 + log2(n / m)) + m runs, the last m to show that each node
    is necessary. The result is deterministic. If keeping more increases the error, as rounding can by chance, the
    result still passes and is still 1-minimal.

    Args:
        groups: Candidates, in groups that are likely to matter together.
        evaluate: Error with these nodes kept, 0 or more; infinite for a useless result. Called once per set.
        tolerance: Largest error that passes.
        max_runs: Maximum number of evaluated sets, at least 2; then the best set so far is returned as not minimal.

    Raises:
        UsageError: If `max_runs` is less than 2.
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
        """True if the set without `part` passes; that set is then kept."""
        nonlocal kept
        passes = error(kept - part) <= tolerance
        if passes:
            kept -= part
        return passes

    def let_go(parts: Sequence[frozenset[str]]) -> None:
        """Release all of `parts`; if that fails, as much as possible of the first half, and then of the second."""
        if parts and not passes_without(frozenset().union(*parts)) and len(parts) > 1:
            middle = len(parts) // 2
            let_go(parts[:middle])
            let_go(parts[middle:])

    try:
        ranked = sorted(groups, key=lambda group: error(kept.difference(group)))
        let_go([frozenset(group) for group in ranked])
        let_go([frozenset([node]) for group in ranked for node in group if node in kept])
        while any(passes_without(frozenset([node])) for node in sorted(kept)):
            pass  # more can be released only if keeping more increased the error
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
    """Find a minimal set of layers that makes the accuracy sufficient: without any one of them it is not.

    1. The first 1, 2, 4, ... layers of a ranking are kept, until that is enough; then the number is bisected.
    2. Kept layers are released, the least sensitive first, if the others are enough; repeated until none can be.

    With n layers and m kept, this takes about 2 log2(n) + m runs, and m more if a layer was released. The result is
    1-minimal, not the smallest possible set. At least one layer is not kept.

    Args:
        rank: Returns the layers, the most sensitive first; called if keeping none is not enough.
        measure: Accuracy with these layers kept.
        enough: True for a sufficient accuracy.
        max_runs: Maximum number of measured sets, at least 2; then the best set so far is returned.
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
        while kept is not None and kept != before:  # rounding elsewhere may, by chance, compensate for a layer
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
    """The shortest sufficient prefix, by bisection; None if all layers but one are not enough."""
    low, high, most = 0, 1, len(ranked) - 1  # `low` is not enough
    while high < most and not passes(ranked[:high]):
        low, high = high, 2 * high
    high = min(high, most)
    if not passes(ranked[:high]):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if passes(ranked[:middle]) else (middle, high)
    return ranked[:high]
