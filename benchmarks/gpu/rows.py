"""Results of a GPU script, written row by row: a process that crashes or hangs is continued by the next.

An attempt is recorded before it begins, so that what ended the process is known, and is not tried again.
"""

from __future__ import annotations

import faulthandler
import json
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from gpu.steps import BEGUN, ENDED, FAILED, SKIPPED
from vitdeploy.errors import MissingDependencyError, first_line
from vitdeploy.files.atomic import write_file

Row = dict[str, Any]
NOT_STARTED: Row = {"result": "not started", "reason": "", "seconds": 0.0}
_ends: list[float] = []  # of the attempts in progress; one may make a model, which is an attempt as well


class CannotRunError(Exception):
    """An attempt whose device or package is missing, with the reason."""


class Ledger:
    """Attempts and their rows, in a JSON file.

    Args:
        file: The file; what an earlier process left there is kept. None to write nothing.
        about: Other content of the file.
    """

    def __init__(self, file: Path | None, about: Row) -> None:
        self._file = file
        before: Row = {}
        if file is not None and file.exists():
            before = json.loads(file.read_text(encoding="utf-8"))
        self.document: Row = {"attempts": {}, "rows": [], **before, **about}
        ended = [attempt for attempt in self.attempts.values() if attempt["result"] == "begun"]
        for attempt in ended:
            attempt.update(result="failed", reason=ENDED)
        if before.get("command") not in (None, about.get("command")):
            self.document["command"] = "make gpu-check"  # several commands wrote to one file
        if ended:
            self.save()
        self._tried: list[str] = []

    @property
    def attempts(self) -> dict[str, Row]:
        attempts: dict[str, Row] = self.document["attempts"]
        return attempts

    @property
    def rows(self) -> list[Row]:
        rows: list[Row] = self.document["rows"]
        return rows

    def is_due(self, name: str) -> bool:
        """True if an attempt was not made yet; it is listed as such, in case the process ends before it."""
        if name not in self._tried:
            self._tried.append(name)
        return bool(self.attempts.setdefault(name, dict(NOT_STARTED))["result"] == NOT_STARTED["result"])

    def begin(self, name: str, limit_s: float) -> None:
        """Record that an attempt begins; the process exits if it is not finished within the limit."""
        print(f"{BEGUN}{name}", flush=True)
        self.attempts[name] = {"result": "begun", "reason": "", "seconds": 0.0}
        self.save()
        _ends.append(time.monotonic() + limit_s)
        _watch()

    def finish(self, name: str, result: str, reason: str = "", seconds: float = 0.0) -> None:
        del _ends[-1:]
        _watch()
        self._record(name, result, reason, seconds)
        print(f"   {result}{f': {reason}' if reason else ''}", flush=True)

    def attempt_each(self, works: Mapping[str, Callable[[], Iterable[Row]]], limit_s: float) -> None:
        """Make the attempts in their order; those that the process does not reach are listed as well."""
        for name in works:
            self.is_due(name)
        self.save()
        for name, work in works.items():
            self.attempt(name, limit_s, work)

    def attempt(self, name: str, limit_s: float, work: Callable[[], Iterable[Row]]) -> None:
        """Add the rows of `work` as they come, unless it was tried before.

        A row with `"passed": False` is a failure, and so is any error: it is recorded, and its traceback printed.
        """
        if not self.is_due(name):
            return
        self.begin(name, limit_s)
        start, failures = time.monotonic(), 0
        result, reason = "passed", ""
        try:
            for row in work():
                self.rows.append({"attempt": name, **row})
                self.save()
                failures += row.get("passed") is False
        except (CannotRunError, MissingDependencyError) as exc:
            result, reason = "skipped", first_line(exc)
        except Exception as exc:  # noqa: BLE001  (whatever fails is a result here)
            traceback.print_exc()
            result, reason = "failed", f"{type(exc).__name__}: {first_line(exc)}"
        else:
            if failures:
                result, reason = "failed", f"{failures} rows are beyond their tolerance"
        self.finish(name, result, reason, time.monotonic() - start)

    def _record(self, name: str, result: str, reason: str, seconds: float) -> None:
        self.attempts[name] = {"result": result, "reason": reason, "seconds": round(seconds, 2)}
        self.save()

    def save(self) -> None:
        if self._file is not None:
            write_file(self._file, (json.dumps(self.document, indent=2) + "\n").encode())

    def exit_code(self) -> int:
        """For the attempts that this process was asked for; also prints a line that says how they went."""
        results = [self.attempts[name]["result"] for name in self._tried]
        counts = ", ".join(f"{results.count(result)} {result}" for result in dict.fromkeys(results))
        reasons = dict.fromkeys(attempt["reason"] for name in self._tried if (attempt := self.attempts[name])["reason"])
        print(f"{counts}{': ' if reasons else ''}{'; '.join(reasons)}", flush=True)
        if "failed" in results:
            return FAILED
        return 0 if "passed" in results else SKIPPED


def _watch() -> None:
    faulthandler.cancel_dump_traceback_later()
    if _ends:
        faulthandler.dump_traceback_later(max(0.1, min(_ends) - time.monotonic()), exit=True)
