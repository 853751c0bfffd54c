"""A runtime whose runs wait for the test: what is queued, running and full is known at each moment."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import numpy as np
from stub_runtime import StubRuntime

from vitdeploy.images.preprocessor_config import Size
from vitdeploy.images.processor import ImageProcessor
from vitdeploy.predictor import Predictor
from vitdeploy.specs import TensorSpec

if TYPE_CHECKING:
    from collections.abc import Mapping

LABELS = "dark", "light"
WAIT_S = 10.0  # reached only where a test fails


class GatedRuntime(StubRuntime):
    """An image's logits are its mean and the opposite; a run waits while the gate is closed.

    Attributes:
        gate: Lets runs end.
        begun: Released at the beginning of each run.
        shapes: Input shape of each run.
        error: What runs raise.
    """

    def __init__(self) -> None:
        super().__init__()
        self.inputs = (TensorSpec("pixel_values", "float32", ("batch", 3, "height", "width")),)
        self.outputs = (TensorSpec("logits", "float32", ("batch", len(LABELS))),)
        self.details = {}
        self.gate, self.begun = threading.Event(), threading.Semaphore(0)
        self.gate.set()
        self.shapes: list[tuple[int, ...]] = []
        self.error: BaseException | None = None

    def _run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        pixel_values = feeds["pixel_values"]
        self.shapes.append(pixel_values.shape)
        self.begun.release()
        assert self.gate.wait(WAIT_S)
        if self.error is not None:
            raise self.error
        light = pixel_values.mean(axis=(1, 2, 3))
        light[light == 1] = np.nan  # of a white image
        return {"logits": np.stack([-light, light], axis=1)}

    def hold(self) -> None:
        """Let the next runs wait."""
        self.gate.clear()

    def wait_for_run(self) -> None:
        assert self.begun.acquire(timeout=WAIT_S)


def gated_predictor(*, fixed_size: bool = True) -> tuple[Predictor, GatedRuntime]:
    """A predictor of `LABELS`, whose model takes images of 5x5 pixels or, without a fixed size, of any."""
    runtime = GatedRuntime()
    processor = ImageProcessor(size=Size(5, 5)) if fixed_size else ImageProcessor(do_resize=False)
    return Predictor(processor, runtime, LABELS), runtime


def gray(value: int, height: int = 5, width: int = 5) -> np.ndarray:
    """An image of one gray."""
    return np.full((height, width, 3), value, np.uint8)
