"""The documentation's table of export options is what the values say; `python tests/test_option_table.py` writes it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from vitdeploy.cli.export import export
from vitdeploy.exporting.graph_options import GraphOptions
from vitdeploy.exporting.options import Quantization, SourceOptions, ValidationOptions
from vitdeploy.system.option_fields import default_text, options_in
from vitdeploy.trt.options import EngineOptions

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "options.md"
BEGIN, END = "<!-- options: written by tests/test_option_table.py -->\n", "<!-- end of options -->\n"
VALUES = (SourceOptions, GraphOptions, Quantization, ValidationOptions, EngineOptions)


def rows(kind: Any) -> Iterator[tuple[str, str, str, str]]:
    """The option of each field, the field, its default, and its help."""
    for field, option in options_in(kind):
        if option.nested is not None:
            yield from rows(option.nested)
            continue
        typed = [option.typed or field.name] if not option.variants else list(option.variants)
        flags = ", ".join(f"`--{name.replace('_', '-')}`" for name in typed)
        choices = "" if not option.choices else f" One of {', '.join(option.choices)}."
        yield flags, f"`{kind.__name__}.{field.name}`", default_text(field, option) or "", option.help + choices


def table() -> str:
    lines = ["| option | in Python | default | |", "|---|---|---|---|"]
    lines += [
        "| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for kind in VALUES for row in rows(kind)
    ]
    return BEGIN + "\n".join(lines) + "\n" + END


def with_table(text: str) -> str:
    before, rest = text.split(BEGIN)
    return before + table() + rest.split(END)[1]


def test_the_table_is_what_the_values_say() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert text == with_table(text), "run: python tests/test_option_table.py"


def test_each_option_of_the_values_is_one_of_the_command() -> None:
    flags = {flag for param in export.params if isinstance(param, click.Option) for flag in param.opts}
    assert flags >= {flag.strip(" `") for kind in VALUES for row in rows(kind) for flag in row[0].split(",")}


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
