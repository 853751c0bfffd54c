"""Confidence intervals of times and of their ratios, from repeated processes of repeated rounds.

Runs of one process resemble each other more than runs of several: where its memory lies changes its speed for its whole
life. Rounds and processes are therefore resampled at their own levels, as in Kalibera and Jones 2013 ("Rigorous
benchmarking in reasonable time", ISMM, doi:10.1145/2491894.2464160).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from vitdeploy.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

CONFIDENCE = 0.95
_RESAMPLES, _MOST_NUMBERS = 1000, 2**22  # the latter at a time
# Quantile 0.975 of Student's t distribution by degrees of freedom, from 1.
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)
_NORMAL = 1.960
_AS_FAST, _UNCLEAR = "as fast", "unclear"
_WORDS = {_AS_FAST: "as", _UNCLEAR: "against"}
_LEVEL = 1.1  # upper bound over lower bound; wider intervals tell too little to call two times equal
_WHOLE, _FINE = 9.95, 1.1  # from here on a factor is rounded to a whole number; below, to two digits


class Interval(NamedTuple):
    """An estimate and its 95 % confidence interval."""

    estimate: float
    low: float
    high: float

    def __contains__(self, value: object) -> bool:
        return isinstance(value, (int, float)) and self.low <= value <= self.high

    def to_list(self) -> list[float | None]:
        """[low, high] for JSON, null for no bound."""
        return [bound if math.isfinite(bound) else None for bound in (self.low, self.high)]


class Ratio(NamedTuple):
    """A ratio of two times, with its 95 % confidence interval."""

    median: float
    low: float
    high: float

    @property
    def is_same(self) -> bool:
        """True if the interval contains 1: no difference is known."""
        return self.low <= 1 <= self.high

    @property
    def is_level(self) -> bool:
        """True if the interval contains 1 and is narrow: a difference is small, if there is one."""
        return self.is_same and self.high <= _LEVEL * self.low

    @property
    def words(self) -> str:
        """Such as "69x faster" or "1.3x slower"; if the interval contains 1, "as fast", or "unclear" if it is wide."""
        if self.is_same:
            return _AS_FAST if self.is_level else _UNCLEAR
        factor = max(self.median, 1 / self.median)
        digits = 0 if factor >= _WHOLE else 1 if factor >= _FINE else 2
        return f"{factor:.{digits}f}x {'faster' if self.median < 1 else 'slower'}"

    def against(self, name: str) -> str:
        """The comparison with the one of that name, such as "2.5x faster than torch fp32 (0.40 of its time)"."""
        words = self.words
        return f"{words} {_WORDS.get(words, 'than')} {name} ({self.median:.2f} of its time)"

    def __str__(self) -> str:
        """The ratio and its interval, such as "0.400, 0.391 to 0.411"."""
        bounds = f"{self.low:.3f} to {self.high:.3f}" if math.isfinite(self.high) else "no interval from one round"
        return f"{self.median:.3f}, {bounds}"

    def to_dict(self) -> dict[str, float]:
        return {"ratio": self.median, "low": self.low, "high": self.high}


def interval_of(processes: Sequence[Sequence[float]], seed: int = 0) -> Interval:
    """The typical value of positive numbers, with its interval.

    The estimate is the geometric mean, over the processes, of the median of their rounds. The interval is Student's
    with the standard error of a hierarchical bootstrap (processes, then rounds in them), on a logarithmic scale: the
    percentiles of a bootstrap are too narrow for few processes (Hesterberg 2015, "What teachers should know about the
    bootstrap", doi:10.1080/00031305.2015.1089789). With one process, it is that of its rounds. A single number has no
    finite interval.

    Args:
        processes: Numbers of each process, one for each round.
        seed: Seed of the resampling.

    Raises:
        UsageError: If there are no numbers, or one is not positive.
    """
    logs = _logs(processes)
    estimate = _centre(logs)
    error, freedom = _standard_error(logs, np.random.default_rng(seed))
    return _interval(estimate, error, freedom)


def unpaired_ratio(processes: Sequence[Sequence[float]], base: Sequence[Sequence[float]], seed: int = 0) -> Interval:
    """The ratio of the typical values of two independent measurements, such as of two machines.

    Each is resampled alone; the degrees of freedom are Welch's (1947, doi:10.1093/biomet/34.1-2.28).

    Raises:
        UsageError: As `interval_of`.
    """
    generator = np.random.default_rng(seed)
    sides = [_logs(processes), _logs(base)]
    (first, one), (second, two) = (_standard_error(side, generator) for side in sides)
    error = math.hypot(first, second)
    parts = first**4 / max(one, 1) + second**4 / max(two, 1)
    freedom = error**4 / parts if parts and math.isfinite(error) else min(one, two)
    return _interval(_centre(sides[0]) - _centre(sides[1]), error, freedom)


def _logs(processes: Sequence[Sequence[float]]) -> list[NDArray[np.float64]]:
    logs = [np.log(np.asarray(rounds, np.float64)) for rounds in processes if len(rounds) and min(rounds) > 0]
    if not logs or len(logs) != len(processes):
        raise UsageError("an interval needs positive numbers of each process", what="processes", found=processes)
    return logs


def _centre(logs: Sequence[NDArray[np.float64]]) -> float:
    return float(np.mean([np.median(rounds) for rounds in logs]))


def _standard_error(logs: Sequence[NDArray[np.float64]], generator: np.random.Generator) -> tuple[float, int]:
    """Standard error of `_centre`, and its degrees of freedom; 0 degrees for a single number."""
    medians = np.array([_medians(rounds, generator) for rounds in logs])  # (processes, resamples)
    count = len(logs)
    if count == 1:
        count, centres = len(logs[0]), medians[0]
    else:
        drawn = generator.integers(0, count, (_RESAMPLES, count))
        centres = medians[drawn, np.arange(_RESAMPLES)[:, None]].mean(axis=1)
    if count == 1:
        return math.inf, 0
    # A bootstrap divides by the count, not by the degrees of freedom.
    return float(centres.std()) * math.sqrt(count / (count - 1)), count - 1


def _medians(rounds: NDArray[np.float64], generator: np.random.Generator) -> NDArray[np.float64]:
    """Medians of resamples, (resamples,), in parts that fit into memory."""
    count = len(rounds)
    parts = np.array_split(np.arange(_RESAMPLES), math.ceil(_RESAMPLES * count / _MOST_NUMBERS))
    drawn = (generator.integers(0, count, (len(part), count)) for part in parts if len(part))
    return np.concatenate([np.median(rounds[positions], axis=1) for positions in drawn])


def _interval(estimate: float, error: float, freedom: float) -> Interval:
    margin = _t(freedom) * error
    with np.errstate(over="ignore"):
        low, high = (float(np.exp(estimate + shift)) for shift in (-margin, margin))
    return Interval(math.exp(estimate), low, high)


def _t(freedom: float) -> float:
    """Quantile 0.975 of Student's t distribution, rounded up between the tabulated degrees of freedom."""
    position = max(int(freedom), 1) - 1
    if position < len(_T):
        return _T[position]
    # Abramowitz and Stegun 26.7.5, to the second order: within 0.001 from 15 degrees on.
    z = _NORMAL
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
