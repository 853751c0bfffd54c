"""The command line, run in the process of the tests."""

from __future__ import annotations

import contextlib
import io
import json
import shlex
from typing import Any, NamedTuple

import click
import pytest

from vitdeploy.cli import cli, main


class Ran(NamedTuple):
    """Exit code and output of a command."""

    code: object
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Terminal(io.StringIO):
    """A standard output that is a terminal; `COLUMNS` is its width."""

    def isatty(self) -> bool:
        return True


def run(*arguments: object, out: io.StringIO | None = None) -> Ran:
    """`vitdeploy` with these arguments."""
    out, err = out or io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as caught:
        main([*map(str, arguments)])
    return Ran(caught.value.code, out.getvalue(), err.getvalue())


def parsed(line: str) -> dict[str, Any]:
    """The parameters of a command, without its run."""
    command: click.Command = cli
    words = shlex.split(line.partition(" > ")[0])
    while isinstance(command, click.Group):
        found = command.get_command(click.Context(command), words.pop(0))
        assert found is not None
        command = found
    return command.make_context(command.name, words).params
