"""Nearness of an artifact's vectors to the reference's, and of their nearest neighbours (numpy alone).

A model without classes is judged by the vectors that its users compare: `pooler_output`, and the CLS token of
`last_hidden_state`, which is its first token; a classifier by its `logits`.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from vitdeploy.assess.metrics.outputs import relative_error

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from numpy.typing import NDArray

LOGITS, POOLED, HIDDEN, CLS = "logits", "pooler_output", "last_hidden_state", "cls_token"
PERCENTILE = 5
TIE = 1e-6  # of a cosine: float32 tells no two neighbours apart that are nearer to each other
FEWEST_SEARCHED = 3  # of two images each is the other's nearest, whatever an artifact gives
_ROWS = 1024  # of the images' similarities that are in memory together


def vectors(outputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """The vectors (N, D) of images by which artifacts are judged, by name.

    These are `logits` (N, classes) where there are some; else `pooler_output` and the CLS token, as `cls_token`,
    whichever there are. Of a model that gives none of them, such as one that reconstructs pixels, they are all outputs,
    whole: (N, ...).
    """
    if LOGITS in outputs and outputs[LOGITS].ndim == 2:
        return {LOGITS: outputs[LOGITS]}
    chosen = {POOLED: outputs[POOLED]} if POOLED in outputs else {}
    if HIDDEN in outputs:
        chosen[CLS] = outputs[HIDDEN][:, 0]
    return chosen or dict(outputs)


def searchable(names: Collection[str]) -> bool:
    """Whether neighbours are searched by one of the outputs of these names."""
    return LOGITS not in names and bool({POOLED, HIDDEN}.intersection(names))


def with_cls(outputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """All outputs, and the vectors that are a part of one."""
    return {**vectors(outputs), **outputs}


def searched(names: Iterable[str]) -> str | None:
    """The vectors by which images are searched: pooled where there are some, else the CLS token, never logits."""
    return next((name for name in (POOLED, CLS) if name in names), None)


def cosines(reference: NDArray[Any], candidate: NDArray[Any]) -> NDArray[np.float64]:
    """(N,) the cosine similarity of each image's vector (N, ...) with the reference's, of any floating-point type.

    It is -1 where a value is not finite, 1 for two vectors of zeros, and 0 where one alone is zeros.
    """
    a, b = _unit(reference), _unit(candidate)
    similarity: NDArray[np.float64] = np.clip((a * b).sum(axis=1), -1.0, 1.0)
    similarity[~(a.any(axis=1) | b.any(axis=1))] = 1.0
    similarity[~(_finite(reference) & _finite(candidate))] = -1.0
    return similarity


def same_neighbours(reference: NDArray[Any], candidate: NDArray[Any]) -> NDArray[np.bool_]:
    """(N,) whether the image nearest to each, by the cosine of their vectors (N, ...), N from 2 up, is the reference's.

    An image is not its own neighbour. Images whose cosine with it, in the reference, is within 1e-6 of the nearest
    one's are all the nearest; of an artifact it is the first. It is not the same where a value is not finite.
    """
    a, b = _unit(reference), _unit(candidate)
    same = np.zeros(len(a), bool)
    for start in range(0, len(a), _ROWS):
        rows = np.arange(start, min(start + _ROWS, len(a)))
        wanted, given = (matrix[rows] @ matrix.T for matrix in (a, b))  # (rows, N)
        for similarity in (wanted, given):
            similarity[np.arange(len(rows)), rows] = -np.inf
        same[rows] = wanted[np.arange(len(rows)), given.argmax(axis=1)] >= wanted.max(axis=1) - TIE
    return same & _finite(reference) & _finite(candidate)


@dataclasses.dataclass(frozen=True)
class Nearness:
    """The vectors of N images beside the reference's.

    Attributes:
        output: Such as "pooler_output", or "cls_token", the first token of `last_hidden_state`; see `vectors`.
        images: N.
        mean_cosine: The mean of the images' cosine similarities.
        p5_cosine: Their 5th percentile, interpolated linearly as numpy does.
        min_cosine: The lowest of them.
        error: The length of the difference over the length of the reference's vectors, of all images together, which
            sees a constant factor; infinite where a value is not finite.
        same_neighbours: How many images have the same nearest neighbour among the N as in the reference, see
            `same_neighbours`; None for fewer than `FEWEST_SEARCHED` images, and for vectors by which nobody searches.
    """

    output: str
    images: int
    mean_cosine: float
    p5_cosine: float
    min_cosine: float
    error: float
    same_neighbours: int | None = None

    @property
    def neighbour_agreement(self) -> float | None:
        """Share of images with the same nearest neighbour, from 0 to 1."""
        return None if self.same_neighbours is None else self.same_neighbours / self.images

    def __str__(self) -> str:
        kept = self.neighbour_agreement
        text = f"mean cosine {shown(self.mean_cosine)}, 5th percentile {shown(self.p5_cosine)}"
        return text if kept is None else f"{text}, nearest neighbour kept {kept:.0%}"

    def to_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "neighbour_agreement": self.neighbour_agreement}


def nearness(
    reference: Mapping[str, NDArray[Any]], candidate: Mapping[str, NDArray[Any]], *, search: bool = True
) -> tuple[Nearness, ...]:
    """Judge the vectors of an artifact, (N, D) by name as `vectors` gives them, beside the reference's.

    Neighbours are looked for where `search` says so: among made-up images they mean nothing.
    """
    wanted, given = reference, candidate
    by = searched(wanted) if search else None
    return tuple(_nearness(name, wanted[name], given[name], search=name == by) for name in wanted)


def _nearness(name: str, wanted: NDArray[Any], given: NDArray[Any], *, search: bool) -> Nearness:
    similarity = cosines(wanted, given)
    same = int(same_neighbours(wanted, given).sum()) if search and len(wanted) >= FEWEST_SEARCHED else None
    error = relative_error(wanted, given, of_classes=name == LOGITS)
    mean, lowest = float(similarity.mean()), float(similarity.min())
    return Nearness(name, len(similarity), mean, percentile(similarity), lowest, error, same)


def percentile(values: Sequence[float] | NDArray[np.float64]) -> float:
    """The 5th percentile over images."""
    return float(np.percentile(values, PERCENTILE))


def shown(cosine: float) -> str:
    """A cosine as people are told it: with three digits, and more where these would be all nines."""
    return f"{cosine:.3f}" if cosine < 0.9985 else f"{cosine:.5f}"


def _unit(array: NDArray[Any]) -> NDArray[np.float64]:
    """(N, D) of length 1; zeros for what has no length, or is not finite."""
    flat = np.where(_finite(array)[:, None], array.reshape(len(array), -1), 0).astype(np.float64)
    length = np.linalg.norm(flat, axis=1, keepdims=True)
    unit: NDArray[np.float64] = np.divide(flat, length, out=np.zeros_like(flat), where=length > 0)
    return unit


def _finite(array: NDArray[Any]) -> NDArray[np.bool_]:
    finite: NDArray[np.bool_] = np.isfinite(array.reshape(len(array), -1)).all(axis=1)
    return finite
