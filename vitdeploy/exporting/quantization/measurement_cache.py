"""Measurements on disk, by the content that they were made from."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from vitdeploy.errors import OutputError
from vitdeploy.files.atomic import write_file
from vitdeploy.files.regular_file import open_regular

_VERSION = 3  # of the files: another one reads nothing of what this one wrote


class MeasurementCache:
    """One file: a line with the SHA-256 of its key and of what follows, and the content.

    A file that cannot be read, or whose checksum is another, because it is damaged or lies under another's name, counts
    as absent, so that it is measured again.

    Args:
        folder: Of all such files.
        parts: All that the measurement depends on.
    """

    def __init__(self, folder: Path, parts: Iterable[str]) -> None:
        key = hashlib.sha256(json.dumps([_VERSION, *parts]).encode()).hexdigest()
        self._key = key.encode()
        self.path = folder / key

    def read(self) -> bytes | None:
        """The content; None where there is none, or it is damaged."""
        try:
            with open_regular(self.path) as file:
                checksum, _, content = file.read().partition(b"\n")
        except OSError:
            return None
        return content if checksum == self._checksum(content) else None

    def write(self, content: bytes) -> None:
        """Keep it, whole or not at all; nothing is written to what is no file, such as a pipe that nobody reads."""
        if self.path.exists() and not self.path.is_file():
            return
        with contextlib.suppress(OutputError):  # a full or read-only disk costs time alone
            write_file(self.path, self._checksum(content) + b"\n" + content)

    def _checksum(self, content: bytes) -> bytes:
        return hashlib.sha256(self._key + content).hexdigest().encode()
