"""Text in output files: CSV quoting, and paths and labels that are not valid UTF-8."""

from __future__ import annotations

import csv
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import TextIO


def csv_writer(file: TextIO, texts: Iterable[str]) -> Any:
    """A `csv.writer` with commas and line feeds, for a file that will have these texts among its cells."""
    unquoted = any("\r" in text for text in texts)  # Python before 3.13 does not quote it by itself
    return csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL if unquoted else csv.QUOTE_MINIMAL)


def path_as_utf_8(path: str) -> str:
    r"""A path for a format that has UTF-8 alone; other bytes are escaped, as in `\xff`."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def as_utf_8(text: str) -> str:
    """Text that UTF-8 can encode; the halves of surrogate pairs are escaped."""
    return text.encode("utf-8", "backslashreplace").decode()
