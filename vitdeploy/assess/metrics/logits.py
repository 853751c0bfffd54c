"""Comparison of logits: KL divergence, agreement, rank correlation, flips (numpy only)."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

_TOP = 5


@dataclasses.dataclass(frozen=True)
class LogitsDifference:
    """Comparison of logits with the reference's.

    Attributes:
        kl_divergence: Mean Kullback-Leibler divergence of the candidate's softmax from the reference's, in nats.
        top5_agreement: Mean share of the reference's top min(5, classes) classes that are among the candidate's.
        rank_correlation: Spearman's rank correlation, mean over images: Pearson's correlation of the ranks, with mean
            ranks for ties (Kendall & Gibbons, Rank Correlation Methods, 1990); None if a row's values are all equal.
        low_margin_flips: Rows with another top-1 class, for which the reference's logits of the two classes differ by
            at most twice the largest logit difference: each may have moved that far toward the other.
        flips: Other rows with another top-1 class. The margin uses the largest difference allowed, not the measured
            one, which no flip could exceed.
    """

    kl_divergence: float
    top5_agreement: float
    rank_correlation: float | None
    low_margin_flips: int
    flips: int

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def compare_logits(reference: np.ndarray, candidate: np.ndarray, tolerance: float) -> LogitsDifference:
    """Compare finite logits (..., classes); `tolerance` is relative to the reference's largest value."""
    a, b = (array.reshape(-1, array.shape[-1]).astype(np.float64) for array in (reference, candidate))
    log_p, log_q = _log_softmax(a), _log_softmax(b)
    top = min(_TOP, a.shape[1])
    best_a, best_b = (np.argsort(-x, axis=1, kind="stable")[:, :top] for x in (a, b))
    shared = (best_a[:, :, None] == best_b[:, None, :]).any(axis=2)
    changed = best_a[:, 0] != best_b[:, 0]
    rows = np.arange(len(a))
    margin = a[rows, best_a[:, 0]] - a[rows, best_b[:, 0]]  # the reference's margin between the two classes
    low = changed & (margin <= 2 * tolerance * np.abs(a).max())
    ranks = float(np.mean([_spearman(x, y) for x, y in zip(a, b, strict=True)]))
    return LogitsDifference(
        kl_divergence=max(float((np.exp(log_p) * (log_p - log_q)).sum(axis=1).mean()), 0.0),
        top5_agreement=float(shared.mean()),
        rank_correlation=None if np.isnan(ranks) else ranks,
        low_margin_flips=int(low.sum()),
        flips=int((changed & ~low).sum()),
    )


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_probabilities: np.ndarray = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return log_probabilities


def _spearman(x: np.ndarray, y: np.ndarray) -> float:
    a, b = (rank - rank.mean() for rank in map(_ranks, (x, y)))
    scale = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return float((a * b).sum()) / scale if scale else float("nan")


def _ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: np.ndarray = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return ranks
