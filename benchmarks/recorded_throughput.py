"""Throughputs of settings, read from recorded `vitdeploy benchmark ... --json`."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import TYPE_CHECKING, Any

from vitdeploy.assess.metrics.latency import setting_name
from vitdeploy.errors import InputError, UsageError, readable
from vitdeploy.files.json_text import json_object, strict_json

if TYPE_CHECKING:
    from pathlib import Path

_HINT = "give the output of: vitdeploy benchmark BUNDLE --json"


@dataclasses.dataclass(frozen=True)
class Measurement:
    """A measured throughput.

    Attributes:
        name: Backend, precision and changed options.
        images_per_second: From encoded image files to outputs.
        batch_size: Images per run.
        sessions: Sessions that ran at a time.
        threads: CPU threads of all sessions; None if the result does not tell.
        bound_ms: Bound on the 99th percentile of the latency that held at this rate; None for offline.
    """

    name: str
    images_per_second: float
    batch_size: int
    sessions: int
    threads: int | None
    bound_ms: float | None = None

    @property
    def service_ms(self) -> float:
        """Time for which an image occupies a session; of batch 1 only."""
        return 1e3 * self.sessions / self.images_per_second


def read_results(path: Path, scenario: str) -> list[Measurement]:
    """Passed measurements of a file.

    Args:
        scenario: offline, which a file of `benchmark` without a scenario stands for too, or server.

    Raises:
        InputError: If it is no such file, a field is missing or not valid, or nothing in it passed.
    """
    with readable(path, "a recorded benchmark"):
        content = path.read_bytes()
    data = json_object(path, content, InputError, strict_json, _HINT)
    if "latencies" in data and scenario == "offline":
        found = [_from_latency(path, item) for item in _field(path, data, "latencies", list)]
    else:
        name = _field(path, _field(path, data, "scenario", dict), "name", str)
        if name != scenario:
            raise _error(path, "scenario.name", scenario, name)
        items = _field(path, data, "results", list)
        found = [
            _from_scenario(path, item, scenario) for item in items if _field(path, item, "status", str) == "passed"
        ]
    if not found:
        raise InputError(f"{path} has no result that passed", what="results", where=path, hint="measure again")
    return found


def _from_latency(path: Path, item: Any) -> Measurement:
    files = item.get("image_files") if isinstance(item, dict) else None
    if files is None:
        raise InputError(
            f"{path} was measured on preprocessed input, without decoding", what="image_files", where=path,
            hint="measure with --scenario offline, or with --images",
        )  # fmt: skip
    batch_size = _count(path, item, "batch_size")
    images_per_second = 1e3 * batch_size / _number(path, files, "p50_ms")
    return Measurement(_name(path, item), images_per_second, batch_size, 1, _threads(path, item))


def _from_scenario(path: Path, item: Any, scenario: str) -> Measurement:
    rate = _number(path, item, "queries_per_second" if scenario == "server" else "images_per_second")
    sessions = _count(path, item, "sessions")
    threads = _threads(path, item)
    return Measurement(
        _name(path, item), rate, _count(path, item, "batch_size"), sessions,
        None if threads is None else threads * sessions,
        _number(path, item, "bound_ms") if scenario == "server" else None,
    )  # fmt: skip


def _name(path: Path, item: Any) -> str:
    return setting_name(*(_field(path, item, name, str) for name in ("backend", "precision", "changes")))


def _threads(path: Path, item: Any) -> int | None:
    """Threads of a session; None on a GPU, or if the engine chose their number."""
    if item.get("threads") is None:
        return None
    count: int = _field(path, item["threads"], "count", int)
    if count < 0:
        raise _error(path, "count", "a number from 0 up", count)
    return count or None


def _field(path: Path, data: Any, name: str, kind: type) -> Any:
    value = data.get(name) if isinstance(data, dict) else None
    if type(value) is not kind:
        raise _error(path, name, kind.__name__, value)
    return value


def _number(path: Path, data: Any, name: str) -> float:
    value = data.get(name) if isinstance(data, dict) else None
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < math.inf:
        raise _error(path, name, "a number above 0", value)
    return float(value)


def _count(path: Path, data: Any, name: str) -> int:
    value = _number(path, data, name)
    if not value.is_integer():
        raise _error(path, name, "a whole number", value)
    return int(value)


def _error(path: Path, what: str, expected: str, found: Any) -> InputError:
    return InputError(
        f"{path} is no such result: {what} takes {expected}, got {json.dumps(found)[:80]}",
        what=what, where=path, expected=expected, found=found, hint=_HINT,
    )  # fmt: skip


def choose(measurements: list[Measurement], name: str | None) -> Measurement:
    """The fastest measurement, or the fastest of a setting; UsageError if it was not measured."""
    chosen = [item for item in measurements if name in (None, item.name)]
    if not chosen:
        names = sorted({item.name for item in measurements})
        raise UsageError(
            f"setting {name} was not measured; measured: {', '.join(names)}", what="setting", expected=names, found=name
        )
    return max(chosen, key=lambda item: item.images_per_second)
