"""One generated input, how it is run, and what must be true of the outcome."""

from __future__ import annotations

import dataclasses
import zlib
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PASSED, FAILED, USAGE, UNAVAILABLE, DAMAGED = range(5)  # the exit codes of the command line
REFUSED_OR_NOT = frozenset({PASSED, DAMAGED})


def accept(_result: Any) -> None:
    """The oracle of an input of which nothing more can be said once it is accepted."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One input.

    Attributes:
        note: how it was made, in a few words; inputs of one kind have the same words before the colon.
        args: of the command line that reads it.
        allowed: the exit codes that are right.
        check: the oracle of an accepted input: given the result, what is wrong with it in words, or None. The result
            is what `call` returns; of a command line its standard output.
        call: what reads it in the place of the command line, which would take seconds; its errors are VitDeployErrors.
    """

    note: str
    args: tuple[str, ...]
    allowed: frozenset[int] = REFUSED_OR_NOT
    check: Callable[[Any], str | None] = accept
    call: Callable[[], Any] | None = None


class InputClass(Protocol):
    """Makes the inputs of one class. It is made once in a process, with the folder of undamaged files."""

    def __init__(self, base: Path) -> None: ...

    def make(self, rng: np.random.Generator, folder: Path) -> Case:
        """Write an input into `folder`, which is empty and the working directory; equal draws give equal bytes."""
        ...


def generator(name: str, seed: int, index: int) -> np.random.Generator:
    """The draws of one input, which do not depend on the inputs before it."""
    return np.random.default_rng([seed, zlib.crc32(name.encode()), index])
