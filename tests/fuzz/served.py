"""Requests to servers: those of the Python backend, to the example application, and to the page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

import vitdeploy
from fuzz.cases import PASSED, Case
from fuzz.damage import choose
from fuzz.images import Images
from vitdeploy.errors import ImageError, VitDeployError
from vitdeploy.serving.model_repository.batch_answers import INDICES, LABELS, SCORES, BatchAnswers

if TYPE_CHECKING:
    from pathlib import Path

_MOST_BYTES = 100_000
_CLASSES = 3
_NO_COMMAND = ("verify",)  # no command reads these inputs: `LIBRARY_ALONE`


class BackendRequests:
    """Batches of requests with good and bad images.

    Oracle: a good image gets the scores that it has alone, whatever comes with it; a bad one fails its request, or has
    finite scores that sum to 1.
    """

    def __init__(self, base: Path) -> None:
        outputs = (LABELS, SCORES, INDICES)
        self._answers = [
            BatchAnswers(vitdeploy.load(base / name), outputs, top_k=_CLASSES, max_batch_size=4,
                         max_image_bytes=_MOST_BYTES)
            for name in ("bundle", "embedded")
        ]  # fmt: skip
        self._images = [path.read_bytes() for path in sorted((base / "data").rglob("*.png"))]
        self._alone: list[list[Any]] = [
            [answer([_of_images([image])])[0] for image in self._images] for answer in self._answers
        ]

    def make(self, rng: np.random.Generator, folder: Path) -> Case:
        which = int(rng.integers(len(self._answers)))
        requests = [[self._image(rng) for _ in range(int(rng.integers(1, 4)))] for _ in range(int(rng.integers(1, 5)))]
        bad = sum(number is None for request in requests for _, number, _ in request)
        note = ", ".join(note for request in requests for _, number, note in request if number is None)

        def call() -> list[Any]:
            return self._answers[which]([_of_images([image for image, _, _ in request]) for request in requests])

        def check(answers: list[Any]) -> str | None:
            if len(answers) != len(requests):
                return f"{len(requests)} requests, {len(answers)} answers"
            for request, answer in zip(requests, answers, strict=True):
                numbers = [number for _, number, _ in request]
                if any(len(image) > _MOST_BYTES for image, _, _ in request) and not isinstance(answer, ImageError):
                    return "an image over the limit of bytes is answered"
                problem = self._problem(which, numbers, answer)
                if problem is not None:
                    return problem
            return None

        return Case(f"{bad} bad images: {note:.200}", _NO_COMMAND, frozenset({PASSED}), check, call)

    def _image(self, rng: np.random.Generator) -> tuple[bytes, int | None, str]:
        """An image, its number if it is good, and how it was made."""
        draw = rng.random()
        if draw < 0.5:
            number = int(rng.integers(len(self._images)))
            return self._images[number], number, "good"
        if draw < 0.55:
            content = choose(rng, (b"", b"\0", bytes(_MOST_BYTES + 1), b"RIFF", b"\xff\xd8\xff"))
            return content, None, f"{len(content)} bytes"
        note, content = Images.content(rng)
        return content, None, note

    def _problem(self, which: int, numbers: list[int | None], answer: Any) -> str | None:
        if isinstance(answer, VitDeployError):
            return None if None in numbers else f"good images are refused: {answer}"
        for row, number in enumerate(numbers):
            scores = answer[SCORES][row]
            if len(scores) != _CLASSES or not np.isfinite(scores).all() or abs(scores.sum() - 1) > 1e-5:
                return f"scores of three classes must sum to 1, are {scores}"
            if number is not None:
                alone = self._alone[which][number]
                if not np.allclose(scores, alone[SCORES][0], atol=1e-5):
                    return f"image {number} has the scores {scores}, alone it has {alone[SCORES][0]}"
        return None


def _of_images(images: list[bytes]) -> np.ndarray[Any, Any]:
    """Encoded images as Triton gives them, (N, 1) of objects."""
    array = np.empty((len(images), 1), object)
    array[:, 0] = images
    return array
