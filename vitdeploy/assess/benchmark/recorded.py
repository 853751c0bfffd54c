"""Recorded results of a benchmark, read from the JSON of `vitdeploy benchmark --json`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vitdeploy.assess.metrics.latency import load_text, setting_name
from vitdeploy.errors import InputError, readable
from vitdeploy.files.json_text import json_object, strict_json
from vitdeploy.files.regular_file import read_regular

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

_MOST_BYTES = 64 * 2**20
_LONGEST_MS, _MOST_PROCESSES = 1e12, 10_000
_WORDS: dict[type, str] = {str: "a text", list: "a list", dict: "an object"}
_HINT = "give the output of: vitdeploy benchmark BUNDLE --json"


class Key(NamedTuple):
    """Identity of a setting at a load, by which two results are compared."""

    artifact: str
    backend: str
    precision: str
    changes: str
    batch_size: int
    image_size: tuple[int, int] | None

    @property
    def name(self) -> str:
        return setting_name(self.backend, self.precision, self.changes)

    @property
    def load_text(self) -> str:
        return load_text(self.batch_size, self.image_size)


@dataclasses.dataclass(frozen=True)
class Recorded:
    """A recorded benchmark.

    Attributes:
        file: Its file.
        bundle: The bundle that was measured.
        machine: Machine and versions.
        settings: Settings of the benchmark.
        times_ms: The median of each round, by process, by setting and load.
        notes: Warnings about the measurement.
    """

    file: str
    bundle: str
    machine: Mapping[str, str]
    settings: Mapping[str, Any]
    times_ms: Mapping[Key, tuple[tuple[float, ...], ...]]
    notes: tuple[str, ...]

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Recorded:
        """Read a file; InputError if it is missing or not such a result."""
        file = Path(path)
        with readable(file, "a recorded benchmark"):
            content = read_regular(file, _MOST_BYTES)
        data = json_object(file, content, InputError, strict_json, _HINT)
        fields = _Fields(file, data)
        times = {}
        for position, item in enumerate(fields.get("latencies", list)):
            latency = _Fields(file, item, f"latencies[{position}].")
            artifact, backend, precision, changes = (
                latency.line(name) for name in ("artifact", "backend", "precision", "changes")
            )
            key = Key(artifact, backend, precision, changes, latency.whole("batch_size"), latency.size("image_size"))
            if key in times:
                raise latency.error("backend", key.name, f"each setting and load once, got {key.name!r:.80} twice")
            times[key] = latency.times("processes_ms")
        machine = fields.get("machine", dict)
        if not all(isinstance(value, str) for value in machine.values()):
            raise fields.error("machine", machine, "texts by name")
        notes = fields.get("notes", list)
        if not all(isinstance(note, str) and note.isprintable() for note in notes):
            raise fields.error("notes", notes, "lines of text")
        return cls(str(file), fields.get("bundle", str), machine, fields.get("settings", dict), times, tuple(notes))


@dataclasses.dataclass(frozen=True)
class _Fields:
    """Checked fields of a JSON object in a file."""

    file: Path
    data: Any
    place: str = ""

    def get(self, name: str, kind: type) -> Any:
        if not isinstance(self.data, dict):
            raise self.error("", self.data, "an object")
        if name not in self.data:
            raise self.error(name, None, "a value")
        value = self.data[name]
        if type(value) is not kind:
            raise self.error(name, value, _WORDS[kind])
        return value

    def line(self, name: str) -> str:
        value: str = self.get(name, str)
        if not value.isprintable():  # a line break would let a CI job's log take the next line as a command
            raise self.error(name, value, "a line of text")
        return value

    def whole(self, name: str) -> int:
        value = self.data.get(name)
        if type(value) is not int or value < 1:
            raise self.error(name, value, "a whole number from 1 up")
        return value

    def size(self, name: str) -> tuple[int, int] | None:
        value = self.data.get(name)
        if value is None:
            return None
        if type(value) is not list or len(value) != 2 or not all(type(side) is int and side > 0 for side in value):
            raise self.error(name, value, "a height and a width")
        return value[0], value[1]

    def times(self, name: str) -> tuple[tuple[float, ...], ...]:
        processes = self.get(name, list)
        if not 0 < len(processes) <= _MOST_PROCESSES or not all(
            type(rounds) is list and rounds for rounds in processes
        ):
            raise self.error(name, processes, f"lists of times, one for each of at most {_MOST_PROCESSES:,} processes")
        for time in (time for rounds in processes for time in rounds):
            if type(time) not in (int, float) or not 0 < time < _LONGEST_MS:
                raise self.error(name, time, "times above 0")
        return tuple(tuple(map(float, rounds)) for rounds in processes)

    def error(self, name: str, found: Any, expected: str) -> InputError:
        what = f"{self.place}{name}".rstrip(".") or "result"
        return InputError(
            f"{self.file} is no recorded benchmark: {what} takes {expected}, got {json.dumps(found)[:80]}",
            what=what, where=self.file, expected=expected, found=found, hint=_HINT,
        )  # fmt: skip
