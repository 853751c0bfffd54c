"""Base of all commands: grouped options, examples, -h, -q and -v, and suggestions for unknown names."""

from __future__ import annotations

import copy
import difflib
import functools
import itertools
import re
from typing import TYPE_CHECKING, Any

import click

from vitdeploy.cli import synonyms, verbosity

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    _Choice = click.Choice[str]
else:
    _Choice = click.Choice  # generic since 8.2

_OWN, COMMON = "Options", "Common options"
_LAST = ("Hub", "Reports", COMMON)  # headings, in this order
_MOST_DIGITS = 6  # largest upper limit worth showing
_HYPHEN = "\N{NON-BREAKING HYPHEN}"


class Option(click.Option):
    """An option with a heading for the help."""

    def __init__(self, *args: Any, group: str = _OWN, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.group = group
        if isinstance(self.type, click.IntRange) and self.metavar is None:
            self.metavar = "N"

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """Names and help, with the range as text."""
        record = super().get_help_record(ctx)
        return None if record is None else (record[0], re.sub(r"(\d+)<=x<=(\d+)", _range, record[1]))


def _range(limits: re.Match[str]) -> str:
    low, high = limits.groups()
    return f"from {low} to {high}" if len(high) <= _MOST_DIGITS else f"{low} or more"


option = functools.partial(click.option, cls=Option)


class Choice(_Choice):
    """One of several texts, or another tool's name for it; with hints for values of other options."""

    def __init__(
        self, choices: Iterable[str], same: Mapping[str, str] | None = None, hints: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(list(choices))
        self.same, self.hints = same or {}, hints or {}

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        value = self.same.get(value, value)
        if value in self.hints:
            self.fail(f"{value!r} is not one of {', '.join(self.choices)}; {self.hints[value]}", param, ctx)
        return str(super().convert(value, param, ctx))


class _Formatter(click.HelpFormatter):
    """Help that breaks no line within a name: textwrap would break at hyphens."""

    def write_text(self, text: str) -> None:
        super().write_text(text.replace("-", _HYPHEN))

    def write_dl(self, rows: Iterable[tuple[str, str]], col_max: int = 30, col_spacing: int = 2) -> None:
        super().write_dl([(term, text.replace("-", _HYPHEN)) for term, text in rows], col_max, col_spacing)

    def getvalue(self) -> str:
        return super().getvalue().replace(_HYPHEN, "-")


class _Context(click.Context):
    formatter_class = _Formatter


class Command(click.Command):
    """A command.

    Args:
        examples: Commands without the leading "vitdeploy".
    """

    context_class = _Context

    def __init__(self, *args: Any, examples: Sequence[str] = (), **settings: Any) -> None:
        settings.setdefault("context_settings", {}).setdefault("help_option_names", ["-h", "--help"])
        super().__init__(*args, **settings)
        self.examples = examples
        self.params += verbosity.options()

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments; an option that has two names there has two values, of which none is taken silently."""
        words = {word.partition("=")[0] for word in itertools.takewhile(lambda word: word != "--", args)}
        for param in self.params:
            if isinstance(param, click.Option) and not param.multiple and not param.is_flag:
                same = [synonym for synonym, name in synonyms.OPTIONS.items() if name in param.opts]
                typed = [name for name in (*param.opts, *same) if name in words]
                if len(typed) > 1 and not words.isdisjoint(same):
                    raise click.UsageError(f"{' and '.join(typed)} are the same option; give one of them", ctx)
        return super().parse_args(ctx, args)

    def make_parser(self, ctx: click.Context) -> Any:
        """The parser, including synonyms of this command's options."""
        parser = super().make_parser(ctx)
        options = {name: param for param in self.params if isinstance(param, click.Option) for name in param.opts}
        for synonym, name in synonyms.OPTIONS.items():
            if name in options and synonym not in options:
                other = copy.copy(options[name])
                other.opts = [synonym]
                other.add_to_parser(parser, ctx)
        return parser

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options under their headings."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None and isinstance(param, click.Option):
                groups.setdefault(getattr(param, "group", COMMON), []).append(record)
        for heading in sorted(groups, key=lambda heading: _LAST.index(heading) if heading in _LAST else -1):
            with formatter.section(heading):
                formatter.write_dl(groups[heading])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples."""
        if self.examples:
            with formatter.section("Examples"):
                for line in self.examples:
                    formatter.write(f"{'':>{formatter.current_indent}}vitdeploy {line}\n")
        super().format_epilog(ctx, formatter)


class Group(Command, click.Group):
    """A command group, with a suggestion for an unknown command."""

    command_class = Command

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_options(ctx, formatter)
        self.format_commands(ctx, formatter)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if not name.startswith("-") and self.get_command(ctx, name) is None and not ctx.resilient_parsing:
            raise click.UsageError(f"No such command '{name}'{self._meant(ctx, name)}", ctx)
        return super().resolve_command(ctx, args)

    def _meant(self, ctx: click.Context, name: str) -> str:
        names = self.list_commands(ctx)
        meant = synonyms.COMMANDS.get(name.lower())
        near = [meant] if meant in names else difflib.get_close_matches(name.lower(), names, 1)
        return (
            f"; did you mean {near[0]}? Run: {ctx.command_path} {near[0]} -h"
            if near
            else (f". The commands are {', '.join(names)}.")
        )


command = functools.partial(click.command, cls=Command)
