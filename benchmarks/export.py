"""Time and memory of an export: `vitdeploy export` and `optimum-cli export onnx` on one ViT-B checkpoint, in turns.

Wall and processor time are those of the whole command, start of Python included. The peak is the resident memory of the
largest process of the command; neither tool runs a second one.
"""

from __future__ import annotations

import dataclasses
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import onnx
from common import (
    add_optimum_python,
    optimum_export,
    parser,
    peer_versions,
    random_bundle,
    record,
    start,
    vitdeploy_export,
    wait,
)

_RSS_UNIT = 1 if sys.platform == "darwin" else 1024


@dataclasses.dataclass(frozen=True)
class Run:
    """What one export took."""

    wall_s: float
    cpu_s: float
    peak_mb: float


def timed(command: list[str], output: Path) -> Run:
    shutil.rmtree(output, ignore_errors=True)
    begin = time.perf_counter()
    usage = wait(start(command))
    wall = time.perf_counter() - begin
    return Run(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * _RSS_UNIT / 1e6)


def medians(runs: list[Run]) -> dict[str, float]:
    columns = [field.name for field in dataclasses.fields(Run)]
    return {name: statistics.median(getattr(run, name) for run in runs) for name in columns}


def artifact(path: Path) -> dict[str, float]:
    return {"file_mb": path.stat().st_size / 1e6, "nodes": len(onnx.load(path).graph.node)}


def measure(optimum_python: Path, rounds: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        model = random_bundle(Path(folder, "model"))
        ours, theirs = Path(folder, "vitdeploy"), Path(folder, "optimum")
        commands = {
            "vitdeploy": (vitdeploy_export(ours, "--model", str(model)), ours),
            "optimum": (optimum_export(optimum_python, model, theirs), theirs),
        }
        runs: dict[str, list[Run]] = {name: [] for name in commands}
        for index in range(rounds + 1):  # the first round fills the caches of files, and is not counted
            for name, (command, output) in commands.items():
                run = timed(command, output)
                print(f"round {index} {name:10} {run.wall_s:6.1f} s {run.peak_mb:6.0f} MB", file=sys.stderr, flush=True)
                if index:
                    runs[name].append(run)
        files = {"vitdeploy": artifact(ours / "onnx" / "model.onnx"), "optimum": artifact(theirs / "model.onnx")}
    return {
        name: {**medians(of_one), **files[name], "runs": [dataclasses.asdict(run) for run in of_one]}
        for name, of_one in runs.items()
    }


def main() -> None:
    arguments_parser = parser(__doc__)
    add_optimum_python(arguments_parser)
    arguments_parser.add_argument("--rounds", type=int, default=5, help="exports with each tool")
    arguments = arguments_parser.parse_args()
    tools = measure(arguments.optimum_python, arguments.rounds)
    ours, theirs = tools["vitdeploy"], tools["optimum"]
    columns = [name for name in ours if name != "runs"]
    ratios = {name: ours[name] / theirs[name] for name in columns}
    print(f"{'':10}" + "".join(f"{name:>10}" for name in columns))
    for name, values in {**tools, "ratio": ratios}.items():
        print(f"{name:10}" + "".join(f"{values[column]:10.2f}" for column in columns))
    record(arguments, {"optimum": peer_versions(arguments.optimum_python), "tools": tools, "ratio": ratios})


if __name__ == "__main__":
    main()
