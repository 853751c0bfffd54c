"""Scores of a classification head's outputs, by problem type (numpy only)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitdeploy.bundle.labels import class_names
from vitdeploy.errors import CheckpointError, shown
from vitdeploy.specs import ZERO_SHOT, Task, TextEnum


class ProblemType(TextEnum):
    """Meaning of a head's outputs; the values are those of `problem_type` in transformers' `config.json`."""

    SINGLE_LABEL = "single_label_classification"
    MULTI_LABEL = "multi_label_classification"
    REGRESSION = "regression"
    PAIRWISE = "pairwise_sigmoid"  # not transformers': multi_label_classification with `zero_shot`

    @property
    def ranked(self) -> bool:
        """True if the class with the largest logit is the image's: a single-label head, and pairs of image and text.

        SigLIP (arXiv:2303.15343) scores each pair by itself, with a sigmoid; its best class is the prediction.
        """
        return self in (ProblemType.SINGLE_LABEL, ProblemType.PAIRWISE)

    @property
    def in_config(self) -> str:
        """`problem_type` in a `config.json`."""
        return str(ProblemType.MULTI_LABEL if self is ProblemType.PAIRWISE else self)

    def scores(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits (N, num_labels) -> scores of the same shape, as in transformers' image-classification pipeline.

        Softmax over the classes of a single-label head, a sigmoid per output of a multi-label or pairwise head; a
        regression's outputs are unchanged.
        """
        if self is ProblemType.REGRESSION:
            return logits
        return _softmax(logits) if self is ProblemType.SINGLE_LABEL else _sigmoid(logits)

    def best(
        self, logits: NDArray[np.float32], top_k: int
    ) -> tuple[NDArray[np.signedinteger[Any]], NDArray[np.float32]]:
        """Logits (N, num_labels) -> indices and scores (N, K) of the K = min(top_k, num_labels) best classes.

        The best is first; equal scores keep the order of the logits. All values of a regression, in the order of its
        outputs.
        """
        scores = self.scores(logits)
        if self is ProblemType.REGRESSION:
            return np.broadcast_to(np.arange(scores.shape[1]), scores.shape), scores
        order = np.argsort(-scores, axis=1, kind="stable")[:, :top_k]
        return order, np.take_along_axis(scores, order, axis=1)


def stated_problem_type(config: Mapping[str, Any]) -> ProblemType | None:
    """`problem_type` in a `config.json`, if any, PAIRWISE for a multi-label zero-shot classifier of several classes.

    CheckpointError if it is unknown or does not fit the head.
    """
    stated = config.get("problem_type")
    if stated is None:
        return None
    problem, known = None, list(dict.fromkeys(kind.in_config for kind in ProblemType))
    zero_shot = bool(config.get(ZERO_SHOT))
    if not isinstance(stated, str) or stated not in known:
        problem, hint = f"unknown problem_type {shown(stated)}", f"use one of {', '.join(known)}, or null"
    elif stated == ProblemType.SINGLE_LABEL and len(class_names(config)) == 1:  # transformers refuses it too
        problem = f"problem_type {stated} needs two labels or more, id2label has one"
        hint = f"set problem_type to {ProblemType.REGRESSION} or {ProblemType.MULTI_LABEL}"
    elif stated == ProblemType.REGRESSION and zero_shot:
        problem, hint = f"a zero-shot classifier is no {stated}", "export the bundle again"
    if problem is not None:
        message = f"config.json: {problem}"
        raise CheckpointError(message, what="problem_type", where="config.json", found=stated, hint=hint)
    if zero_shot and stated == ProblemType.MULTI_LABEL and len(class_names(config)) > 1:
        return ProblemType.PAIRWISE
    return ProblemType(stated)


def default_problem_type(num_labels: int) -> ProblemType:
    """Default problem type without one in `config.json`: a sigmoid for one output, as in transformers' pipeline."""
    return ProblemType.MULTI_LABEL if num_labels == 1 else ProblemType.SINGLE_LABEL


def problem_type_of(task: str, config: Mapping[str, Any]) -> ProblemType:
    """As `stated_problem_type`, or its default; other tasks' logits are over classes, such as BEiT's visual tokens."""
    if task != Task.CLASSIFICATION:
        return ProblemType.SINGLE_LABEL
    return stated_problem_type(config) or default_problem_type(len(class_names(config)))


def _sigmoid(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):  # exp(-x) is infinite below -88, and the score is correctly 0
        scores: NDArray[Any] = 1.0 / (1.0 + np.exp(-logits))
    return scores


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    exponents = np.exp(logits - logits.max(axis=-1, keepdims=True))
    scores: NDArray[Any] = exponents / exponents.sum(axis=-1, keepdims=True)
    return scores
