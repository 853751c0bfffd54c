"""Write a TorchScript file without traces of the machine that wrote it."""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from vitdeploy.errors import first_line

try:
    import resource
except ImportError:  # not POSIX
    resource = None  # type: ignore[assignment]


# Records that the writer creates itself: the operators' version, under one name or another depending on its value, and
# a checksum of the names and contents of all other records.
_VERSIONS = ("version", ".data/version")
_OF_THE_WRITER = (*_VERSIONS, ".data/serialization_id")


def write_torchscript(
    function: torch.jit.ScriptFunction[Any, Any], path: Path, extra_files: Mapping[str, bytes]
) -> None:
    """Write a function as a module's `forward`, without debug records.

    Debug records have each operator's source line, and so this machine's folders. torch has no option to omit them, and
    its reader does not need them.

    torch's `save` aborts the process (SIGABRT) if the disk is full: its writer's destructor writes the end of the file,
    and fails again during the first failure's handling. So the function is saved to memory, and written from there.

    Args:
        function: Function with its weights as constants of the graph.
        path: The file; its name is part of the content.
        extra_files: Additional archive records, by name.

    Raises:
        OSError: If the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _saved(function, extra_files) as whole, tempfile.TemporaryDirectory(dir=path.parent) as folder:
        clean = Path(folder) / path.name  # its name is part of the content
        try:
            _write_without_debug_records(whole, clean)
        except RuntimeError as exc:  # which omits the system's error
            raise OSError(
                f"torch could not write {path.name} ({first_line(exc)}), probably because the disk is full"
            ) from exc
        clean.replace(path)


@contextlib.contextmanager
def _saved(function: torch.jit.ScriptFunction[Any, Any], extra_files: Mapping[str, bytes]) -> Iterator[Any]:
    """The saved function, in memory once, in torch's reader: `save_to_buffer` needs three times as much memory."""
    if _has_memory_files():
        descriptor = os.memfd_create("vitdeploy-torchscript")
        try:
            function.save(f"/proc/self/fd/{descriptor}", _extra_files=dict(extra_files))
            yield torch._C.PyTorchFileReader(f"/proc/self/fd/{descriptor}")
        finally:
            os.close(descriptor)
    else:
        yield torch._C.PyTorchFileReader(io.BytesIO(function.save_to_buffer(_extra_files=dict(extra_files))))


def _has_memory_files() -> bool:
    """True if memory files can be created, opened by name, and sized freely (Linux)."""
    return (
        hasattr(os, "memfd_create")
        and Path("/proc/self/fd").is_dir()
        and resource is not None
        and resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY  # memory files are subject to it
    )


def _write_without_debug_records(reader: Any, path: Path) -> None:
    """Copy record by record with torch's writer, which aligns each for memory mapping, without dates."""
    writer = torch._C.PyTorchFileWriter(str(path))
    try:
        names = reader.get_all_records()
        (version,) = (name for name in names if name in _VERSIONS)
        writer.set_min_version(int(reader.get_record(version)))
        for name in names:
            if not name.endswith(".debug_pkl") and name not in _OF_THE_WRITER:
                content = reader.get_record(name)
                writer.write_record(name, content, len(content))
        writer.write_end_of_file()
    except BaseException:
        with contextlib.suppress(RuntimeError):  # the destructor, which must not fail, would call it
            writer.write_end_of_file()
        raise
    del writer  # writes the rest of its buffer, and does not report failure
    torch._C.PyTorchFileReader(str(path))
