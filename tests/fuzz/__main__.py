"""The long run: `make fuzz`, or `python -m fuzz --class images --seed 0 --index 17` for one input."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from fuzz.base import prepare
from fuzz.classes import CLASSES, LIBRARY_ALONE, real_every
from fuzz.runner import Failure, Worker, fuzz


def main() -> int:
    parser = argparse.ArgumentParser(prog="fuzz", description=__doc__)
    parser.add_argument("--count", type=int, default=5000, help="inputs of each class")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--class", dest="name", default="", help=f"one of {', '.join(CLASSES)}; all by default")
    parser.add_argument("--index", type=int, help="this input of the class alone, through the real command too")
    parser.add_argument("--first", type=int, default=0, help="index of the first input")
    parser.add_argument("--work", type=Path, default=Path("build/fuzz"), help="where failed inputs are kept")
    options = parser.parse_args()
    names = [options.name] if options.name else list(CLASSES)
    if unknown := [name for name in names if name not in CLASSES]:
        parser.error(f"there is no class {unknown[0]}; choose from {', '.join(CLASSES)}")
    work = options.work.resolve()
    prepare(work)
    indices = range(options.first, options.first + options.count) if options.index is None else [options.index]

    alone = options.index is not None

    def on_failure(failure: Failure) -> None:
        print(failure, flush=True)
        if alone and failure.trace:
            print(failure.trace)

    failed = 0
    with Worker(work, options.seed) as worker:
        for name in names:
            start, every = time.monotonic(), int(name not in LIBRARY_ALONE) if alone else real_every(name)
            summary = fuzz(worker, name, indices, real_every=every, on_failure=on_failure)
            print(f"{summary}, {time.monotonic() - start:.0f} s", flush=True)
            failed += len(summary.failures)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
