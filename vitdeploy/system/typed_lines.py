"""Shell commands in messages, with real names and quoting, ready to be pasted."""

from __future__ import annotations

import shlex


def typed_line(command: str, *words: object) -> str:
    """`vitdeploy` with a command and its arguments."""
    return shlex.join(["vitdeploy", *command.split(), *map(str, words)])
