"""An assessment's outcome in Markdown, for the summary of a CI job."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

from vitdeploy.assess.metrics.status import writable
from vitdeploy.assess.report.tables import Measured, tables
from vitdeploy.assess.report.written import write_result

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Sequence

    from vitdeploy.assess.metrics.status import Judged
    from vitdeploy.assess.report.tables import Table

_MARKS = {"passed": "✅ passed", "failed": "❌ failed", "skipped": "⚠️ skipped", "new": "🆕 new", "error": "❌ error"}
_ALWAYS = ("passed", "failed", "skipped")  # shown even if zero
_ORDER = ("error", "failed", "new", "skipped", "passed")


def markdown(result: Judged | Measured, *, seconds: float | None = None) -> str:
    """A heading with the outcome, and tables: of failed checks, then passed ones, or of measurements.

    `seconds` is the total duration; omitted by default.
    """
    verdict = "Measured" if isinstance(result, Measured) and result.status == "passed" else _MARKS[result.status]
    lines = [f"### {verdict}: {_cell(result.bundle)}", ""]
    if result.processor is not None:
        lines += [f"Image processor: {_cell(result.processor)}", ""]
    if seconds is not None:
        lines += [f"Time: {seconds:.1f} s", ""]
    lines += _tables(tables(result)) if isinstance(result, Measured) else _check_results(result)
    if result.left_out is not None:
        lines += ["", _cell(str(result.left_out))]
    return "\n".join(lines) + "\n"


def write_markdown(path: str | os.PathLike[str], result: Judged | Measured, *, seconds: float | None = None) -> None:
    """Write `markdown` atomically; replaces an existing file. Raises as `write_result`."""
    write_result(path, markdown(result, seconds=seconds).encode(), result)


def _check_results(result: Judged) -> list[str]:
    checks = result.check_results
    rows = [
        (_MARKS[check.status], *map(_cell, (check.subject, check.name, check.message)))
        for check in sorted(checks, key=lambda check: _ORDER.index(check.status))
    ]
    counts = {status: sum(check.status == status for check in checks) for status in _MARKS}
    lines = [
        ", ".join(f"{count} {status}" for status, count in counts.items() if count or status in _ALWAYS),
        "",
        *_table(("outcome", "subject", "check", "found"), rows),
    ]
    if result.changes:
        lines += ["", "Since the baseline:", "", *(f"- {_cell(change)}" for change in result.changes)]
    return lines


def _tables(contents: Iterable[Table]) -> list[str]:
    lines: list[str] = []
    for title, columns, rows, notes in contents:
        lines += [f"{_cell(title)}:", ""] if title else []
        full = [(*map(_cell, row), *[""] * (len(columns) - len(row))) for row in rows]
        lines += [*_table([_cell(name) for name in columns], full), ""]
        lines += [*(f"- {_cell(note)}" for note in notes), ""] if notes else []
    return lines[:-1]


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    body = [columns, ["---"] * len(columns), *rows]
    return [f"| {' | '.join(row)} |" for row in body]


def _cell(text: str) -> str:
    """Text escaped so that no table, link or tag begins or ends in it."""
    line = html.escape(" ".join(writable(text).split()), quote=False)
    for mark in "\\|`*_[]~":
        line = line.replace(mark, f"\\{mark}")
    return line
