"""Write a TorchScript file that holds nothing of the machine that made it."""

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


# The writer makes these itself: the version of the operators, under the one name or the other by its value, and a
# checksum of the names and contents of all other records.
_VERSIONS = ("version", ".data/version")
_OF_THE_WRITER = (*_VERSIONS, ".data/serialization_id")


def write_torchscript(
    function: torch.jit.ScriptFunction[Any, Any], path: Path, extra_files: Mapping[str, bytes]
) -> None:
    """Write a function as a module that has it for its `forward`, without debug records.

    A debug record tells for each operator the source line that it was traced from, and so the folders of this machine.
    torch has no switch to leave it out, and its reader does not miss it.

    torch's `save` ends the process (SIGABRT) when the disk is full: the destructor of its writer writes the end of the
    file, and fails again while the first failure is being handled. So it saves into memory, and the file is written
    from there.

    Args:
        function: Its weights constants of its graph.
        path: The file; its name is in the bytes.
        extra_files: What is to lie beside the code, by name.

    Raises:
        OSError: If the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _saved(function, extra_files) as whole, tempfile.TemporaryDirectory(dir=path.parent) as folder:
        clean = Path(folder) / path.name  # whose name is in the bytes
        try:
            _write_without_debug_records(whole, clean)
        except RuntimeError as exc:  # which does not say what the system's error was
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
    """Whether files in memory can be made, and opened by name, and take any size (Linux)."""
    return (
        hasattr(os, "memfd_create")
        and Path("/proc/self/fd").is_dir()
        and resource is not None
        and resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY  # which they are under, too
    )


def _write_without_debug_records(reader: Any, path: Path) -> None:
    """Copy record by record with torch's own writer, which aligns each for mapping it into memory, and dates none."""
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
        with contextlib.suppress(RuntimeError):  # it would be called by the destructor, which must not fail
            writer.write_end_of_file()
        raise
    del writer  # which writes what is left in its buffer, and does not say whether it could
    torch._C.PyTorchFileReader(str(path))
