"""Latency and agreement of int8 on the CPU against our own float32, on ViT-B with random weights.

The files of `vitdeploy export`, `--int8` (dynamic) and `--int8 --calibration-data` (static) are timed in ONNX Runtime,
each alone in its process, in turns. Static ranges come from two photographs: its speed does not depend on them. Ratios
are of the same turn.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import sklearn.datasets
from common import PRESET, parser, record, start, vitdeploy_export, wait
from sessions import latencies

from vitdeploy.assess.difference import compare_outputs

if TYPE_CHECKING:
    from sessions import Latencies

PHOTOGRAPHS = [Path(sklearn.datasets.__file__).parent / "images" / name for name in ("china.jpg", "flower.jpg")]
FLOAT = "fp32"


def make(folder: Path, preset: str) -> dict[str, Path]:
    """The files to time, by name."""
    photographs = folder / "photographs"
    photographs.mkdir()
    for path in PHOTOGRAPHS:
        shutil.copy(path, photographs)
    options = {
        FLOAT: [],
        "int8 dynamic": ["--int8"],
        "int8 static": ["--int8", "--calibration-data", str(photographs), "--no-calibration-cache"],
    }
    files = {}
    for name, of_one in options.items():
        bundle = folder / name.replace(" ", "-")
        wait(start([*vitdeploy_export(bundle, "--random-weights", preset), *of_one]))
        files[name] = bundle / "onnx" / ("model.onnx" if name == FLOAT else "model_int8.onnx")
    return files


def figures(found: Latencies, files: dict[str, Path]) -> dict[str, dict[str, Any]]:
    """Of each file: its median, its ratio to float32 (quartiles of the turns), its size, and how its logits differ."""
    floats = found.times_ms[FLOAT]
    rows = {}
    for name, times in found.times_ms.items():
        ratios = [own / base for own, base in zip(times, floats, strict=True)]
        (difference,) = compare_outputs({"logits": found.logits[FLOAT]}, {"logits": np.asarray(found.logits[name])})
        rows[name] = {
            "median_ms": statistics.median(times),
            "ratio": statistics.quantiles(ratios, n=4),
            "file_mb": files[name].stat().st_size / 1e6,
            "max_relative": difference.max_relative,
            "min_cosine": difference.min_cosine,
        }
    return rows


def main() -> None:
    arguments_parser = parser(__doc__)
    arguments_parser.add_argument("--preset", default=PRESET, help="architecture, with random weights")
    arguments_parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8])
    arguments_parser.add_argument("--processes", type=int, default=4, help="sets of fresh processes")
    arguments_parser.add_argument("--rounds", type=int, default=5, help="turns in each set")
    arguments_parser.add_argument(
        "--clock", choices=("wall", "processor"), default="wall", help="processor: of one thread, on a busy machine"
    )
    arguments = arguments_parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        files = make(Path(folder), arguments.preset)
        found = latencies(
            files,
            tuple(arguments.batch_sizes),
            arguments.processes,
            arguments.rounds,
            processor_time=arguments.clock == "processor",
        )
        record(arguments, {"batch_sizes": {size: figures(each, files) for size, each in found.items()}})


if __name__ == "__main__":
    main()
