"""Label tables (.csv and .tsv files that name images): read row by row, within limits."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from vitdeploy.files.regular_file import open_regular

SEPARATORS = {".csv": ",", ".tsv": "\t"}
TABLE_ENDINGS = (*SEPARATORS, ".parquet")
# Five million images with paths of 40 characters: at 350 bytes per row they take up to 1.8 GB in memory.
MOST_TABLE_BYTES = 256 * 1024**2
_MOST_LINE = 1024**2  # characters; a file with a single line would be a row of 100 million cells


def table_rows(path: Path, *, strict: bool = True) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows of a .csv or .tsv file, each with the number of its last line.

    Args:
        path: The file.
        strict: True to refuse stray quotes and text that is not UTF-8; False to read them as they are.

    Raises:
        TooLargeError: If it has more than `MOST_TABLE_BYTES`.
        OSError, UnicodeDecodeError, csv.Error: If it cannot be read.
    """
    errors = "strict" if strict else "replace"
    with io.TextIOWrapper(
        open_regular(path, MOST_TABLE_BYTES), encoding="utf-8-sig", errors=errors, newline=""
    ) as file:
        reader = csv.reader(_lines(file), delimiter=SEPARATORS[path.suffix.lower()], strict=strict)
        for row in reader:
            yield reader.line_num, row


def _lines(file: TextIO) -> Iterator[str]:
    while line := file.readline(_MOST_LINE + 1):
        if len(line) > _MOST_LINE:
            raise csv.Error(f"a line has more than {_MOST_LINE:,} characters")
        yield line
