"""A model's folder in a Triton repository: written whole, and replaced only while nothing in it was altered."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from vitdeploy._version import __version__
from vitdeploy.bundle.bundle import Bundle
from vitdeploy.bundle.manifest import MANIFEST, Artifact, FileRecord
from vitdeploy.errors import UsageError, typed_line
from vitdeploy.exporting.engine_validation import is_pending
from vitdeploy.files.atomic import replace_folder, staged_folder, sync
from vitdeploy.files.locks import locked

CONFIG = "config.pbtxt"
_MADE = "# Made by vitdeploy"
_CACHE = "__pycache__"
_BELOW = "of what is below"


@dataclasses.dataclass(frozen=True)
class TritonModel:
    """A model in a repository.

    Attributes:
        name: Name that clients use.
        path: The model's folder.
        artifact: Served artifact.
        files: Files in the folder, the configuration first.
    """

    name: str
    path: Path
    artifact: str
    files: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "path": str(self.path)}


def write_folder(target: Path, config: str, fill: Callable[[Path], Mapping[str, str]]) -> tuple[str, ...]:
    """Write or replace a model's folder in one atomic step.

    Args:
        target: The model's folder.
        config: Content of its `config.pbtxt`, which gets a header with the checksums of the files.
        fill: Writes the other files to a folder; returns their SHA-256 by path.

    Returns:
        The files, the configuration first.

    Raises:
        UsageError: As `check_replaceable`.
        OutputError: If the model cannot be written; existing files are unchanged.
    """
    check_replaceable(target)
    with staged_folder(target) as staging:
        # The configuration first: a polling server refuses a folder whose name differs from its model's.
        (staging / CONFIG).write_bytes(config.encode())
        digests = fill(staging)
        (staging / CONFIG).write_bytes((_header(digests, config) + config).encode())
        synced = sync(staging)  # slow: before the lock is taken
        with locked(target.parent):
            check_replaceable(target)
            replace_folder(staging, target, synced)
    return (CONFIG, *digests)


def checked_repository(repository: str | os.PathLike[str], bundle: Path) -> Path:
    """The repository's folder, resolved; UsageError if it cannot be one for this bundle."""
    if not os.fspath(repository):
        raise UsageError("the repository has no name", what="repository", found=repository, hint="name a folder")
    try:
        place = Path(repository).resolve()
        wrong = (place / MANIFEST).exists() or (place.exists() and not place.is_dir())
    except (OSError, RuntimeError, ValueError) as exc:  # a name too long, a loop of links, a null byte
        message = f"{str(repository)!r:.80} cannot be a folder: {exc}"
        raise UsageError(message, what="repository", found=repository) from exc
    if wrong:
        raise UsageError(
            f"{repository} is a bundle or a file, not a folder of Triton's models",
            what="repository", where=place, hint="choose another",
        )  # fmt: skip
    if place.is_relative_to(bundle.resolve()):
        raise UsageError(f"{repository} lies in the bundle", what="repository", where=place, hint="choose another")
    return place


def check_ran(bundle: Bundle, artifact: Artifact) -> None:
    """Raise UsageError for an engine that was never compared with the reference."""
    if is_pending(artifact):
        raise UsageError(
            f"{artifact.name} was {artifact.validation['status']}; it is served once compared with the reference",
            what="artifact", where=bundle.path, found=artifact.name,
            hint=f"there: {typed_line('verify', bundle.path, '--run')}",
        )  # fmt: skip


def check_name(name: str) -> None:
    """Raise UsageError unless it can be the name of a model and its folder."""
    if not isinstance(name, str) or not re.fullmatch("[A-Za-z0-9][A-Za-z0-9._-]{0,199}", name):
        raise UsageError(
            f"a Triton model's name has letters, digits and . _ - alone, a letter or a digit first, got {name!r:.220}",
            what="name", found=name, hint="choose another with --name",
        )  # fmt: skip


def _header(digests: Mapping[str, str], config: str) -> str:
    """Comments that record the folder's content, to detect later changes."""
    of_config = hashlib.sha256(config.encode()).hexdigest()
    lines = [f"{_MADE} {__version__}, which replaces this folder only if nothing in it was altered. SHA-256:"]
    lines += [f"# {digest} {name}" for name, digest in (*digests.items(), (_BELOW, of_config))]
    return "".join(f"{line}\n" for line in lines)


def check_replaceable(target: Path) -> None:
    """Raise UsageError unless a model may be written there: nothing exists, or an earlier model."""
    if target.is_symlink() or (target.exists() and not _is_made(target)):
        raise UsageError(
            f"{target} is not replaced, since vitdeploy did not write it as it is", what="name", where=target,
            hint="remove it, or choose another name with --name",
        )  # fmt: skip


def _is_made(folder: Path) -> bool:
    path = folder / CONFIG
    if not path.is_file():
        return folder.is_dir() and not any(folder.iterdir())
    header, _, config = path.read_bytes().decode(errors="replace").partition(f" {_BELOW}\n")
    *lines, last = header.splitlines() or [""]
    digests = {match[2]: match[1] for match in (re.fullmatch("# ([0-9a-f]{64}) (.+)", line) for line in lines) if match}
    files = {CONFIG, *digests}
    folders = {parent.as_posix() for name in files for parent in PurePosixPath(name).parents} - {"."}
    held = {
        entry.relative_to(folder).as_posix(): entry
        for entry in folder.rglob("*")
        if _CACHE not in entry.relative_to(folder).parts  # Python's, beside the model.py that it imports
    }
    return (
        header.startswith(_MADE)
        and last == f"# {hashlib.sha256(config.encode()).hexdigest()}"
        and set(held) == files | folders
        and not any(entry.is_symlink() for entry in held.values())
        and all(held[name].is_file() for name in files)
        and all(FileRecord.of(folder, name).sha256 == digest for name, digest in digests.items())
    )
