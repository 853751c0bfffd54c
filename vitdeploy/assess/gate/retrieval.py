"""Rules of a gate on embeddings: which figure each one bounds, and what a baseline keeps of it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from vitdeploy.assess.metrics.neighbours import RECALLS
from vitdeploy.specs import MOST_NEIGHBOURS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from vitdeploy.assess.evaluate.embedding_run import Neighbours
    from vitdeploy.assess.evaluate.embeddings import EmbeddingEvaluation
    from vitdeploy.assess.gate.rules import GateRules
    from vitdeploy.assess.metrics.accuracy import Accuracy

KNN = "knn"
RECALL_FIGURES = tuple(f"recall_at_{count}" for count in RECALLS)
RETRIEVAL_FIGURES = (KNN, *RECALL_FIGURES)
FLOORS = {"min_knn_accuracy": KNN, **{f"min_{name}": name for name in RECALL_FIGURES}}
DROPS = {"max_drop": (KNN,), "max_recall_drop": RECALL_FIGURES}  # the figures that may not drop
FIGURE_TEXTS = {KNN: "kNN accuracy", **{f"recall_at_{count}": f"recall@{count}" for count in RECALLS}}


def needs_labels(rules: GateRules) -> bool:
    """True if a rule bounds the neighbours' classes, so that the images need labels."""
    held = (rules.every, *rules.artifacts.values())
    return any(getattr(of, rule) is not None for of in held for rule in (*FLOORS, *DROPS))


def figure_of(evaluation: EmbeddingEvaluation, result: Neighbours, figure: str) -> Accuracy:
    """A figure of `RETRIEVAL_FIGURES`; UsageError for a skipped result."""
    if figure == KNN:
        return evaluation.knn(result)
    return evaluation.recall(result, RECALLS[RECALL_FIGURES.index(figure)])


@dataclasses.dataclass(frozen=True)
class AcceptedRetrieval:
    """The neighbours' classes in a baseline.

    Attributes:
        neighbours: Number of neighbours that vote.
        wrong: Images that count as wrong, sorted, by backend ("onnxruntime fp32") and figure.
    """

    neighbours: int
    wrong: Mapping[str, Mapping[str, tuple[str, ...]]]

    @classmethod
    def of(cls, evaluation: EmbeddingEvaluation) -> AcceptedRetrieval:
        """Those of an evaluation; skipped backends are omitted."""
        ran = [result for result in evaluation.results if result.skipped is None]
        return cls(
            evaluation.neighbours,
            {
                result.name: {
                    figure: tuple(sorted(figure_of(evaluation, result, figure).wrong)) for figure in RETRIEVAL_FIGURES
                }
                for result in ran
            },
        )

    @classmethod
    def from_dict(
        cls, data: Mapping[str, Any], images: int, read: Callable[[Mapping[str, Any], int, str], tuple[str, ...]]
    ) -> AcceptedRetrieval:
        """Read `to_dict`; `read` checks the images of one figure. KeyError, TypeError or ValueError if malformed."""
        neighbours = data["neighbours"]
        if type(neighbours) is not int or not 1 <= neighbours <= MOST_NEIGHBOURS:
            raise ValueError(f"neighbours is {neighbours!r:.40}, not an integer from 1 to {MOST_NEIGHBOURS}")
        return cls(
            neighbours,
            {
                str(name): {figure: read(row[figure], images, f"{figure} of {name}") for figure in RETRIEVAL_FIGURES}
                for name, row in data["backends"].items()
            },
        )

    def to_dict(self, images: int) -> dict[str, Any]:
        return {
            "neighbours": self.neighbours,
            "backends": {
                name: {
                    figure: {"correct": images - len(names), "wrong": list(names)} for figure, names in figures.items()
                }
                for name, figures in self.wrong.items()
            },
        }

    def disagreement(self, first: str, second: str, figures: Iterable[str], images: int) -> float:
        """Largest share of images that exactly one of two backends has right, over figures; 0 if one is missing."""
        if first not in self.wrong or second not in self.wrong:
            return 0.0
        return max(len({*self.wrong[first][name]} ^ {*self.wrong[second][name]}) for name in figures) / images
