"""Replace the bundle of a running application by a new one, once that is proven and warm."""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vitdeploy.bundle.bundle import Bundle
from vitdeploy.errors import UsageError, VitDeployError, shown
from vitdeploy.images.open import ImageSource
from vitdeploy.predictor import Prediction, Predictor, load
from vitdeploy.serving.in_process.absolute_paths import absolute
from vitdeploy.serving.in_process.bundle_checks import check_answers, check_same_answers
from vitdeploy.serving.in_process.leases import Lease
from vitdeploy.serving.in_process.watcher import Watcher
from vitdeploy.specs import Pool
from vitdeploy.system.argument_types import check_type
from vitdeploy.system.closing import ClosedOnExit

if TYPE_CHECKING:
    from vitdeploy.bundle.manifest import Manifest

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class ReloadStatus:
    """State of a `ReloadingPredictor`.

    Attributes:
        fingerprint: `Predictor.fingerprint` of the bundle in use.
        reloads: Times that a new bundle came into use.
        failures: Times that one was refused.
        last_error: Reason of the last refusal; None once a reload succeeds.
    """

    fingerprint: str | None
    reloads: int = 0
    failures: int = 0
    last_error: str | None = None


@dataclasses.dataclass(eq=False)
class _Opened:
    """An open predictor, and the number of its leases; retired once another has taken its place."""

    predictor: Predictor
    leases: int = 0
    retired: bool = False


class ReloadingPredictor(ClosedOnExit):
    """A predictor that opens its bundle again when that was replaced, without a gap.

    A new bundle comes into use once its checksums are verified, it has the outputs and labels of the old one, an image
    of noise has finite outputs, and it is warm. Requests in progress end with the old one, which is then closed. A
    bundle that is refused changes nothing. Both are in memory meanwhile.

    A context manager. In a forked child it refuses every call: make it after the fork.

    Args:
        path: The bundle's folder, which an export replaces in one step, or a link to it.
        allow_new_labels: Accept a bundle with other labels, and so with another problem type and other output shapes.
        batch_sizes: Images per run of the warm-up; see `Predictor.warm_up`.
        image_sizes: (height, width) of the model's input in the warm-up; see `Predictor.warm_up`.
        callers: Threads that call at a time; see `Predictor.warm_up`.
        watch: Seconds between looks at the bundle's manifest; a new one is reloaded, and a failure logged and tried
            again at the next look. Default: `reload` alone reloads.
        options: Arguments of `vitdeploy.load`, such as `backend` and `precision`.

    Raises:
        NotFiniteError: If the bundle gives NaN or infinite outputs.
        VitDeployError: As `vitdeploy.load`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        allow_new_labels: bool = False,
        batch_sizes: Sequence[int] | None = None,
        image_sizes: Sequence[Sequence[int]] | None = None,
        callers: int = 1,
        watch: float | None = None,
        **options: Any,
    ) -> None:
        path, options = absolute(path, options)
        check_type("allow_new_labels", allow_new_labels, bool)
        check_type("watch", watch, float | None)
        if watch is not None and not 0 < watch <= threading.TIMEOUT_MAX:
            raise UsageError(f"watch takes seconds above 0, got {shown(watch)}", what="watch", found=watch)
        self._load: Callable[[], Predictor] = functools.partial(load, path, **options)
        self._path, self._public_key = path, options.get("public_key")
        self._allow_new_labels = allow_new_labels
        self._warm_up = functools.partial(
            Predictor.warm_up, batch_sizes=batch_sizes, image_sizes=image_sizes, callers=callers
        )
        self._process = os.getpid()
        self._lock, self._reloading = threading.Lock(), threading.Lock()
        self._manifest, predictor = self._open_proven(None)
        self._current = _Opened(predictor)
        self._status = ReloadStatus(predictor.fingerprint)
        self._watcher = None if watch is None else Watcher(self._look, float(watch))

    @property
    def status(self) -> ReloadStatus:
        return self._status

    def predict(
        self,
        images: ImageSource | Sequence[ImageSource],
        *,
        top_k: int | None = None,
        batch_size: int | None = None,
    ) -> list[list[Prediction]]:
        """See `Predictor.predict`; the whole call runs on one bundle."""
        with self.lease() as predictor:
            return predictor.predict(images, top_k=top_k, batch_size=batch_size)

    def embed(
        self,
        images: ImageSource | Sequence[ImageSource],
        *,
        pool: Pool | None = None,
        normalize: bool = False,
        batch_size: int | None = None,
    ) -> np.ndarray:
        """See `Predictor.embed`; the whole call runs on one bundle."""
        with self.lease() as predictor:
            return predictor.embed(images, pool=pool, normalize=normalize, batch_size=batch_size)

    def lease(self) -> Lease:
        """The predictor in use, which stays open until the lease is released; a context manager.

        Raises:
            UsageError: If this was closed, or made before the process forked.
        """
        self._check_process()
        with self._lock:
            opened = self._current
            if opened.retired:
                raise _closed()
            opened.leases += 1
        return Lease(opened.predictor, functools.partial(self._release, opened))

    def reload(self) -> bool:
        """Open the bundle again, and use it from now on if its files changed; one thread at a time.

        Returns:
            True if a new bundle came into use, False if it is the same.

        Raises:
            BundleError: If it has other outputs or labels.
            NotFiniteError: If it gives NaN or infinite outputs.
            VitDeployError: As `vitdeploy.load`. After any error the old bundle stays in use.
        """
        self._check_process()
        with self._reloading, self.lease() as old:
            try:
                manifest, predictor = self._open_proven(old)
            except Exception as exc:
                reason = str(exc) or type(exc).__name__
                self._status = dataclasses.replace(self._status, failures=self._status.failures + 1, last_error=reason)
                raise
            self._manifest = manifest
            self._status = dataclasses.replace(self._status, last_error=None)
            if predictor is old:
                return False
            self._replace(predictor)
        return True

    def close(self) -> None:
        """Refuse new requests, and close the bundle once the last request is answered."""
        if os.getpid() != self._process:
            return
        if self._watcher is not None:
            self._watcher.end()
        with self._lock:
            closing = self._retire()
        if closing is not None:
            closing.close()

    def _open_proven(self, old: Predictor | None) -> tuple[Manifest, Predictor]:
        """The bundle's manifest, and its predictor, proven and warm; `old` if its files are the same."""
        manifest = self._read_manifest()  # before its files: a later one is noticed by the watcher
        predictor = self._load()
        try:
            if old is not None:
                if predictor.fingerprint == old.fingerprint:
                    predictor.close()
                    return manifest, old
                check_same_answers(predictor, old, allow_new_labels=self._allow_new_labels)
            check_answers(predictor)
            self._warm_up(predictor)
        except BaseException:
            predictor.close()
            raise
        return manifest, predictor

    def _replace(self, predictor: Predictor) -> None:
        with self._lock:
            closed = self._current.retired
            if not closed:
                self._retire()  # the lease of `reload` is its last one at the earliest
                self._current = _Opened(predictor)
        if closed:
            predictor.close()
            raise _closed()
        self._status = dataclasses.replace(
            self._status, fingerprint=predictor.fingerprint, reloads=self._status.reloads + 1
        )

    def _retire(self) -> Predictor | None:
        """Lend the current predictor no more; it is returned if it can be closed now. The caller holds the lock."""
        opened = self._current
        if opened.retired:
            return None
        opened.retired = True
        return None if opened.leases else opened.predictor

    def _release(self, opened: _Opened) -> None:
        with self._lock:
            opened.leases -= 1
            last = opened.retired and not opened.leases
        if last:
            opened.predictor.close()

    def _look(self) -> None:
        """Reload a bundle with another manifest, or after a failure; for the watcher, which goes on after one."""
        try:
            if self._status.last_error is not None or self._is_replaced():
                self.reload()
        except Exception as exc:
            bug = not isinstance(exc, VitDeployError)
            logger.warning("%s not reloaded, the previous bundle stays in use: %s", self._path, exc, exc_info=bug)

    def _is_replaced(self) -> bool:
        try:
            return self._read_manifest() != self._manifest
        except VitDeployError:
            return True  # `reload` meets the error too, and counts it

    def _read_manifest(self) -> Manifest:
        return Bundle.open(self._path, public_key=self._public_key).manifest

    def _check_process(self) -> None:
        if os.getpid() != self._process:  # a thread of the parent may have held a lock
            message, hint = "this predictor was opened before the process forked", "open it in each process"
            raise UsageError(message, what="predictor", found="forked", hint=hint)


def _closed() -> UsageError:
    return UsageError("this predictor is closed", what="predictor", found="closed", hint="open another")
