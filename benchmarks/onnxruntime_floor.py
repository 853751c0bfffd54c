"""What ONNX Runtime gains from a short last layer and from parallel runs, on ViT-B with random weights.

A head that reads the class token alone makes most of the last layer superfluous; `all tokens` is the graph that
computes it. `parallel runs` runs each image of a batch by itself, on one thread, as many at a time as there are cores
(`parallel_runs=0`); at batch 1 it is one thread against all. `no spinning` is `allow_spinning=False`. Each runs in its
own process, in turns: see `sessions.py`; ratios are of the same turn. All is measured alone, and beside processes that
keep each core busy (`--busy`), one a core.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from common import PRESET, parser, record, start, vitdeploy_export, wait
from int8 import PHOTOGRAPHS, quartiles
from sessions import Session, latencies

from vitdeploy.system.cpu import session_threads

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sessions import Latencies

PRECISIONS: dict[str, tuple[str, ...]] = {
    "fp32": (),
    "int8 dynamic": ("--int8",),
    "int8 static": ("--int8", "--calibration-data", "photographs", "--no-calibration-cache"),
}
BASE = "all tokens"
# Runs vitdeploy's command with an exporter that computes every token in the last layer.
ALL_TOKENS = """
from vitdeploy.exporters.graph import tracing
tracing.leading_tokens = lambda served: None
from vitdeploy.cli import main
main()
"""
BURNER = "while True: pass"


def sessions_of(folder: Path, precision: str, preset: str) -> dict[str, Session]:
    """Both graphs of a precision, and the settings of the shorter one."""
    photographs = folder / "photographs"
    options = [str(photographs) if option == "photographs" else option for option in PRECISIONS[precision]]
    files = {}
    for name in (BASE, "short"):
        bundle = folder / f"{precision}-{name}".replace(" ", "-")
        command = [*vitdeploy_export(bundle, "--random-weights", preset), *options]
        if name == BASE:
            command[1:3] = ["-c", ALL_TOKENS]
        wait(start(command))
        files[name] = bundle / "onnx" / ("model.onnx" if precision == "fp32" else "model_int8.onnx")
    short = files["short"]
    return {
        BASE: Session(files[BASE], "vitdeploy"),
        "as exported": Session(short, "vitdeploy"),
        "no spinning": Session(short, "vitdeploy", options=("allow_spinning=0",)),
        "parallel runs": Session(short, "vitdeploy", options=("parallel_runs=0",)),
    }


@contextlib.contextmanager
def busy_cores(count: int) -> Iterator[None]:
    processes = [subprocess.Popen([sys.executable, "-c", BURNER]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def figures(found: Latencies) -> dict[str, Any]:
    if found.problems:
        raise SystemExit(f"every file must run, got: {found.problems}")
    base = found.logits[BASE]
    return {
        name: {
            "median_ms": float(np.median(times)),
            "ratio": quartiles(times, found.times_ms[BASE]),
            "largest_difference": float(np.abs(found.logits[name] - base).max() / np.abs(base).max()),
        }
        for name, times in found.times_ms.items()
    }


def main() -> None:
    arguments_parser = parser(__doc__)
    arguments_parser.add_argument("--preset", default=PRESET, help="architecture, with random weights")
    arguments_parser.add_argument("--precisions", nargs="+", default=list(PRECISIONS), choices=PRECISIONS)
    arguments_parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8])
    arguments_parser.add_argument("--busy", type=int, default=session_threads().count, help="processes beside it")
    arguments_parser.add_argument("--processes", type=int, default=3, help="sets of fresh processes")
    arguments_parser.add_argument("--rounds", type=int, default=4, help="turns in each set")
    arguments = arguments_parser.parse_args()
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "photographs").mkdir()
        for path in PHOTOGRAPHS:
            shutil.copy(path, folder / "photographs")
        for precision in arguments.precisions:
            sessions = sessions_of(folder, precision, arguments.preset)
            for load, beside in (("alone", 0), ("busy", arguments.busy)):
                with busy_cores(beside):
                    found = latencies(sessions, tuple(arguments.batch_sizes), arguments.processes, arguments.rounds)
                rows.setdefault(precision, {})[load] = {size: figures(times) for size, times in found.items()}
    record(arguments, {"precisions": rows})


if __name__ == "__main__":
    main()
