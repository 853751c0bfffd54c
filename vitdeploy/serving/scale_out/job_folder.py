"""The output folder of a distributed job: whole or absent, continued after a kill, with each row once.

Ray Data writes a file of rows as `parts/NAME-0.parquet`, after their ids as `checkpoint/NAME.pending.parquet`, which it
then renames to `checkpoint/NAME.parquet` (ray/data/checkpoint/checkpoint_writer.py of Ray 2.60).
"""

from __future__ import annotations

import collections
import contextlib
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.compute as pc
import pyarrow.dataset as pd
import pyarrow.parquet as pq

from vitdeploy.errors import InputError, OutputError, UsageError
from vitdeploy.files.atomic import replace_folder, write_file
from vitdeploy.files.json_text import json_file, json_object
from vitdeploy.files.locks import locked

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from typing_extensions import Self

_IDENTITY = "_job.json"  # readers of data sets ignore names that start with "_"
_ENDING, _PENDING = ".parquet", ".pending"


class JobFolder:
    """`OUTPUT.unfinished` with the rows written so far, which becomes OUTPUT. A context manager; one job at a time.

    Args:
        output: Folder to write, which every machine sees under this path.
        identity: What the rows depend on, as plain values.

    Attributes:
        parts: Folder of parquet files.
        checkpoint: Folder of the ids in each of them.
        finished: True if the output exists, and has the rows of this job.

    Raises:
        UsageError: If the output exists, and is not of this job.
        InputError: If the unfinished folder is another job's.
        OutputError: If it cannot be written, or another process is at it.
    """

    def __init__(self, output: Path, identity: Mapping[str, Any]) -> None:
        self.output = output
        self.path = output.with_name(f"{output.name}.unfinished")
        self.parts, self.checkpoint = self.path / "parts", self.path / "checkpoint"
        self._stack = contextlib.ExitStack()
        self.finished = output.exists()
        if self.finished:
            if _identity(output) != identity:
                hint = "remove it, or choose another output"
                raise UsageError(f"{output} exists, and is not of this job", what="output", where=output, hint=hint)
            return
        try:
            self.parts.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            raise OutputError(f"{self.parts} cannot be made: {exc.strerror}", where=self.parts) from exc
        self._stack.enter_context(locked(self.path))
        if not (self.parts / _IDENTITY).exists():
            write_file(self.parts / _IDENTITY, json_file(identity))
        if _identity(self.parts) != identity:
            self._stack.close()
            message = f"{self.path} is unfinished work of another job: other images, options, model or versions"
            raise InputError(message, what="unfinished", where=self.path, hint="remove it, or choose another output")

    def repair(self) -> int:
        """Remove what is not whole: files without their ids, ids without their file, and both of a broken attempt.

        Returns:
            Number of rows that are written, with their ids.
        """
        stems = {path.name.removesuffix(_ENDING) for path in self.checkpoint.glob(f"*{_ENDING}")}
        pending = {stem.removesuffix(_PENDING) for stem in stems if stem.endswith(_PENDING)}
        written = collections.defaultdict(list)
        for path in self.parts.glob(f"*{_ENDING}"):
            written[path.stem.rpartition("-")[0]].append(path)
        whole = (stems & written.keys()) - pending
        for stem in stems | written.keys():
            if stem not in whole:
                for path in (*written[stem], self.checkpoint / f"{stem}{_ENDING}"):
                    path.unlink(missing_ok=True)
        return sum(_row_count(self.checkpoint / f"{stem}{_ENDING}") for stem in whole)

    def finish(self, id_column: str, expected: int | None = None) -> None:
        """Check that no row is missing or twice, and move the rows to the output.

        Args:
            id_column: Column of unique ids.
            expected: Number of rows of the source. Default: unknown.

        Raises:
            OutputError: If a row is missing or twice; the unfinished folder stays as it is.
        """
        recorded = self.repair()
        ids = pd.dataset(self.parts, format="parquet").to_table(columns=[id_column]).column(0) if recorded else ()
        distinct = pc.count_distinct(ids).as_py() if recorded else 0
        if not len(ids) == distinct == recorded == (recorded if expected is None else expected):
            raise OutputError(
                f"{self.path} has {len(ids)} rows with {distinct} ids, {recorded} of them recorded"
                + ("" if expected is None else f"; the source has {expected}"),
                what="rows", where=self.path, expected=recorded if expected is None else expected, found=len(ids),
                hint="ids must be unique and the source must not change; remove the folder, and run the job again",
            )  # fmt: skip
        replace_folder(self.parts, self.output)
        shutil.rmtree(self.path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()


def _identity(folder: Path) -> dict[str, Any] | None:
    """The job whose rows a folder has; None if they are no job's."""
    path = folder / _IDENTITY
    return json_object(path, path.read_bytes(), InputError) if path.is_file() else None


def _row_count(path: Path) -> int:
    count: int = pq.read_metadata(path).num_rows
    return count
