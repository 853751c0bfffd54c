"""The output folder of a distributed job: whole or absent, continued after a kill, with each row once.

Ray Data writes a file of rows as `parts/NAME-0.parquet`, after their ids as `checkpoint/NAME.pending.parquet`, which it
then renames to `checkpoint/NAME.parquet` (ray/data/checkpoint/checkpoint_writer.py of Ray 2.60).
"""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.compute as pc
import pyarrow.dataset as pd
import pyarrow.parquet as pq

from vitdeploy.errors import InputError, OutputError, UsageError
from vitdeploy.files.atomic import replace_folder, write_file
from vitdeploy.files.json_text import json_file
from vitdeploy.files.locks import locked

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from types import TracebackType

    from typing_extensions import Self

_IDENTITY = "_job.json"  # readers of data sets ignore names that start with "_"
_ENDING, _PENDING = ".parquet", ".pending"


class JobFolder:
    """`OUTPUT.unfinished` with the rows written so far, which becomes OUTPUT. A context manager; one job at a time.

    Each run of the job has a folder of its own, into which it moves what earlier runs finished: a process of an earlier
    run that still writes changes nothing.

    Args:
        output: Folder to write, which every machine sees under this path.
        identity: What the rows depend on, as plain values.

    Attributes:
        path: The unfinished folder.
        parts: Folder of this run's parquet files.
        checkpoint: Folder of the ids in each of them.
        finished: True if the output exists, and has the rows of this job.
        resumed: Number of rows that earlier runs have written.

    Raises:
        UsageError: If the output exists, and is not of this job.
        InputError: If the unfinished folder is another job's.
        OutputError: If it cannot be written, or another process is at it.
    """

    def __init__(self, output: Path, identity: Mapping[str, Any]) -> None:
        self.output = output
        self.path = output.with_name(f"{output.name}.unfinished")
        self.finished, self.resumed = os.path.lexists(output), 0
        content = json_file(identity)  # compared as text, in which tuples are lists
        self._stack = contextlib.ExitStack()
        if self.finished:
            if _identity(output) != content:
                hint = "remove it, or choose another output"
                raise UsageError(f"{output} exists, and is not of this job", what="output", where=output, hint=hint)
            if _identity(self.path) == content:  # it was killed at its very end
                shutil.rmtree(self.path, ignore_errors=True)
            return
        with contextlib.ExitStack() as stack:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                stack.enter_context(locked(self.path))
                earlier = sorted(self.path.glob("run-*"))
                if not earlier:
                    write_file(self.path / _IDENTITY, content)
                elif _identity(self.path) != content:
                    message = f"{self.path} is unfinished work of another job: other images, options, model or versions"
                    hint = "remove it, or choose another output"
                    raise InputError(message, what="unfinished", where=self.path, hint=hint)
                run = self.path / f"run-{int(earlier[-1].name[4:]) + 1 if earlier else 0:06}"
                self.parts, self.checkpoint = run / "parts", run / "checkpoint"
                self.resumed = self._take_over(earlier)
            except OSError as exc:
                message = f"{self.path} cannot be written: {exc.strerror}"
                raise OutputError(message, where=self.path, found=exc.strerror) from exc
            self._stack = stack.pop_all()

    def _take_over(self, earlier: Sequence[Path]) -> int:
        """Move files that are whole to this run, and remove the others; the number of rows."""
        self.parts.mkdir(parents=True)
        self.checkpoint.mkdir()
        for run in earlier:
            for ids, parts in _whole_files(run / "parts", run / "checkpoint"):
                for part in parts:  # where a kill parts them from their ids, neither is whole
                    part.rename(self.parts / part.name)
                ids.rename(self.checkpoint / ids.name)
        for run in earlier:
            shutil.rmtree(run, ignore_errors=True)  # a process that still writes there may add files meanwhile
        return sum(pq.read_metadata(ids).num_rows for ids in self.checkpoint.iterdir())

    def finish(self, id_column: str, expected: int | None = None) -> None:
        """Check that no row is missing or twice, and move the rows to the output.

        Args:
            id_column: Column of unique ids.
            expected: Number of rows of the source. Default: unknown.

        Raises:
            OutputError: If a row is missing or twice; the unfinished folder stays as it is.
        """
        whole = list(_whole_files(self.parts, self.checkpoint))
        kept = {part for _, parts in whole for part in parts}
        for part in set(self.parts.iterdir()) - kept:
            part.unlink()  # of a task that was tried again
        recorded = sum(pq.read_metadata(ids).num_rows for ids, _ in whole)
        ids = pd.dataset(sorted(map(str, kept))).to_table(columns=[id_column]).column(0) if kept else []
        distinct = pc.count_distinct(ids).as_py() if kept else 0
        if not len(ids) == distinct == recorded == (recorded if expected is None else expected):
            raise OutputError(
                f"{self.path} has {len(ids)} rows with {distinct} ids, {recorded} of them recorded"
                + ("" if expected is None else f"; the source has {expected}"),
                what="rows", where=self.path, expected=recorded if expected is None else expected, found=len(ids),
                hint="ids must be unique and the source must not change; remove the folder, and run the job again",
            )  # fmt: skip
        write_file(self.parts / _IDENTITY, (self.path / _IDENTITY).read_bytes())
        replace_folder(self.parts, self.output)
        shutil.rmtree(self.path, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()


def _identity(folder: Path) -> bytes | None:
    """The job whose rows a folder has, as JSON; None if they are no job's."""
    path = folder / _IDENTITY
    return path.read_bytes() if path.is_file() else None


def _whole_files(parts: Path, checkpoint: Path) -> Iterator[tuple[Path, list[Path]]]:
    """Files of ids with the files of their rows, without those of an attempt that was not recorded to its end."""
    written: dict[str, list[Path]] = {}
    for path in parts.glob(f"*{_ENDING}"):
        written.setdefault(path.stem.rpartition("-")[0], []).append(path)
    names = {path.name.removesuffix(_ENDING) for path in checkpoint.glob(f"*{_ENDING}")}
    for name in sorted(names & written.keys()):
        if f"{name}{_PENDING}" not in names:
            yield checkpoint / f"{name}{_ENDING}", written[name]
