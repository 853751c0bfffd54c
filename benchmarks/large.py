"""A model with more than 2 GB of weights: peak memory of its export, and of loading it in ONNX Runtime.

The peak is the resident memory of the whole command: weights drawn, graph traced, files written, reference run,
artifact loaded and compared. The files are then loaded in a separate process, without ONNX Runtime's packed copies, to
measure how much of the weights is mapped from the file instead of read into memory.
"""

from __future__ import annotations

import multiprocessing
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import onnx
from common import parser, record, start, vitdeploy_export, wait

from vitdeploy.exporters.graph.onnx_file import ALIGNMENT

_RSS_UNIT = 1 if sys.platform == "darwin" else 1024
_ALIGNED_FROM = 1 << 20  # bytes


def measure(preset: str, precision: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder, "bundle")
        begin = time.perf_counter()
        usage = wait(start(vitdeploy_export(bundle, "--random-weights", preset, "--precision", precision)))
        wall = time.perf_counter() - begin
        (model,) = (bundle / "onnx").glob("*.onnx")
        source = (bundle / "model.safetensors").stat().st_size
        peak = usage.ru_maxrss * _RSS_UNIT
        loaded: dict[str, float] = {}
        if precision != "bf16":  # ONNX Runtime cannot load it on a CPU
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
                loaded = pool.submit(_load, str(model)).result()
        return {
            "weights_mb": source / 1e6,
            "peak_mb": peak / 1e6,
            "peak_ratio": peak / source,
            "wall_s": wall,
            "files_mb": {path.name: path.stat().st_size / 1e6 for path in sorted((bundle / "onnx").iterdir())},
            **_placement(model),
            **loaded,
        }


def _placement(model: Path) -> dict[str, Any]:
    """Location of the weights: the files, and the number of large weights at offsets that can be mapped."""
    entries = [
        {entry.key: entry.value for entry in tensor.external_data}
        for tensor in onnx.load(model, load_external_data=False).graph.initializer
    ]
    external = [entry for entry in entries if entry]
    large = [int(entry["offset"]) for entry in external if int(entry["length"]) > _ALIGNED_FROM]
    return {
        "data_files": sorted({entry["location"] for entry in external}),
        "large_weights": len(large),
        "large_weights_aligned": sum(offset % ALIGNMENT == 0 for offset in large),
    }


def _load(model: str) -> dict[str, float]:
    """Memory that a session adds to a process, and the mapped part of the file beside the model."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.disable_prepacking", "1")
    before = _anonymous_mb()
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    added = _anonymous_mb() - before
    mapped = 0
    for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
        place, *_, name = line.split()
        if name == f"{model}.data":
            first, last = (int(address, 16) for address in place.split("-"))
            mapped += last - first
    del session
    return {"loaded_mapped_mb": mapped / 1e6, "loaded_in_memory_mb": added}


def _anonymous_mb() -> float:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("RssAnon"))


def main() -> None:
    arguments_parser = parser(__doc__)
    arguments_parser.add_argument("--preset", default="vit-giant-patch14-224", help="of more than 2 GB")
    arguments_parser.add_argument("--precision", default="fp32", help="of the artifact")
    arguments = arguments_parser.parse_args()
    if sys.platform != "linux":
        raise SystemExit("the maps of a process are read from /proc, which is Linux's")
    results = measure(arguments.preset, arguments.precision)
    record(arguments, {"results": results})


if __name__ == "__main__":
    main()
