"""A served bundle, asked for one image: classes with scores, or the vector's size and norm."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from vitdeploy.serving.model_repository.batch_answers import EMBEDDING, LABELS, SCORES

if TYPE_CHECKING:
    from vitdeploy.serving.page.inference_client import InferenceClient


@dataclasses.dataclass(frozen=True)
class ServedModel:
    """A model that `vitdeploy triton --python-backend` wrote.

    Attributes:
        client: Asks the model.
        input: Name of the input that takes an image file's bytes.
        probabilities: True if the scores are probabilities, False for a regression's values.
    """

    client: InferenceClient
    input: str
    probabilities: bool = True

    def answer(self, image: bytes) -> dict[str, Any]:
        """Ask for one image; the answer as the page takes it.

        Raises:
            VitDeployError: As `InferenceClient.infer`.
        """
        outputs = self.client.infer(self.input, image)
        if EMBEDDING in outputs:
            (vector,) = outputs[EMBEDDING]
            norm = float(np.linalg.norm(vector.astype(np.float64)))
            return {"values": [["Values of the vector", len(vector)], ["L2 norm", f"{norm:.4g}"]]}
        (labels,), (scores,) = outputs[LABELS], outputs[SCORES]
        predictions = [{"label": label, "score": score} for label, score in zip(labels, scores.tolist(), strict=True)]
        return {"predictions": predictions, "probabilities": self.probabilities}
