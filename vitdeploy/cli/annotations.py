"""Error annotations for GitHub Actions: workflow commands on standard error.

https://docs.github.com/actions/reference/workflow-commands-for-github-actions; escaping as in @actions/core
(packages/core/src/command.ts in actions/toolkit).
"""

from __future__ import annotations

import os
import sys

from vitdeploy.cli.output import printable

_DATA = {"%": "%25", "\r": "%0D", "\n": "%0A"}
_PROPERTY = {**_DATA, ":": "%3A", ",": "%2C"}


def annotate(message: str, title: str = "vitdeploy") -> None:
    """Print an error annotation, only in a GitHub Actions job."""
    if os.environ.get("GITHUB_ACTIONS") == "true" and sys.stderr is not None:
        line = f"::error title={_escaped(title, _PROPERTY)}::{_escaped(message, _DATA)}"
        print(line, file=sys.stderr, flush=True)


def _escaped(text: str, by: dict[str, str]) -> str:
    return "".join(by.get(char) or printable(char) for char in text)
