"""The step from an image's outputs to its result, the same as in `Predictor`."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from vitdeploy.images.open import ImageSource
from vitdeploy.predictor import Prediction, Predictor
from vitdeploy.specs import Pool
from vitdeploy.system.argument_types import check_type

# From the image's rows of the outputs, (1, ...) by name, to its result.
Finish = Callable[[Mapping[str, np.ndarray]], Any]
# The step for an image, with its position in its call; raises UsageError if the predictor cannot.
FinishFor = Callable[[Predictor, ImageSource, int], Finish]


def classes(top_k: int | None) -> FinishFor:
    """The step to `Predictor.predict` of one image: a list of predictions, best first."""

    def finish_for(predictor: Predictor, image: ImageSource, index: int) -> Finish:
        asked, name = predictor.classes_asked(top_k), _name(image)

        def finish(outputs: Mapping[str, np.ndarray]) -> list[Prediction]:
            logits = outputs["logits"].astype(np.float32, copy=False)
            predictor.check_finite("logits", logits, [name], index)
            return predictor.best(logits, asked)[0]

        return finish

    return finish_for


def vector(pool: Pool | None, normalize: bool) -> FinishFor:
    """The step to `Predictor.embed` of one image: (D,) float32."""

    def finish_for(predictor: Predictor, image: ImageSource, index: int) -> Finish:
        check_type("normalize", normalize, bool)
        pooling, name = predictor.pooling(pool), _name(image)

        def finish(outputs: Mapping[str, np.ndarray]) -> np.ndarray:
            vectors = pooling(outputs, normalize=normalize)
            predictor.check_finite(pooling.output, vectors, [name], index)
            own: np.ndarray = vectors[0].copy()  # not a view that keeps the outputs of the batch
            return own

        return finish

    return finish_for


def _name(image: ImageSource) -> str | os.PathLike[str] | bytes:
    """The image's path, which names it in messages; other images are not kept until the end of the run."""
    return image if isinstance(image, (str, os.PathLike)) else b""
