"""The command line, run in the process of the tests."""

from __future__ import annotations

import contextlib
import io
import json
from typing import Any, NamedTuple

import pytest

from vitdeploy.cli import main


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
