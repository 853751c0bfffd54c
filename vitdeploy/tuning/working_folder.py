"""The working folder beside a bundle: artifacts that were made, and measurements, for a run that goes on later."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from typing import TYPE_CHECKING, Any

from vitdeploy.errors import OutputError, UsageError
from vitdeploy.exporting.quantization.measurement_cache import MeasurementCache
from vitdeploy.files.locks import take

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_MARK = "vitdeploy-tune"  # a file that says whose folder it is


class WorkingFolder:
    """A folder that this process alone uses. What it remembers is keyed by everything that it depends on.

    Attributes:
        path: The folder, "BUNDLE.tune".
        resumed: True if an earlier run left something.
    """

    def __init__(self, path: Path, *, resumed: bool) -> None:
        self.path, self.resumed = path, resumed

    @classmethod
    @contextlib.contextmanager
    def beside(cls, bundle: Path) -> Iterator[WorkingFolder]:
        """The folder for a bundle, created if missing, locked in this block.

        Raises:
            UsageError: If it holds other files, or another process uses it.
            OutputError: If it cannot be written.
        """
        place = bundle.resolve()
        path = place.with_name(f"{place.name}.tune")
        try:
            path.mkdir(exist_ok=True)
            names = [entry.name for entry in path.iterdir()]
        except OSError as exc:
            raise OutputError(
                f"{path} cannot be written: {exc.strerror}", where=path, hint="tune needs a working folder there"
            ) from exc
        if names and _MARK not in names:
            raise UsageError(
                f"{path} is the working folder of tune, and holds other files",
                what="bundle", where=path, found=names[0], hint="move it away",
            )  # fmt: skip
        descriptor = os.open(path / _MARK, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if take(descriptor) is False:
                raise UsageError(
                    f"another process tunes {bundle}", what="bundle", where=path, hint="wait for it, or end it"
                )
            yield cls(path, resumed=bool(names))
        finally:
            os.close(descriptor)

    def recall(self, *key: object) -> Any:
        """The value of a key; None if it is not known."""
        content = self._cache(key).read()
        return None if content is None else json.loads(content)

    def remember(self, value: Any, *key: object) -> None:
        """Keep a plain value."""
        self._cache(key).write(json.dumps(value, allow_nan=False).encode())

    def remove(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _cache(self, key: tuple[object, ...]) -> MeasurementCache:
        folder = self.path / "measurements"
        folder.mkdir(exist_ok=True)
        return MeasurementCache(folder, [json.dumps(part, sort_keys=True) for part in key])
