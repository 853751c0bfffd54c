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


def run(*arguments: object) -> Ran:
    """`vitdeploy` with these arguments."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as caught:
        main([*map(str, arguments)])
    return Ran(caught.value.code, out.getvalue(), err.getvalue())
