"""Nearest neighbours by cosine similarity, kNN classification and recall at k (numpy only)."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from vitdeploy.errors import UsageError, check_count
from vitdeploy.specs import MOST_NEIGHBOURS

if TYPE_CHECKING:
    from numpy.typing import NDArray

DEFAULT_NEIGHBOURS = 5
RECALLS = (1, 5, 10)  # numbers of neighbours of recall at k
NONE = -1
# Similarities of a block take 16 MiB in float64, and a few times that as sort keys, for any number of images.
_ROWS, _COLUMNS = 512, 4096
# Cosines that round to the same multiple of this are equal: float64 sums of the same products differ by less, whatever
# their order, and so by processor and number of threads.
_STEP = 2.0**-30
_EXCLUDED = -2.0  # below every cosine
_INDEX_BITS = 32


@dataclasses.dataclass(frozen=True, eq=False)
class Neighbourhood:
    """Neighbours of N query images, as classes.

    Attributes:
        classes: Class by vote of the k nearest neighbours, (N,) int32; -1 for a query with non-finite values, or
            without a neighbour.
        ranks: Number of neighbours that are nearer than the nearest of the query's own class, (N,) int32; -1 if none of
            the `max(RECALLS)` nearest has its class.
    """

    classes: NDArray[np.int32]
    ranks: NDArray[np.int32]


def recalled(ranks: NDArray[np.int32], count: int) -> NDArray[np.bool_]:
    """True where one of the `count` nearest neighbours has the query's class, by `Neighbourhood.ranks`, (N,)."""
    within: NDArray[np.bool_] = (ranks != NONE) & (ranks < count)
    return within


def check_neighbours(count: object) -> None:
    """Raise UsageError unless a kNN classifier can have this number of neighbours."""
    check_count("neighbours", count, most=MOST_NEIGHBOURS)


def neighbourhood(
    queries: NDArray[Any],
    targets: NDArray[np.integer[Any]],
    neighbours: int,
    gallery: tuple[NDArray[Any], NDArray[np.integer[Any]]] | None = None,
) -> Neighbourhood:
    """Search the nearest neighbours of every query by cosine similarity.

    Each of the k neighbours has one vote; of classes with equally many votes, the one with the nearest neighbour wins.
    Of equal cosines, the first image in the gallery is the nearest. A vector with non-finite values is nobody's
    neighbour; the cosine of a zero vector is 0.

    Args:
        queries: Vectors, (N, D), of any floating-point type.
        targets: Class of each query, (N,), from 0 up.
        neighbours: k, the number of voting neighbours.
        gallery: Vectors (M, D) to search among, with their classes (M,). Default: leave-one-out, all queries but the
            query itself.

    Raises:
        UsageError: If the shapes do not fit, or the number of neighbours is invalid.
    """
    check_neighbours(neighbours)
    others, of_others = (queries, targets) if gallery is None else gallery
    if queries.ndim != 2 or others.ndim != 2 or queries.shape[1] != others.shape[1]:
        raise UsageError(
            f"queries and gallery need vectors of one width, got {queries.shape} and {others.shape}",
            what="gallery", expected=queries.shape, found=others.shape,
        )  # fmt: skip
    units, usable = _units(queries)
    gallery_units, gallery_usable = (units, usable) if gallery is None else _units(others)
    classes, ranks = (np.full(len(queries), NONE, np.int32) for _ in range(2))
    most = max(neighbours, *RECALLS)
    for start in range(0, len(queries), _ROWS):
        rows = slice(start, min(start + _ROWS, len(queries)))
        itself = start if gallery is None else None
        nearest = _nearest(units[rows], gallery_units, gallery_usable, most, itself)  # (rows, most)
        nearest[~usable[rows]] = NONE
        labels = np.where(nearest == NONE, NONE, of_others[nearest])  # (rows, most)
        classes[rows] = _vote(labels[:, :neighbours])
        matches = labels[:, : max(RECALLS)] == np.asarray(targets)[rows, None]
        ranks[rows] = np.where(matches.any(axis=1), matches.argmax(axis=1), NONE)
    return Neighbourhood(classes, ranks)


def _nearest(
    queries: NDArray[np.float32], gallery: NDArray[np.float32], usable: NDArray[np.bool_], most: int, itself: int | None
) -> NDArray[np.int64]:
    """Positions of the nearest gallery images of each query, the nearest first, (rows, most); -1 where there are none.

    `itself` is the position of the first query in the gallery, where each query is excluded; None if it is not there.
    """
    best = np.full((len(queries), most), np.iinfo(np.int64).min)
    wide = queries.astype(np.float64)
    positions = np.arange(len(gallery), dtype=np.int64)
    for start in range(0, len(gallery), _COLUMNS):
        columns = slice(start, min(start + _COLUMNS, len(gallery)))
        cosines = wide @ gallery[columns].astype(np.float64).T  # (rows, columns)
        cosines[:, ~usable[columns]] = _EXCLUDED
        if itself is not None:
            own = np.arange(itself, itself + len(queries)) - start
            inside = np.flatnonzero((own >= 0) & (own < cosines.shape[1]))
            cosines[inside, own[inside]] = _EXCLUDED
        # One integer per pair orders it by cosine, and then by position: no two are equal.
        keys = np.rint(cosines / _STEP).astype(np.int64) << _INDEX_BITS
        keys += 2**_INDEX_BITS - 1 - positions[columns]
        best = np.concatenate((best, keys), axis=1)
        best = np.partition(best, -most, axis=1)[:, -most:]
    best = np.sort(best, axis=1)[:, ::-1]
    found: NDArray[np.int64] = 2**_INDEX_BITS - 1 - (best & (2**_INDEX_BITS - 1))
    found[(best >> _INDEX_BITS) * _STEP < (_EXCLUDED - 1) / 2] = NONE
    return found


def _vote(labels: NDArray[Any]) -> NDArray[Any]:
    """The most frequent label of each row, (N, k) -> (N,); of several, the first in the row. -1 has no vote."""
    votes = np.zeros(labels.shape, np.int32)
    for column in range(labels.shape[1]):
        votes += labels == labels[:, column, None]
    votes[labels == NONE] = 0
    winners: NDArray[Any] = labels[np.arange(len(labels)), votes.argmax(axis=1)]
    return winners


def _units(vectors: NDArray[Any]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Vectors of length 1 (N, D), zeros for zero and non-finite ones; and True for finite ones, (N,)."""
    finite: NDArray[np.bool_] = np.isfinite(vectors).all(axis=1)
    units = np.zeros(vectors.shape, np.float32)
    for start in range(0, len(vectors), _COLUMNS):
        rows = slice(start, start + _COLUMNS)
        values = np.where(finite[rows, None], vectors[rows], 0).astype(np.float64)
        values /= np.maximum(np.abs(values).max(axis=1, keepdims=True, initial=0), np.finfo(np.float64).tiny)
        lengths = np.linalg.norm(values, axis=1, keepdims=True)
        units[rows] = np.divide(values, lengths, out=np.zeros_like(values), where=lengths > 0)
    return units, finite
