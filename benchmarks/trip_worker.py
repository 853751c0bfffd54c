"""Run one vitdeploy command in this process and count its calls; started by `trips.py`.

Arguments: the checkout, the file for the counts (JSON), and the command. Counted are functions in the checkout's files.
The caller is the nearest such function on the stack, so a call through a library counts as one between rooms; an
overriding method counts where the overridden one is declared. Functions that run during an import do not count. Files
below the working directory are counted when they are opened.
"""

from __future__ import annotations

import collections
import inspect
import json
import os
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import CodeType, FrameType

_IMPORT = "<frozen importlib._bootstrap>"
_PARTS = ("<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>")  # in a function; later Pythons have no frame for some
_COUNTED = {  # in a function that runs once
    "sessions": ("_create_inference_session", "onnxruntime_inference_collection.py"),
    "references": ("make_model", "checkpoint.py"),
}


class Counter:
    """The function called by `sys.setprofile`."""

    def __init__(self, checkout: Path) -> None:
        self._package = str(checkout / "vitdeploy") + os.sep
        self._known: dict[CodeType, str | None] = {}
        self.functions: set[tuple[str, int, str]] = set()  # file, line, name
        self.calls: collections.Counter[tuple[str, str]] = collections.Counter()  # file to file
        self.totals = dict.fromkeys(("deepest_stack", *_COUNTED), 0)
        self._declared: dict[CodeType, str] = {}  # the file of the overridden method, or its own

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        if event == "call":
            code = frame.f_code
            if (file := self._file(code)) is not None:
                self._count(frame, file)
            for name, place in _COUNTED.items():
                self.totals[name] += code.co_name == place[0] and code.co_filename.endswith(place[1])

    def _file(self, code: CodeType) -> str | None:
        """Path of a checkout's function, from `vitdeploy/`; None for others, modules and class bodies."""
        if code not in self._known:
            function = code.co_flags & inspect.CO_OPTIMIZED and code.co_name not in _PARTS
            ours = function and code.co_filename.startswith(self._package)
            self._known[code] = "vitdeploy/" + code.co_filename[len(self._package) :] if ours else None
        return self._known[code]

    def _count(self, frame: FrameType, file: str) -> None:
        caller, depth = None, 1
        outer = frame.f_back
        while outer is not None:
            if outer.f_code.co_filename == _IMPORT:
                return
            if (outer_file := self._file(outer.f_code)) is not None:
                caller = caller or outer_file
                depth += 1
            outer = outer.f_back
        code = frame.f_code
        self.functions.add((file, code.co_firstlineno, code.co_name))
        self.totals["deepest_stack"] = max(self.totals["deepest_stack"], depth)
        if caller is not None:
            if code not in self._declared:
                self._declared[code] = self._declaration(frame, file)
            self.calls[caller, self._declared[code]] += 1

    def _declaration(self, frame: FrameType, file: str) -> str:
        code = frame.f_code
        if code.co_varnames[:1] == ("self",):
            for declaring in reversed(type(frame.f_locals["self"]).__mro__):
                method = getattr(vars(declaring).get(code.co_name), "__code__", None)
                if method is not None and (declared := self._file(method)) is not None:
                    return declared
        return file


def main() -> None:
    checkout, counts, folder = Path(sys.argv[1]), Path(sys.argv[2]), Path.cwd()
    opened: collections.Counter[str] = collections.Counter()

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[0], (str, os.PathLike)):
            path = folder / arguments[0]
            if path.is_relative_to(folder) and not path.is_dir():
                opened[path.relative_to(folder).as_posix()] += 1

    from vitdeploy.cli import main as command_line  # in the checkout, which is on PYTHONPATH

    sys.argv[:] = ["vitdeploy", *sys.argv[3:]]
    counter = Counter(checkout)
    sys.addaudithook(watch)
    threading.setprofile(counter)
    sys.setprofile(counter)
    try:
        command_line()
    except SystemExit as exc:
        if exc.code:
            raise
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    result = {
        **counter.totals,
        "opened": dict(opened),
        "functions": sorted(counter.functions),
        "calls": [[*files, times] for files, times in sorted(counter.calls.items())],
    }
    counts.write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
