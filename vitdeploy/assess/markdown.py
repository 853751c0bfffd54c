"""The outcome of a comparison or a gate in Markdown, for the summary of a CI job."""

from __future__ import annotations

import html
from pathlib import Path
from typing import TYPE_CHECKING

from vitdeploy.assess.verdicts import writable
from vitdeploy.atomic import write_file

if TYPE_CHECKING:
    import os

    from vitdeploy.assess.verdicts import Judged

_MARKS = {"passed": "✅ passed", "failed": "❌ failed", "skipped": "⚠️ skipped"}


def markdown(result: Judged) -> str:
    """A heading with the outcome, and a table of what did not pass before what did."""
    found = result.verdicts
    counts = [f"{sum(each.status == status for each in found)} {status}" for status in _MARKS]
    lines = [
        f"### {_MARKS[result.status]}: {_cell(result.bundle)}",
        "",
        ", ".join(counts),
        "",
        "| outcome | subject | check | found |",
        "| --- | --- | --- | --- |",
    ]
    order = ["failed", "skipped", "passed"]
    for each in sorted(found, key=lambda verdict: order.index(verdict.status)):
        cells = (_MARKS[each.status], *map(_cell, (each.subject, each.name, each.message)))
        lines.append(f"| {' | '.join(cells)} |")
    if result.changes:
        lines += ["", "Since the baseline:", "", *(f"- {_cell(change)}" for change in result.changes)]
    return "\n".join(lines) + "\n"


def write_markdown(path: str | os.PathLike[str], result: Judged) -> None:
    """Write `markdown`; a file that exists is replaced whole or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    write_file(Path(path), markdown(result).encode())


def _cell(text: str) -> str:
    """Text in which no table, link or tag begins or ends."""
    line = html.escape(" ".join(writable(text).split()), quote=False)
    for mark in "\\|`*_[]~":
        line = line.replace(mark, f"\\{mark}")
    return line
