"""The kernels that TensorRT-RTX compiles on the machine that runs an engine, kept in a file to open sooner."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vitdeploy.bundle.manifest import FileRecord
from vitdeploy.errors import DeviceError, OutputError, readable
from vitdeploy.files.atomic import write_file
from vitdeploy.files.regular_file import open_regular
from vitdeploy.files.user_cache import user_cache
from vitdeploy.trt.gpu import Gpu
from vitdeploy.trt.library import last_of

SAVE_EVERY_S = 60.0  # at most so often while runs go on


class KernelCache:
    """A library's runtime cache, and its file.

    The library adds to it whenever a run compiles, and nothing says that it may be read at the same time: it is for the
    caller to see that nothing runs while it is saved.

    Args:
        config: The library's runtime configuration, which then uses it.
        file: Where it is kept; None where it is not.
        disposable: Whether a file that cannot be used is replaced, and one that cannot be written left out.
        made_by: The library and its version.

    Raises:
        DeviceError: If the file is no cache of this library, and not disposable; or the library uses none.
        InputError: If it cannot be read, and is not disposable.
    """

    def __init__(
        self, config: Any, file: Path | None, *, disposable: bool, made_by: str, errors: Sequence[str]
    ) -> None:
        self.file, self._disposable = file, disposable
        self._saved_s = -math.inf
        self._cache = config.create_runtime_cache()
        content = self._read()
        # One of another version, GPU or driver is rejected as well, and the cache is empty then.
        if content is not None and not self._cache.deserialize(content) and not disposable:
            reason = last_of(errors)
            raise DeviceError(
                f"{made_by} does not take the runtime cache {file}: {reason}",
                what="runtime_cache", where=file, found=reason, hint="remove it",
            )  # fmt: skip
        if not config.set_runtime_cache(self._cache):
            reason = last_of(errors)
            raise DeviceError(f"{made_by} refuses any runtime cache: {reason}", what="runtime_cache", found=reason)

    def is_due(self) -> bool:
        """Whether there is a file, and it was not written just now."""
        return self.file is not None and time.monotonic() - self._saved_s >= SAVE_EVERY_S

    def save(self) -> None:
        """Write the file.

        Raises:
            OutputError: If it cannot be written, and is not disposable.
        """
        self._saved_s = time.monotonic()
        if self.file is None:
            return
        content = self._cache.serialize()
        try:
            if content is None:
                raise OutputError(
                    f"{self.file} could not be written: the library does not give its content",
                    what="runtime_cache", where=self.file,
                )  # fmt: skip
            write_file(self.file, bytes(content))
        except OutputError:
            if not self._disposable:
                raise

    def _read(self) -> bytes | None:
        if self.file is None or not self.file.exists():
            return None
        if self._disposable:
            with contextlib.suppress(OSError), open_regular(self.file) as file:
                return file.read()
            return None
        with readable(self.file, "a runtime cache"), open_regular(self.file) as file:
            return file.read()


def default_cache(backend: str, file: FileRecord, version: str, gpu: Gpu) -> Path | None:
    """The file for an engine's compiled kernels in the user's cache; None where that cannot be written."""
    cache = user_cache()
    if cache is None:
        return None
    folder = cache / backend
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    parts = file.sha256, version, gpu.name, gpu.compute_capability, gpu.driver
    name = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    return folder / name if os.access(folder, os.W_OK) else None
