"""An asyncio face of the micro-batcher."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from vitdeploy.errors import check_count
from vitdeploy.images.open import ImageSource
from vitdeploy.predictor import Prediction
from vitdeploy.serving.in_process.micro_batcher import MicroBatcher
from vitdeploy.specs import Pool
from vitdeploy.system.argument_types import check_type
from vitdeploy.system.cpu import MOST_THREADS, usable_cpus

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self


class AsyncPredictor:
    """Awaits a micro-batcher; the event loop is never blocked, because other threads read the images and run the model.

    A cancelled call frees its place in the queue; only a run that began goes on. Use `asyncio.wait_for` for a timeout,
    and `asyncio.gather` for several images. An asynchronous context manager, which closes the micro-batcher.

    Args:
        batcher: Answers the calls. Its predictor stays open.
        decoding_threads: Threads that read images. Default: one per CPU within the process's affinity and cgroup quota.

    Attributes:
        batcher: The micro-batcher.

    Raises:
        UsageError: If an argument is invalid.
    """

    def __init__(self, batcher: MicroBatcher, *, decoding_threads: int | None = None) -> None:
        threads = usable_cpus().workers if decoding_threads is None else decoding_threads
        check_count("decoding_threads", threads, most=MOST_THREADS)
        check_type("batcher", batcher, MicroBatcher)
        self.batcher = batcher
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="vitdeploy-decode")

    async def predict(self, image: ImageSource, *, top_k: int | None = None) -> list[Prediction]:
        """Predict the top classes of one image, best first; arguments and errors as for `MicroBatcher.submit`."""
        return await asyncio.wrap_future(self.batcher.submit(image, top_k=top_k, executor=self._executor))

    async def embed(self, image: ImageSource, *, pool: Pool | None = None, normalize: bool = False) -> np.ndarray:
        """Compute the vector of one image, (D,) float32; see `MicroBatcher.submit_embedding`."""
        return await asyncio.wrap_future(
            self.batcher.submit_embedding(image, pool=pool, normalize=normalize, executor=self._executor)
        )

    async def close(self, *, drain: bool = True) -> None:
        """Close the micro-batcher without blocking the event loop; see `MicroBatcher.close`."""
        await asyncio.to_thread(self.batcher.close, drain=drain)
        self._executor.shutdown(wait=False)  # idle: no accepted image is left to read

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
