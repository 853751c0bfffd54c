"""Cosine similarity of an artifact's vectors with the reference's, and agreement of nearest neighbours (numpy only).

A model without classes is judged by the vectors that users compare: `image_embeds`, `pooler_output` and one vector of
`last_hidden_state`, see `TokenVector`; a classifier by its `logits`.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from vitdeploy.assess.metrics.outputs import relative_error
from vitdeploy.specs import EMBEDS

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from vitdeploy.models.config import ViTConfig

LOGITS, POOLED, HIDDEN = "logits", "pooler_output", "last_hidden_state"
CLS, MEAN = "cls_token", "mean_token"
PERCENTILE = 5
TIE = 1e-6  # tolerance of a cosine: float32 cannot separate closer neighbours
FEWEST_SEARCHED = 3  # with two images, each is the other's nearest in any case
_ROWS = 1024  # similarities held in memory at a time


@dataclasses.dataclass(frozen=True)
class TokenVector:
    """The vector of `last_hidden_state` that an artifact is judged by: the class token, else the mean of the patches.

    Attributes:
        name: "cls_token" or "mean_token".
        num_prefix_tokens: Tokens before the patches.
    """

    name: str
    num_prefix_tokens: int

    @classmethod
    def of(cls, model: ViTConfig) -> TokenVector:
        """The class token of a model that has one."""
        return cls(CLS if model.class_token else MEAN, model.num_prefix_tokens)

    @classmethod
    def of_dict(cls, config: Mapping[str, Any]) -> TokenVector:
        """The same, from the content of the model's `config.json`; CheckpointError if it is invalid."""
        from vitdeploy.models.config import ViTConfig  # reads the families, which a predictor does without

        return cls.of(ViTConfig.from_dict(config))

    def __call__(self, tokens: NDArray[Any]) -> NDArray[Any]:
        """Tokens (N, tokens, D) -> (N, D)."""
        if self.name == CLS:
            return tokens[:, 0]
        mean: NDArray[Any] = tokens[:, self.num_prefix_tokens :].mean(axis=1, dtype=np.float32)
        return mean


def vectors(outputs: Mapping[str, NDArray[Any]], token: TokenVector) -> dict[str, NDArray[Any]]:
    """The vectors (N, D) for judging artifacts, by name.

    These are `logits` (N, classes) if present; else those present of `image_embeds`, `pooler_output` and the vector of
    `last_hidden_state`, under the name of `token`. For a model with none, such as one that reconstructs pixels, they
    are all outputs, (N, ...).
    """
    if LOGITS in outputs and outputs[LOGITS].ndim == 2:
        return {LOGITS: outputs[LOGITS]}
    chosen = {name: outputs[name] for name in (EMBEDS, POOLED) if name in outputs}
    if HIDDEN in outputs:
        chosen[token.name] = token(outputs[HIDDEN])
    return chosen or dict(outputs)


def searchable(names: Collection[str]) -> bool:
    """True if neighbours are searched by one of these outputs."""
    return LOGITS not in names and bool({EMBEDS, POOLED, HIDDEN}.intersection(names))


def with_vectors(outputs: Mapping[str, NDArray[Any]], token: TokenVector) -> dict[str, NDArray[Any]]:
    """All outputs, and the vector of `last_hidden_state`."""
    return {**vectors(outputs, token), **outputs}


def searched(names: Iterable[str]) -> str | None:
    """The vectors for image search: the embedding, else the pooled output, else the tokens'; never logits."""
    return next((name for name in (EMBEDS, POOLED, CLS, MEAN) if name in names), None)


def cosines(reference: NDArray[Any], candidate: NDArray[Any]) -> NDArray[np.float64]:
    """Cosine similarity of each image's vector (N, ...), of any floating-point type, with the reference's, (N,).

    It is -1 for non-finite values, 1 for two zero vectors, and 0 for one.
    """
    a, b = _unit(reference), _unit(candidate)
    similarity: NDArray[np.float64] = np.clip((a * b).sum(axis=1), -1.0, 1.0)
    similarity[~(a.any(axis=1) | b.any(axis=1))] = 1.0
    similarity[~(_finite(reference) & _finite(candidate))] = -1.0
    return similarity


def same_neighbours(reference: NDArray[Any], candidate: NDArray[Any]) -> NDArray[np.bool_]:
    """True where an image's nearest neighbour is the reference's, (N,), by cosine of vectors (N, ...), N at least 2.

    An image is not its own neighbour. In the reference, all images within 1e-6 of the highest cosine count as nearest;
    in an artifact, only the first. With non-finite values it is False.
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
    """Comparison of the vectors of N images with the reference's.

    Attributes:
        output: Name, such as "pooler_output", or "cls_token" and "mean_token" for a vector of `last_hidden_state`; see
            `vectors`.
        images: Number of images, N.
        mean_cosine: Mean cosine similarity over images.
        p5_cosine: 5th percentile of the cosine similarity, with numpy's linear interpolation.
        min_cosine: Lowest cosine similarity.
        error: L2 norm of the difference over that of the reference's vectors, over all images, which detects a constant
            factor; infinite for non-finite values.
        same_neighbours: Number of images with the reference's nearest neighbour, see `same_neighbours`; None for fewer
            than `FEWEST_SEARCHED` images, and for vectors that are not used for search.
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
        """Share of images with the same nearest neighbour, 0 to 1."""
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
    """Compare an artifact's vectors, (N, D) by name from `vectors`, with the reference's.

    `search` enables nearest neighbours, which are meaningless among synthetic images.
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
    """A cosine as text: three digits, or more if these would all be nines."""
    return f"{cosine:.3f}" if cosine < 0.9985 else f"{cosine:.5f}"


def _unit(array: NDArray[Any]) -> NDArray[np.float64]:
    """Unit vectors (N, D); zeros for vectors of zero length or with non-finite values."""
    flat = np.where(_finite(array)[:, None], array.reshape(len(array), -1), 0).astype(np.float64)
    length = np.linalg.norm(flat, axis=1, keepdims=True)
    unit: NDArray[np.float64] = np.divide(flat, length, out=np.zeros_like(flat), where=length > 0)
    return unit


def _finite(array: NDArray[Any]) -> NDArray[np.bool_]:
    finite: NDArray[np.bool_] = np.isfinite(array.reshape(len(array), -1)).all(axis=1)
    return finite
