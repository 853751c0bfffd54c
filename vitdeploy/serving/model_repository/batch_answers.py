"""Answer a batch of requests with one predictor: read, concatenate, run, split; a bad image fails its request alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np

from vitdeploy.batch.cell_text import as_utf_8
from vitdeploy.errors import ImageError, UsageError, VitDeployError
from vitdeploy.predictor import Prediction, Predictor, batch_size_for
from vitdeploy.serving.in_process.bundle_checks import check_answers
from vitdeploy.system.cpu import recent_workers

LABELS, SCORES, INDICES, EMBEDDING = "labels", "scores", "indices", "embedding"

Row: TypeAlias = "tuple[int, int]"  # number of the request, and of its image
Answer: TypeAlias = "dict[str, np.ndarray] | VitDeployError"


class BatchAnswers:
    """The answers of one predictor to batches of requests. One call at a time.

    Args:
        predictor: Closed with this object.
        outputs: Names of the outputs: the classes' LABELS, SCORES and INDICES, or EMBEDDING.
        top_k: Classes per image.
        max_batch_size: Most images in a run.
        max_image_bytes: Largest encoded image.
    """

    def __init__(
        self, predictor: Predictor, outputs: Sequence[str], *, top_k: int, max_batch_size: int, max_image_bytes: int
    ) -> None:
        self._predictor, self._outputs, self._top_k = predictor, tuple(outputs), top_k
        self._max_image_bytes = max_image_bytes
        self._size = batch_size_for(predictor.processor, predictor.runtime, max_batch_size)
        self._pooling = predictor.pooling() if EMBEDDING in self._outputs else None

    def __call__(self, requests: Sequence[np.ndarray]) -> list[Answer]:
        """Answer requests.

        Args:
            requests: Of each request, encoded images as bytes, (N, 1) of objects; or prepared tensors, (N, ...) in the
                runtime's format.

        Returns:
            The outputs of each request, (N, ...) by name; or its error.
        """
        errors: dict[int, VitDeployError] = {}
        groups: dict[tuple[int, ...], list[tuple[Row, np.ndarray]]] = defaultdict(list)
        rows = [(number, index) for number, images in enumerate(requests) for index in range(len(images))]
        images = [requests[number][index] for number, index in rows]
        arrays = self._predictor.readers.map(self._read, images, [index for _, index in rows], threads=recent_workers())
        for row, array in zip(rows, arrays, strict=True):
            if isinstance(array, VitDeployError):
                errors.setdefault(row[0], array)
            else:
                groups[array.shape].append((row, array))
        answers: dict[Row, Mapping[str, np.ndarray]] = {}
        for group in groups.values():
            kept = [(row, array) for row, array in group if row[0] not in errors]
            for start in range(0, len(kept), self._size):
                part = kept[start : start + self._size]
                try:
                    found = self._run(np.concatenate([array for _, array in part]), [row[1] for row, _ in part])
                except VitDeployError as exc:
                    found = [exc] * len(part)
                for (row, _), answer in zip(part, found, strict=True):
                    if isinstance(answer, VitDeployError):
                        errors.setdefault(row[0], answer)
                    else:
                        answers[row] = answer
        return [
            errors[number] if number in errors else {
                name: np.concatenate([answers[number, index][name] for index in range(len(images))])
                for name in self._outputs
            }
            for number, images in enumerate(requests)
        ]  # fmt: skip

    def warm_up(self) -> None:
        """Run the smallest and the largest batch, and an image of noise, whose outputs must be finite.

        Raises:
            VitDeployError: As `Predictor.warm_up` and `check_answers`.
        """
        self._predictor.warm_up(sorted({1, self._size}))
        check_answers(self._predictor)

    def close(self) -> None:
        """Close the predictor."""
        self._predictor.close()

    def _read(self, image: np.ndarray, index: int) -> np.ndarray | VitDeployError:
        """One image as the runtime takes it, (1, ...), or its error."""
        if not isinstance(image, np.ndarray):  # Triton's int32 count of a request's images overflowed to 0
            return UsageError("encoded images have the shape (N, 1)", what="image", expected="(N, 1)", found="(N,)")
        if image.dtype != object:
            return image[np.newaxis]
        (content,) = image
        try:
            if len(content) > self._max_image_bytes:
                limit, found = self._max_image_bytes, len(content)
                message = f"images[{index}] has {found:,} bytes, more than the limit of {limit:,}"
                raise ImageError(message, what=f"images[{index}]", expected=limit, found=found)
            processor, pixels = self._predictor.processor, self._predictor.runtime.pixels
            return processor([content], pixels=pixels, first_index=index)
        except VitDeployError as exc:
            return exc

    def _run(self, pixel_values: np.ndarray, indices: Sequence[int]) -> Sequence[Answer]:
        """The answer to each image of a run, of batch size 1."""
        if self._pooling is None:
            output, values = "logits", self._predictor.logits(pixel_values)
        else:
            output = self._pooling.output
            values = self._pooling(self._predictor.runtime.run({"pixel_values": pixel_values}))
        answers: list[Answer] = []
        for index, value in zip(indices, values[:, np.newaxis], strict=True):
            try:
                self._predictor.check_finite(output, value, [pixel_values], index)
            except VitDeployError as exc:
                answers.append(exc)
                continue
            answers.append({EMBEDDING: value} if self._pooling else _columns(self._predictor.best(value, self._top_k)))
        return answers


def _columns(predictions: Sequence[Sequence[Prediction]]) -> dict[str, np.ndarray]:
    """Predictions as outputs, (N, K): BYTES, float32 and int32."""
    return {
        LABELS: np.array([[as_utf_8(best.label).encode() for best in image] for image in predictions], object),
        SCORES: np.array([[best.score for best in image] for image in predictions], np.float32),
        INDICES: np.array([[best.index for best in image] for image in predictions], np.int32),
    }
