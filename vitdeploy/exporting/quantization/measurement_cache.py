"""Content-addressed cache of measurements on disk."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from vitdeploy.errors import OutputError
from vitdeploy.files.atomic import write_file
from vitdeploy.files.regular_file import open_regular

_VERSION = 3  # format of the files: no other version reads them


class MeasurementCache:
    """One cache file: a line with the SHA-256 of the key and of the content, then the content.

    A file that is unreadable, or whose checksum differs because it is damaged or misnamed, counts as absent; the
    measurement is repeated.

    Args:
        folder: The cache folder.
        parts: Everything that the measurement depends on; the key is their hash.
    """

    def __init__(self, folder: Path, parts: Iterable[str]) -> None:
        key = hashlib.sha256(json.dumps([_VERSION, *parts]).encode()).hexdigest()
        self._key = key.encode()
        self.path = folder / key

    def read(self) -> bytes | None:
        """The content; None if it is absent or damaged."""
        try:
            with open_regular(self.path) as file:
                checksum, _, content = file.read().partition(b"\n")
        except OSError:
            return None
        return content if checksum == self._checksum(content) else None

    def write(self, content: bytes) -> None:
        """Write the content atomically; never to something that is not a file, such as a pipe without a reader."""
        if self.path.exists() and not self.path.is_file():
            return
        with contextlib.suppress(OutputError):  # a full or read-only disk only costs time
            write_file(self.path, self._checksum(content) + b"\n" + content)

    def _checksum(self, content: bytes) -> bytes:
        return hashlib.sha256(self._key + content).hexdigest().encode()
