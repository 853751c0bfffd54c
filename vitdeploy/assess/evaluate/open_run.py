"""The open runtime of one backend in an evaluation, or the reason why it does not run."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import numpy as np

from vitdeploy.errors import UnavailableError
from vitdeploy.predictor import batch_size_for
from vitdeploy.runtimes.fit import check_fit

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from vitdeploy.assess.data.loader import Prepared
    from vitdeploy.assess.runs.open_runtimes import OpenRuntimes
    from vitdeploy.assess.runs.targets import Selected
    from vitdeploy.runtimes.base import Runtime
    from vitdeploy.specs import PixelFormat


class OpenRun:
    """A backend of an evaluation.

    Args:
        selected: Artifact and backend to run.
        runtimes: Runtimes of its bundle.

    Attributes:
        runtime: The open runtime; None if the backend is skipped.
        skipped: Reason for skipping it, if any.

    Raises:
        BundleError: If a file was altered, or the artifact does not fit the processor.
        UsageError: If the backend has no such precision.
    """

    def __init__(self, selected: Selected, runtimes: OpenRuntimes) -> None:
        self.selected = selected
        self.runtime: Runtime | None = None
        self.skipped: str | None = None
        self._runtimes, self._stack = runtimes, contextlib.ExitStack()
        self._details: dict[str, Any] = {}
        try:
            self.runtime = self._stack.enter_context(runtimes.open(selected))
        except UnavailableError as exc:
            self._skip(str(exc))
            return
        self._details = self.runtime.details
        try:
            self._prepare(self.runtime)
        except BaseException:
            self.close()
            raise

    def _prepare(self, runtime: Runtime) -> None:
        """Check that the runtime can be evaluated; skip it if it does not give the needed outputs."""
        check_fit(self._runtimes.bundle, self._runtimes.processor, runtime)

    @property
    def details(self) -> dict[str, Any]:
        """Details of the runtime, or the reason for skipping it."""
        return {"skipped": self.skipped} if self.skipped is not None else self._details

    @property
    def pixels(self) -> PixelFormat | None:
        """Pixel format of the runtime."""
        return None if self.runtime is None else self.runtime.pixels

    def rows(
        self, images: Sequence[Prepared], keep: Callable[[Mapping[str, np.ndarray]], np.ndarray]
    ) -> np.ndarray | None:
        """The part of these images' outputs that `keep` selects, (N, ...); None for a backend that is skipped.

        A backend that can no longer run, for example out of memory, is skipped from then on.
        """
        if self.runtime is None:
            return None
        size = batch_size_for(self._runtimes.processor, self.runtime, len(images))
        pixels = [image.pixels[self.runtime.pixels] for image in images]
        try:
            return np.concatenate(
                [
                    keep(self.runtime.run({"pixel_values": np.concatenate(pixels[start : start + size])}))
                    for start in range(0, len(pixels), size)
                ]
            )
        except UnavailableError as exc:
            self._skip(str(exc))
            return None

    def close(self) -> None:
        """Release the runtime."""
        self.runtime = None
        self._stack.close()

    def _skip(self, reason: str) -> None:
        self.skipped = reason
        self.close()
        self._runtimes.drop(self.selected)
