"""The folder of an unfinished job, from which the next run continues."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from vitdeploy.assess.evaluate.resume_file import WorkFile
from vitdeploy.errors import InputError, OutputError, first_line
from vitdeploy.files.locks import locked

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import TracebackType

    from typing_extensions import Self

_LOG = "log"
_SAVE_S = 2.0  # between two waits for the disk, each of which can take longer than a batch


class Unfinished:
    """`OUTPUT.unfinished`: a `.npy` file that is filled row by row, and a log of its finished batches.

    Rows are on disk before their batch is logged, and the log has their SHA-256, so that a logged batch is whole
    after a kill or a power cut; the work of the last seconds may be lost. A context manager; another process with the
    same output is refused at once.

    Args:
        output: The file that the job is to write.
        header: Identity of the job, as plain values. A folder of another job is refused.
        dtype: Type of the elements of a row.
        shape: (N, W) of all rows.

    Attributes:
        path: The folder.
        rows: The file of rows.
        finished: Place for the output until it is moved, on the same file system.
        batches: Finished batches of earlier runs, in order.

    Raises:
        InputError: If the folder is another job's, or damaged.
        OutputError: If it cannot be written.
    """

    def __init__(self, output: Path, header: Mapping[str, Any], dtype: np.dtype[Any], shape: tuple[int, int]) -> None:
        self.path = output.with_name(f"{output.name}.unfinished")
        self.rows, self.finished = self.path / "rows.npy", self.path / "finished"
        self._dtype, self._row_bytes, self._synced = dtype, shape[1] * dtype.itemsize, time.monotonic()
        self._waiting: list[dict[str, Any]] = []
        self._intact = True  # False once a save was interrupted, after which its end is unknown
        log = self.path / _LOG
        with writing(self.path), contextlib.ExitStack() as stack, contextlib.ExitStack() as start:
            self.path.mkdir(parents=True, exist_ok=True)
            start.enter_context(locked(self.path))
            self.path.mkdir(exist_ok=True)  # another run has removed it meanwhile
            if not self.rows.exists():
                log.unlink(missing_ok=True)  # of a run that was killed after it moved the rows to their place
            self._log = stack.enter_context(WorkFile(log, header))
            # A link is refused: it would be moved to the output's place in the end, instead of the rows.
            flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0)
            descriptor = os.open(self.rows, flags, 0o666)
            self._file: BinaryIO = stack.enter_context(os.fdopen(descriptor, "r+b"))
            self._restore(_npy_header(dtype, shape))
            self._stack = stack.pop_all()
        self.batches = tuple(self._log.batches)

    def append(self, rows: np.ndarray, batch: Mapping[str, Any]) -> None:
        """Append the rows (n, W) of a batch, and its entry in the log."""
        content = np.ascontiguousarray(rows, self._dtype).tobytes()
        with writing(self.path):
            self._file.write(content)
        self._waiting.append({**batch, "rows": len(rows), "rows_sha256": hashlib.sha256(content).hexdigest()})
        if time.monotonic() - self._synced >= _SAVE_S:
            self.save()

    def save(self) -> None:
        """Wait until all rows are on disk, and log their batches."""
        self._intact = False
        with writing(self.path):
            self._file.flush()
            os.fsync(self._file.fileno())
        for batch in self._waiting:
            self._log.append(batch)
        self._waiting.clear()
        self._intact, self._synced = True, time.monotonic()

    def finish(self) -> None:
        """Save everything and close the file of rows, which may then be moved."""
        self.save()
        self._file.close()

    def remove(self) -> None:
        """Remove the files of a finished job, and the folder unless it has others."""
        with contextlib.suppress(OSError, OutputError), locked(self.path):  # until then, another run is refused
            self._stack.close()
            for file in (self.rows, self.finished, self.path / _LOG):
                file.unlink(missing_ok=True)
            self.path.rmdir()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._intact and not self._file.closed:
                self.save()
        finally:
            with writing(self.path):
                self._stack.close()

    def _restore(self, header: bytes) -> None:
        """Check the rows of the finished batches, and cut the file after them."""
        if not self._log.batches:
            self._file.truncate(0)
            self._file.write(header)
            return
        intact = self._file.read(len(header)) == header
        for batch in self._log.batches:
            content = self._file.read(batch["rows"] * self._row_bytes) if intact else b""
            intact = intact and hashlib.sha256(content).hexdigest() == batch["rows_sha256"]
        if not intact:
            message = f"{self.rows} does not have the rows of the finished batches"
            raise InputError(message, what="rows", where=self.rows, hint=f"remove {self.path}")
        self._file.truncate(self._file.tell())


def _npy_header(dtype: np.dtype[Any], shape: tuple[int, int]) -> bytes:
    header = io.BytesIO()
    description = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, description)
    return header.getvalue()


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise OutputError if the system refuses to write in this block."""
    try:
        yield
    except OSError as exc:
        message = f"{path} cannot be written: {exc.strerror or first_line(exc)}"
        raise OutputError(message, where=path, found=exc.strerror, hint="free space, or choose another output") from exc
