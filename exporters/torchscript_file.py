"""Write a TorchScript file that holds nothing of the machine that made it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from vitdeploy.errors import first_line

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

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

    Args:
        function: its weights constants of its graph.
        path: the file; its name is in the bytes.
        extra_files: what is to lie beside the code, by name.

    Raises:
        OSError: the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        whole = Path(folder) / path.name
        try:
            function.save(str(whole), _extra_files=dict(extra_files))
            clean = Path(folder, "clean") / path.name  # whose name is in the bytes
            clean.parent.mkdir()
            _copy_without_debug_records(whole, clean)
            clean.replace(path)
        except RuntimeError as exc:  # torch's own for a disk that is full
            raise OSError(f"{path}: {first_line(exc)}") from exc


def _copy_without_debug_records(source: Path, target: Path) -> None:
    """Copy record by record with torch's own writer, which aligns each for mapping it into memory, and dates none."""
    reader = torch._C.PyTorchFileReader(str(source))
    writer = torch._C.PyTorchFileWriter(str(target))
    names = reader.get_all_records()
    (version,) = (name for name in names if name in _VERSIONS)
    writer.set_min_version(int(reader.get_record(version)))
    for name in names:
        if not name.endswith(".debug_pkl") and name not in _OF_THE_WRITER:
            content = reader.get_record(name)
            writer.write_record(name, content, len(content))
    writer.write_end_of_file()
