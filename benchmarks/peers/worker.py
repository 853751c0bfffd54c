"""One tool in its own process: answers requests until its input ends; started by `peer_comparison.py`.

Requests and replies are pickles on standard input and output. A request is the name of a function in `ANSWERS` and its
arguments. The first reply is None, once the tool is open. It needs only numpy and the tool, which may have its own
environment.
"""

from __future__ import annotations

import argparse
import importlib
import os
import pickle
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class Tool(NamedTuple):
    """A model in a tool, opened.

    Attributes:
        prepare: Image files to pixel values (N, 3, H, W).
        infer: Pixel values to logits or pooled features (N, D), float32.
        whole: Image files to whatever the tool's user gets, if it is not `infer` of `prepare`.
    """

    prepare: Callable[[Sequence[Path]], Any]
    infer: Callable[[Any], np.ndarray]
    whole: Callable[[Sequence[Path]], Any] | None = None


def outputs(tool: Tool, files: Sequence[Path]) -> np.ndarray:
    """Logits or pooled features (N, D) of each image alone."""
    return np.concatenate([tool.infer(tool.prepare([file])) for file in files])


def times(tool: Tool, files: Sequence[Path], runs: int) -> dict[str, list[float]]:
    """Milliseconds from image files, and from pixel values, after one untimed run of each."""
    ready = tool.prepare(files)
    whole = tool.whole or (lambda files: tool.infer(tool.prepare(files)))
    return {"jpeg": _timed(lambda: whole(files), runs), "ready": _timed(lambda: tool.infer(ready), runs)}


def _timed(run: Callable[[], object], runs: int) -> list[float]:
    measured = []
    for _ in range(runs + 1):
        begin = time.perf_counter()
        run()
        measured.append(1e3 * (time.perf_counter() - begin))
    return measured[1:]


ANSWERS: dict[str, Callable[..., Any]] = {"outputs": outputs, "times": times}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("module", help="module of this folder")
    parser.add_argument("function", help="its function, which opens the tool")
    parser.add_argument("file", type=Path, help="the model, in the tool's form")
    parser.add_argument("model", type=Path, help="folder of the checkpoint")
    parser.add_argument("options", nargs="*", metavar="NAME=VALUE", help="of the function")
    arguments = parser.parse_args()
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # a tool's output must not mix with the replies
    opened = getattr(importlib.import_module(arguments.module), arguments.function)
    tool = opened(arguments.file, arguments.model, **dict(option.split("=", 1) for option in arguments.options))
    reply: Any = None
    while True:
        pickle.dump(reply, replies)
        replies.flush()
        try:
            name, *rest = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        reply = ANSWERS[name](tool, *rest)


if __name__ == "__main__":
    main()
