"""A predictor for processes that are started later: it travels as a path, and opens where it is used."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vitdeploy.errors import UsageError
from vitdeploy.predictor import Prediction, Predictor, load
from vitdeploy.serving.in_process.absolute_paths import absolute
from vitdeploy.serving.in_process.leases import Lease
from vitdeploy.system.closing import ClosedOnExit
from vitdeploy.system.forks import first_in_child, keep_until_exit

if TYPE_CHECKING:
    import numpy as np

    from vitdeploy.images.open import ImageSource
    from vitdeploy.runtimes.warmed_shapes import WarmedShape
    from vitdeploy.specs import Pool


class LazyPredictor(ClosedOnExit):
    """A predictor that opens its bundle on first use, in each process by itself.

    It can be pickled, open or not: the copy has the path and the options, and opens the bundle in its own process. A
    forked child opens it again and never runs the parent's engine. So it suits torch's DataLoader, multiprocessing with
    spawn or fork, Ray and gunicorn with --preload. Keep it for the life of a worker; each copy opens the bundle anew.

    A context manager; its methods are thread-safe, and raise what `vitdeploy.load` raises too.

    Args:
        path: The bundle's folder, which every process can read under its absolute path.
        options: Arguments of `vitdeploy.load`, such as `backend` and `precision`.
    """

    _predictor: Predictor | None

    def __init__(self, path: str | os.PathLike[str], **options: Any) -> None:
        self.path, self.options = absolute(path, options)  # a worker may have another working directory
        self._begin()

    @property
    def predictor(self) -> Predictor:
        """The open predictor of this process; use it in no other one."""
        with self._lock:
            if self._closed:
                raise UsageError("this predictor is closed", what="predictor", found="closed", hint="make another")
            if self._predictor is None:
                self._predictor = load(self.path, **self.options)
            return self._predictor

    def lease(self) -> Lease:
        """The predictor, for a `MicroBatcher`; it stays open until `close`."""
        return Lease(self.predictor, lambda: None)

    def predict(
        self,
        images: ImageSource | Sequence[ImageSource],
        *,
        top_k: int | None = None,
        batch_size: int | None = None,
    ) -> list[list[Prediction]]:
        """See `Predictor.predict`."""
        return self.predictor.predict(images, top_k=top_k, batch_size=batch_size)

    def embed(
        self,
        images: ImageSource | Sequence[ImageSource],
        *,
        pool: Pool | None = None,
        normalize: bool = False,
        batch_size: int | None = None,
    ) -> np.ndarray:
        """See `Predictor.embed`."""
        return self.predictor.embed(images, pool=pool, normalize=normalize, batch_size=batch_size)

    def warm_up(
        self,
        batch_sizes: Sequence[int] | None = None,
        image_sizes: Sequence[Sequence[int]] | None = None,
        *,
        callers: int = 1,
    ) -> tuple[WarmedShape, ...]:
        """Open the bundle; then see `Predictor.warm_up`."""
        return self.predictor.warm_up(batch_sizes, image_sizes, callers=callers)

    def close(self) -> None:
        """Close this process's predictor, if it is open; copies in other processes go on."""
        with self._lock:
            self._closed, predictor = True, self._predictor
            self._predictor = None
        if predictor is not None:
            predictor.close()

    def _begin(self) -> None:
        self._closed = False
        self._predictor = None
        self._forget()
        _lazy_predictors.add(self)

    def _forget(self) -> None:
        """For a new one, and for a forked child, where another thread may have held the lock."""
        self._lock = threading.Lock()
        if self._predictor is not None:
            keep_until_exit(self._predictor)  # the parent's: its engine would wait for threads that are missing
        self._predictor = None

    def __getstate__(self) -> tuple[str, dict[str, Any]]:
        return self.path, self.options

    def __setstate__(self, state: tuple[str, dict[str, Any]]) -> None:
        self.path, self.options = state
        self._begin()

    def __repr__(self) -> str:
        state = "closed" if self._closed else "not open" if self._predictor is None else "open"
        return f"<LazyPredictor {self.path!r}, {state}>"


_lazy_predictors: weakref.WeakSet[LazyPredictor] = weakref.WeakSet()


@first_in_child
def _forget_all() -> None:
    for lazy in tuple(_lazy_predictors):
        lazy._forget()
