"""Cut a bundle's wheels into slices, and join them on another machine, with the standard library alone.

The slices, one after another, hold the bytes of the wheels, one after another. A slice ends at its size, and not where
a wheel ends. A wheel can be joined as soon as the slices that hold its bytes are there.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
_BLOCK = 1 << 20


@dataclasses.dataclass(frozen=True)
class File:
    """A wheel or a slice: its name, size and SHA-256."""

    name: str
    bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Manifest:
    """Content of a bundle.

    Attributes:
        python: Version of Python that the wheels are for, such as "3.12".
        commit: Commit of the project.
        wheels: Wheels, in the order of their bytes.
        slices: Slices, likewise.
    """

    python: str
    commit: str
    wheels: tuple[File, ...]
    slices: tuple[File, ...]

    def slices_of(self, wheel: File) -> list[str]:
        """Names of the slices that hold bytes of a wheel."""
        start = sum(file.bytes for file in self.wheels[: self.wheels.index(wheel)])
        names, offset = [], 0
        for file in self.slices:
            if offset < start + wheel.bytes and start < offset + file.bytes:
                names.append(file.name)
            offset += file.bytes
        return names

    def write(self, folder: Path) -> None:
        text = json.dumps(dataclasses.asdict(self), indent=2) + "\n"
        (folder / MANIFEST).write_text(text, encoding="utf-8")


def read_manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        wheels, slices = (tuple(File(**file) for file in content[key]) for key in ("wheels", "slices"))
        return Manifest(content["python"], content["commit"], wheels, slices)
    except FileNotFoundError:
        raise SystemExit(f"{path} not found: copy the bundle's manifest beside its slices") from None
    except (KeyError, TypeError, ValueError) as exc:
        raise SystemExit(f"{path} is damaged ({exc}): copy it again") from exc


def cut(wheels: Sequence[Path], folder: Path, slice_bytes: int) -> tuple[tuple[File, ...], tuple[File, ...]]:
    """Write the slices of `wheels` into `folder`; return the records of the wheels and of the slices."""
    records = tuple(record(wheel) for wheel in wheels)
    count = -(-sum(file.bytes for file in records) // slice_bytes)
    names = [f"slice-{number}-of-{count}" for number in range(1, count + 1)]
    blocks = _blocks(wheels)
    left = b""
    for name in names:
        with (folder / name).open("wb") as file:
            while file.tell() < slice_bytes and (left := left or next(blocks, b"")):
                room = slice_bytes - file.tell()
                file.write(left[:room])
                left = left[room:]
    return records, tuple(record(folder / name) for name in names)


def problem(folder: Path, expected: File) -> str:
    """Why a slice or a wheel in `folder` cannot be used; "" if it is as the manifest says."""
    path = folder / expected.name
    if not path.is_file():
        return f"{expected.name} is missing"
    if path.stat().st_size != expected.bytes:
        return f"{expected.name} is damaged: {path.stat().st_size} bytes, {expected.bytes} expected"
    if record(path) != expected:
        return f"{expected.name} is damaged: its SHA-256 is not that of the manifest"
    return ""


def join(manifest: Manifest, folder: Path, into: Path) -> tuple[list[Path], list[str]]:
    """Write every wheel whose slices are whole in `folder`; return these wheels, and the problems of the slices."""
    problems = {file.name: problem(folder, file) for file in manifest.slices}
    into.mkdir(parents=True, exist_ok=True)
    wheels, start = [], 0
    for wheel in manifest.wheels:
        if not any(problems[name] for name in manifest.slices_of(wheel)):
            with (into / wheel.name).open("wb") as file:
                for block in _range(manifest, folder, start, wheel.bytes):
                    file.write(block)
            if reason := problem(into, wheel):
                raise SystemExit(f"{reason}: the manifest is not that of these slices")
            wheels.append(into / wheel.name)
        start += wheel.bytes
    return wheels, [reason for reason in problems.values() if reason]


def record(path: Path) -> File:
    digest = hashlib.sha256()
    for block in _blocks([path]):
        digest.update(block)
    return File(path.name, path.stat().st_size, digest.hexdigest())


def _blocks(paths: Sequence[Path]) -> Iterator[bytes]:
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                yield block


def _range(manifest: Manifest, folder: Path, start: int, size: int) -> Iterator[bytes]:
    """The `size` bytes at `start` of the slices' content."""
    offset = 0
    for part in manifest.slices:
        first, end = max(start, offset), min(start + size, offset + part.bytes)
        if first < end:
            with (folder / part.name).open("rb") as file:
                file.seek(first - offset)
                while first < end:
                    block = file.read(min(_BLOCK, end - first))
                    first += len(block)
                    yield block
        offset += part.bytes
