"""A class of inputs with one of each fault that a run must find: the test of the tests."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from fuzz.cases import DAMAGED, PASSED, Case
from fuzz.damage import choose
from vitdeploy.errors import InputError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


MOST_BYTES = 100 << 20  # of the run that must find them


class Faulty:
    """A fault drawn from `FAULTS`; its name is the note, and that of the file which it leaves."""

    def __init__(self, base: Path) -> None:
        del base

    def make(self, rng: np.random.Generator, folder: Path) -> Case:
        name = choose(rng, sorted(FAULTS))
        (folder / name).touch()
        return Case(name, (), frozenset({PASSED, DAMAGED}), lambda found: found, FAULTS[name])


def _raise(error: BaseException) -> Any:
    raise error


FAULTS: dict[str, Callable[[], Any]] = {
    "nothing": lambda: None,
    "refused": lambda: _raise(InputError("it is damaged")),
    "traceback": lambda: _raise(KeyError("x")),
    "exit code": lambda: _raise(UsageError("it is damaged")),
    "oracle": lambda: "another result",
    "raw line": lambda: os.write(2, b"a library's own words\n") and None,
    "memory": lambda: np.ones(MOST_BYTES * 3, np.uint8).sum() * 0 or None,
    "hang": lambda: time.sleep(100),
    "crash": lambda: os.abort(),
}
