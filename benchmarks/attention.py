"""Eager attention against SDPA in the torch backend, on ViT-B with random weights, in the form of transformers' table.

On the CPU, and on a CUDA device if there is one. Both share their weights and take turns; times are medians, from numpy
to numpy.
"""

from __future__ import annotations

import itertools
import statistics
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from common import PRESET, document, parser, record, save, turns
from gpu.device import about, check_device

from vitdeploy.models.presets import preset_config, random_model
from vitdeploy.runtimes.pytorch import PyTorchRuntime

if TYPE_CHECKING:
    from vitdeploy.runtimes.base import Runtime

BATCH_SIZES = (1, 2, 4, 8)


def measure(device: str, precision: str, rounds: int) -> dict[str, Any]:
    model = random_model(preset_config(PRESET))
    eager, sdpa = (
        PyTorchRuntime(model.with_attention(kind), device=device, precision=precision) for kind in ("eager", "sdpa")
    )
    with eager, sdpa:
        rows = [compare({"eager": eager, "sdpa": sdpa}, batch_size, rounds) for batch_size in BATCH_SIZES]
    name = torch.cuda.get_device_name(device) if device == "cuda" else "CPU"
    return {"device": name, "precision": precision, "rows": rows}


def compare(runtimes: dict[str, Runtime], batch_size: int, rounds: int) -> dict[str, float]:
    pixel_values = np.random.default_rng(0).standard_normal((batch_size, 3, 224, 224), np.float32)
    logits = {}
    for name, runtime in runtimes.items():
        for _ in range(3):  # not timed: kernels are selected, memory is allocated
            logits[name] = runtime.run({"pixel_values": pixel_values})["logits"]
    times: dict[str, list[float]] = {name: [] for name in runtimes}
    for order in turns(list(runtimes), rounds):
        for name in order:
            start = time.perf_counter()
            runtimes[name].run({"pixel_values": pixel_values})
            times[name].append(1e3 * (time.perf_counter() - start))
    speedups = [eager / sdpa for eager, sdpa in zip(times["eager"], times["sdpa"], strict=True)]
    return {
        "batch_size": batch_size,
        "eager_ms": statistics.median(times["eager"]),
        "sdpa_ms": statistics.median(times["sdpa"]),
        "speedup": statistics.median(speedups),
        "speedup_p25": float(np.percentile(speedups, 25)),
        "speedup_p75": float(np.percentile(speedups, 75)),
        "largest_difference": float(np.abs(logits["eager"] - logits["sdpa"]).max()),
    }


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--device", nargs="+", choices=["cpu", "cuda"], help="by default every one that is there")
    options.add_argument("--precision", nargs="+", choices=["fp32", "fp16", "bf16"], default=["fp32"])
    options.add_argument("--rounds", type=int, default=20, help="timed runs of each kind at each batch size")
    arguments = options.parse_args()
    devices = arguments.device or ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    if devices == ["cuda"]:
        check_device("cuda")
    results: dict[str, Any] = {**(about("cuda") if "cuda" in devices else {}), "measured": []}
    for device, precision in itertools.product(devices, arguments.precision):
        results["measured"].append(measure(device, precision, arguments.rounds))
        save(arguments, document(arguments, results))
    record(arguments, results)


if __name__ == "__main__":
    main()
