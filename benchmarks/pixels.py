"""`Predictor.predict` on JPEG files, by runtime input: normalized numbers, bytes, or decoded images.

Predictors of ViT-B in ONNX Runtime, on the CPU, take turns in one process, without spinning idle threads. The 8 files
of 640x427 pixels are one batch; decoded images run one by one. Ratios are of the same turn.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import sklearn.datasets
from common import PRESET, parser, record, start, turns, vitdeploy_export, wait

import vitdeploy

PHOTOGRAPHS = [Path(sklearn.datasets.__file__).parent / "images" / name for name in ("china.jpg", "flower.jpg")]
COUNT = 8
FORMATS: dict[str, list[str]] = {
    "float32": [],
    "uint8 nhwc": ["--input", "uint8"],
    "uint8 nchw": ["--input", "uint8", "--layout", "nchw"],
    "decoded": ["--embed-resize"],
}


def measure(preset: str, rounds: int) -> dict[str, Any]:
    files = [PHOTOGRAPHS[index % len(PHOTOGRAPHS)] for index in range(COUNT)]
    with tempfile.TemporaryDirectory() as folder:
        bundles = {name: Path(folder, name.replace(" ", "-")) for name in FORMATS}
        for name, options in FORMATS.items():
            wait(start([*vitdeploy_export(bundles[name], "--random-weights", preset), *options]))
        predictors = {name: vitdeploy.load(path, allow_spinning=False) for name, path in bundles.items()}
        times: dict[str, list[float]] = {name: [] for name in FORMATS}
        for index, names in enumerate(turns(list(FORMATS), rounds + 1)):
            for name in names:
                begin = time.perf_counter()
                predictors[name].predict(files, batch_size=COUNT)
                if index:  # the first is a warm-up
                    times[name].append(time.perf_counter() - begin)
        image_bytes = {
            name: predictor.processor(files[:1], pixels=predictor.runtime.pixels).nbytes
            for name, predictor in predictors.items()
        }
        for predictor in predictors.values():
            predictor.close()
    floats = times["float32"]
    return {
        name: {
            "images_per_s": COUNT / statistics.median(of_one),
            "speedup": statistics.quantiles([base / own for base, own in zip(floats, of_one, strict=True)], n=4),
            "image_bytes": image_bytes[name],
        }
        for name, of_one in times.items()
    }


def main() -> None:
    arguments_parser = parser(__doc__)
    arguments_parser.add_argument("--preset", default=PRESET, help="architecture, with random weights")
    arguments_parser.add_argument("--rounds", type=int, default=15, help="batches of each")
    arguments = arguments_parser.parse_args()
    record(arguments, {"formats": measure(arguments.preset, arguments.rounds)})


if __name__ == "__main__":
    main()
