"""A classifier from a feature extractor and a vector for each class."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import torch

from vitdeploy.models.vit import VisionTransformer
from vitdeploy.specs import Task

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from vitdeploy.bundle.scores import ProblemType


def with_classes(
    model: VisionTransformer, labels: Sequence[str], weight: Tensor, bias: Tensor, problem_type: ProblemType
) -> VisionTransformer:
    """The classifier of a feature extractor with an `embedding_pool`; their weights are shared.

    Args:
        model: The feature extractor.
        labels: Class names.
        weight: Vectors of the classes, (C, D) for embeddings of D values.
        bias: Bias of each logit, (C,).
        problem_type: Meaning of the logits.
    """
    config = dataclasses.replace(model.config, zero_shot=True, labels=tuple(labels), problem_type=problem_type)
    with torch.device("meta"):
        classifier = VisionTransformer(config, Task.CLASSIFICATION, pooler=model.pooler, attention=model.attention)
    state = {**model.state_dict(), "head.zero_shot.weight": weight, "head.zero_shot.bias": bias}
    classifier.load_state_dict(state, assign=True)
    return classifier.eval().requires_grad_(False)
