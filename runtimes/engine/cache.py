"""File cache of the kernels that TensorRT-RTX compiles for this machine, so that an engine opens sooner."""

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

SAVE_EVERY_S = 60.0  # shortest interval between saves during runs


class KernelCache:
    """The library's runtime cache and its file.

    The library adds to it whenever a run compiles, and does not document concurrent reads: the caller must ensure that
    nothing runs while it is saved.

    Args:
        config: The library's runtime configuration, which will use it.
        file: Its file; None for no file.
        disposable: True to replace an unusable file, and to ignore a failed write.
        made_by: Library and version.

    Raises:
        DeviceError: If the file is not a cache of this library and not disposable, or the library has no cache.
        InputError: If it cannot be read and is not disposable.
    """

    def __init__(
        self, config: Any, file: Path | None, *, disposable: bool, made_by: str, errors: Sequence[str]
    ) -> None:
        self.file, self._disposable = file, disposable
        self._saved_s = -math.inf
        self._cache = config.create_runtime_cache()
        content = self._read()
        # A cache of another version, GPU or driver is rejected as well, and is then empty.
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
        """True if there is a file, and it was not just written."""
        return self.file is not None and time.monotonic() - self._saved_s >= SAVE_EVERY_S

    def save(self) -> None:
        """Write the file.

        Raises:
            OutputError: If it cannot be written and is not disposable.
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
    """File of an engine's compiled kernels in the user's cache; None if that is not writable."""
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
