"""`vitdeploy export` against optimum's and transformers' exporters on one ViT-B checkpoint: the export, and its file.

The tools are commands that take turns. Wall and processor time include the start of Python; the peak is the resident
memory of the largest process, and no tool starts a second one. The files then run in ONNX Runtime on the CPU in
float32: see `sessions.py`. Each ratio is the median over the turns, relative to the tool with the lowest median.
"""

from __future__ import annotations

import dataclasses
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from common import (
    add_peer_python,
    optimum_export,
    parser,
    peer_versions,
    random_bundle,
    record,
    start,
    transformers_export,
    turns,
    vitdeploy_export,
    wait,
)
from sessions import Session, latencies

if TYPE_CHECKING:
    from sessions import Latencies

OURS = "vitdeploy"
PEER_PACKAGES = ("optimum-onnx", "optimum", "transformers", "torch", "onnxruntime")
BATCH_SIZES = (1, 8)
SESSION_TURNS = 4
_RSS_UNIT = 1 if sys.platform == "darwin" else 1024


@dataclasses.dataclass(frozen=True)
class Tool:
    """A command that writes a folder, and the graph's path in it."""

    command: list[str]
    output: Path
    graph: str = "model.onnx"

    def export(self) -> dict[str, float]:
        shutil.rmtree(self.output, ignore_errors=True)
        begin = time.perf_counter()
        usage = wait(start(self.command))
        wall = time.perf_counter() - begin
        return {
            "wall_s": wall,
            "cpu_s": usage.ru_utime + usage.ru_stime,
            "peak_mb": usage.ru_maxrss * _RSS_UNIT / 1e6,
        }

    def file(self) -> dict[str, float]:
        graph = self.output / self.graph
        size = sum(path.stat().st_size for path in graph.parent.glob(f"{graph.name}*"))  # weights may be beside it
        return {"file_mb": size / 1e6, "nodes": len(onnx.load(graph, load_external_data=False).graph.node)}


def tools(optimum_python: Path, model: Path, folder: Path) -> dict[str, Tool]:
    """The other tools with their defaults, and with their options for an ONNX Runtime-only file."""
    ours, optimum, optimum_o2, transformers, fused = (folder / str(index) for index in range(5))
    return {
        OURS: Tool(vitdeploy_export(ours, "--model", str(model)), ours, "onnx/model.onnx"),
        "optimum": Tool(optimum_export(optimum_python, model, optimum), optimum),
        "optimum, O2": Tool(optimum_export(optimum_python, model, optimum_o2, "--optimize", "O2"), optimum_o2),
        "transformers": Tool(transformers_export(model, transformers), transformers),
        "transformers, ORT fusions": Tool(transformers_export(model, fused, "--ort-fusions", "cpu"), fused),
    }


def measure(optimum_python: Path, rounds: int, processes: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        compared = tools(optimum_python, random_bundle(Path(folder, "model")), Path(folder))
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in compared}
        for index, order in enumerate(turns(list(compared), rounds + 1)):
            for name in order:
                run = compared[name].export()
                print(f"round {index} {name:26} {run['wall_s']:6.1f} s {run['peak_mb']:6.0f} MB", file=sys.stderr)
                if index:  # the first round warms the file caches
                    runs[name].append(run)
        files = {name: tool.file() for name, tool in compared.items()}
        graphs = {name: Session(tool.output / tool.graph) for name, tool in compared.items()}
        timed = latencies(graphs, BATCH_SIZES, processes, SESSION_TURNS)
    columns = {
        **{column: {name: [run[column] for run in runs[name]] for name in runs} for column in runs[OURS][0]},
        **{column: {name: [files[name][column]] for name in files} for column in files[OURS]},
        **{f"batch_{size}_ms": of_one.times_ms for size, of_one in timed.items()},
    }
    return {
        "columns": {column: compare(series) for column, series in columns.items()},
        "largest_difference": largest_differences(timed),
        "problems": {size: of_one.problems for size, of_one in timed.items() if of_one.problems},
        "exports": runs,
    }


def compare(series: dict[str, list[float]]) -> dict[str, Any]:
    """The median of each tool, and vitdeploy's relative to the best other one."""
    medians = {name: statistics.median(values) for name, values in series.items()}
    best = min((name for name in medians if name != OURS), key=lambda name: medians[name])
    ratios = [ours / theirs for ours, theirs in zip(series[OURS], series[best], strict=True)]
    p25, p75 = (float(np.percentile(ratios, percent)) for percent in (25, 75))
    return {
        "medians": medians,
        "best_peer": best,
        "ratio": statistics.median(ratios),
        "ratio_p25": p25,
        "ratio_p75": p75,
    }


def largest_differences(timed: dict[int, Latencies]) -> dict[str, float]:
    """The largest logit difference of each tool from vitdeploy, over its batches."""
    found: dict[str, float] = {}
    for of_one in timed.values():
        for name, logits in of_one.logits.items():
            difference = float(np.abs(logits - of_one.logits[OURS]).max())
            found[name] = max(difference, found.get(name, 0.0))
    return found


def main() -> None:
    arguments_parser = parser(__doc__)
    add_peer_python(arguments_parser, "optimum")
    arguments_parser.add_argument("--rounds", type=int, default=5, help="exports with each tool")
    arguments_parser.add_argument("--processes", type=int, default=8, help="sets of fresh processes to time the files")
    arguments = arguments_parser.parse_args()
    results = measure(arguments.optimum_python, arguments.rounds, arguments.processes)
    versions = peer_versions(arguments.optimum_python, *PEER_PACKAGES)
    record(arguments, {"optimum": versions, **results})


if __name__ == "__main__":
    main()
