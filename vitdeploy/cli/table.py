"""Tables for users: at most as wide as the terminal, without broken words; elsewhere no cell is wrapped."""

from __future__ import annotations

import io
import shutil
import sys
import textwrap
from typing import TYPE_CHECKING

import click

from vitdeploy.cli.command import COMMON, option

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

MOST_COLUMNS = 6  # without --details
_DETAILS = f"{__name__}.details"
_GAP = 2


def _keep_details(context: click.Context, _option: click.Parameter, given: bool) -> None:
    context.meta[_DETAILS] = given


details_option = option(
    "--details",
    is_flag=True,
    expose_value=False,
    callback=_keep_details,
    group=COMMON,
    help="Print every column of the tables.",
)


def rendered(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table as text, with its first columns only unless --details was given; an empty title takes no line."""
    limit, styled = terminal_width(), is_a_terminal()
    context = click.get_current_context(silent=True)
    details = context is None or context.meta.get(_DETAILS, True)
    shown = list(columns) if details else list(columns)[:MOST_COLUMNS]
    full = [[*row, *[""] * (len(columns) - len(row))][: len(shown)] for row in rows]
    left_out = list(columns)[len(shown) :]
    parts = [wrapped(title, limit)] if title else []
    parts.append(_grid(shown, full, limit, styled))
    if left_out and rows:
        parts.append(wrapped(f"with --details also: {', '.join(left_out)}", limit))
    return "\n".join(parts)


def wrapped(text: str, limit: int | None) -> str:
    """Text with no line longer than the limit, except for a longer word."""
    if limit is None:
        return text
    lines = (
        textwrap.wrap(line, limit, break_long_words=False, break_on_hyphens=False, drop_whitespace=True) or [""]
        for line in text.split("\n")
    )
    return "\n".join(line for wrapped_lines in lines for line in wrapped_lines)


def terminal_width() -> int | None:
    """Width of the terminal on standard output; None without a terminal."""
    return shutil.get_terminal_size().columns if is_a_terminal() else None


def is_a_terminal() -> bool:
    """True if standard output is a terminal."""
    return sys.stdout is not None and sys.stdout.isatty()  # it is None if it was closed


def by_reason(reasons: Iterable[tuple[str, str]]) -> list[str]:
    """A note per reason, with the subjects that share it."""
    subjects: dict[str, list[str]] = {}
    for subject, reason in reasons:
        subjects.setdefault(reason, []).append(subject)
    return [f"{', '.join(dict.fromkeys(names))}: {reason}" for reason, names in subjects.items()]


def _grid(columns: Sequence[str], rows: Sequence[Sequence[str]], limit: int | None, styled: bool) -> str:
    widths = _widths([columns, *rows], limit if rows else None)
    if widths is None:  # a block of lines per row
        pairs = [pair for row in rows for pair in (("", ""), *zip(columns, row, strict=True))][1:]
        columns, rows = ("", ""), pairs
        first, second = (max(lengths) for lengths in zip(*(_lengths(row) for row in pairs), strict=True))
        words = max(_longest_word(value) for _, value in pairs)
        widths = [first, max(words, min(second, (limit or 0) - first - _GAP), 1)]
    return _drawn(columns, rows, widths, styled)


def _drawn(columns: Sequence[str], rows: Iterable[Sequence[str]], widths: Sequence[int], styled: bool) -> str:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    file = io.StringIO()
    total = sum(widths) + _GAP * (len(widths) - 1)
    console = Console(file=file, highlight=False, force_terminal=styled, width=max(total, 1))
    table = Table(box=None, pad_edge=False, padding=(0, 1), header_style="bold", show_header=any(columns))
    for name, width in zip(columns, widths, strict=True):
        table.add_column(Text(name), width=width, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(table)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines())


def _widths(rows: Sequence[Sequence[str]], limit: int | None) -> list[int] | None:
    """Width of each column; None if not even the longest words fit side by side."""
    columns = list(zip(*rows, strict=True))
    longest = [max(1, *map(_length, column)) for column in columns]
    gaps = _GAP * (len(columns) - 1)
    if limit is None or sum(longest) + gaps <= limit:
        return longest
    widths = [max(1, *map(_longest_word, column)) for column in columns]
    room = limit - gaps - sum(widths)
    if room < 0:
        return None
    wanted = {index: whole - width for index, (whole, width) in enumerate(zip(longest, widths, strict=True))}
    for count, index in zip(range(len(wanted), 0, -1), sorted(wanted, key=lambda index: wanted[index]), strict=True):
        more = min(wanted[index], room // count)  # space left by short columns goes to the longer ones
        widths[index] += more
        room -= more
    return widths


def _lengths(row: Sequence[str]) -> list[int]:
    return [_length(cell) for cell in row]


def _length(text: str) -> int:
    from rich.cells import cell_len

    return max((cell_len(line) for line in text.split("\n")), default=0)


def _longest_word(text: str) -> int:
    return max(map(_length, text.split()), default=0)
