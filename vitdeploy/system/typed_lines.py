"""Lines for a shell in messages: what a person pastes has the real names, quoted where a shell would part them."""

from __future__ import annotations

import shlex


def typed_line(command: str, *words: object) -> str:
    """`vitdeploy` with a command and its words."""
    return shlex.join(["vitdeploy", *command.split(), *map(str, words)])
