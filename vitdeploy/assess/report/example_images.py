"""Choose a report's example images, with the predictions of each backend."""

from __future__ import annotations

import dataclasses
import functools
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitdeploy.assess.data.dataset import LabelledData, open_data
from vitdeploy.assess.metrics.accuracy import NOT_FINITE
from vitdeploy.errors import ImageError, VitDeployError
from vitdeploy.files.regular_file import MOST_IMAGE_BYTES, read_regular
from vitdeploy.predictor import Prediction

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from numpy.typing import NDArray

    from vitdeploy.assess.compare.results import Comparison
    from vitdeploy.assess.compare.worst_images import WorstImage
    from vitdeploy.assess.evaluate.evaluate import Evaluation

MOST = 12  # images per group
_SEEN = 0.01  # smaller score differences are invisible on a page that shows tenths of a percent
_WORST = 2.0  # replaces the score of an image with non-finite logits: above any


@dataclasses.dataclass(frozen=True, eq=False)
class ExampleImage:
    """An image, its class, and each backend's prediction.

    Attributes:
        image: Image name.
        expected: Expected class.
        predictions: Top-1 class by backend, such as "onnxruntime fp32"; index -1 for non-finite logits.
        load: Returns the encoded image; raises ImageError if it cannot be read.
        distance: Largest logit difference, over the reference's largest logit; None if unknown.
    """

    image: str
    expected: str
    predictions: Mapping[str, Prediction]
    load: Callable[[], bytes]
    distance: float | None = None

    @property
    def correct(self) -> bool:
        """True if every backend's top-1 class is the expected one."""
        return all(best.label == self.expected for best in self.predictions.values())

    def to_dict(self) -> dict[str, Any]:
        return {
            "image": self.image,
            "expected": self.expected,
            "correct": self.correct,
            "predictions": {name: best.to_dict() for name, best in self.predictions.items()},
            "distance": self.distance,
        }


def worst_images(evaluation: Evaluation) -> dict[str, tuple[ExampleImage, ...]]:
    """Images by heading: those furthest from the reference, and those misclassified with the highest score.

    Furthest are images whose top-1 class differs from the reference's, ordered by the confidence of both; then images
    whose score differs by a point or more.
    """
    ran = [result for result in evaluation.results if result.skipped is None]
    if not ran:
        return {}
    best = np.stack([result.classes[:, 0] for result in ran])  # (B, N)
    scores = np.stack([np.where(np.isnan(result.scores), _WORST, result.scores) for result in ran])  # (B, N)
    groups: dict[str, list[int]] = {}
    total = len(evaluation.images)
    reference = evaluation.reference
    if reference is not None:
        index = ran.index(reference)
        between = np.minimum(scores, scores[index])
        distance = np.where(best != best[index], _WORST + between, np.abs(scores - scores[index])).max(axis=0)
        far = _in_order(distance, distance >= _SEEN)
        groups[_heading("Furthest from the reference", len(far), total)] = far
    wrong = best != evaluation.targets
    wrongly = _in_order(np.where(wrong, scores, 0).max(axis=0), wrong.any(axis=0))
    groups[_heading("Misclassified with the highest score", len(wrongly), total)] = wrongly
    shown = {heading: positions[:MOST] for heading, positions in groups.items() if positions}
    images = _Images(evaluation)
    return {heading: _examples(evaluation, positions, images) for heading, positions in shown.items()}


def furthest_images(comparison: Comparison) -> dict[str, tuple[ExampleImage, ...]]:
    """Image files by heading, on which an artifact differs most from the reference.

    The expected class is the reference's.
    """
    far: dict[str, list[tuple[str, WorstImage]]] = {}
    for result in comparison.results:
        for worst in result.furthest:
            if worst.image:
                far.setdefault(worst.image, []).append((f"{result.artifact} on {result.backend}", worst))
    examples = tuple(
        ExampleImage(
            image,
            far[image][0][1].reference.label,
            {"reference": far[image][0][1].reference, **{name: worst.artifact for name, worst in far[image]}},
            functools.partial(_read, Path(image)),
            max(worst.distance for _, worst in far[image]),
        )
        for image in sorted(far, key=lambda image: -max(worst.distance for _, worst in far[image]))[:MOST]
    )
    return {"Furthest from the reference, whose class stands for the right one": examples} if examples else {}


def first_of_each_class(evaluation: Evaluation) -> tuple[ExampleImage, ...]:
    """The first image of each class that has images."""
    _, first = np.unique(evaluation.targets, return_index=True)
    return _examples(evaluation, first.tolist(), _Images(evaluation))


def _in_order(values: NDArray[Any], chosen: NDArray[np.bool_]) -> list[int]:
    """Positions of the chosen, the largest value first."""
    order = np.argsort(-values, kind="stable")
    ordered: list[int] = order[chosen[order]].tolist()
    return ordered


def _heading(what: str, count: int, total: int) -> str:
    return f"{what}: {count} of {total}" + (f", the first {MOST}" if count > MOST else "")


class _Images:
    """The data set of an evaluation, opened on the first access to an image: it may have been deleted or changed."""

    def __init__(self, evaluation: Evaluation) -> None:
        self._source, self._labels = evaluation.data, evaluation.labels

    @functools.cached_property
    def _data(self) -> LabelledData:
        return open_data(self._source, self._labels)

    @functools.cached_property
    def _positions(self) -> dict[str, int]:
        return {name: position for position, name in enumerate(self._data.names)}

    def load(self, name: str) -> bytes:
        """The encoded image of that name; ImageError, with the reason, if it is gone."""
        try:
            position = self._positions.get(name)
        except VitDeployError as exc:
            raise exc.as_type(ImageError).with_message(f"cannot read {name!r}: {exc}") from exc
        if position is None:
            problem = f"cannot read {name!r}: it is not in {self._source} any more"
            raise ImageError(problem, what=name, where=self._source)
        return self._data.load(position)


def _examples(evaluation: Evaluation, positions: Iterable[int], images: _Images) -> tuple[ExampleImage, ...]:
    names = evaluation.class_names
    return tuple(
        ExampleImage(
            evaluation.images[position],
            names[evaluation.targets[position]],
            {
                result.name: _best(names, int(result.classes[position, 0]), float(result.scores[position]))
                for result in evaluation.results
                if result.skipped is None
            },
            functools.partial(images.load, evaluation.images[position]),
        )
        for position in positions
    )


def _read(path: Path) -> bytes:
    try:
        return read_regular(path, MOST_IMAGE_BYTES)
    except OSError as exc:
        raise ImageError(f"cannot read {str(path)!r}: {exc.strerror}", where=path, found=exc.strerror) from exc


def _best(names: tuple[str, ...], index: int, score: float) -> Prediction:
    if index == NOT_FINITE:
        return Prediction("not finite", NOT_FINITE, math.nan)
    return Prediction(names[index], index, score)
