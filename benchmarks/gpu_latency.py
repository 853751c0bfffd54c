"""Latency of torch, ONNX Runtime and engines on a GPU, transfers from and to numpy included."""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort
import torch

import vitdeploy
from vitdeploy import EngineOptions
from vitdeploy.assess.environment import machine
from vitdeploy.assets import held_out_images
from vitdeploy.engine_options import colons
from vitdeploy.errors import UnavailableError
from vitdeploy.runtimes import BACKENDS, open_runtime, runtime_class
from vitdeploy.specs import AxisRange

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vitdeploy.bundle import Bundle
    from vitdeploy.runtimes.base import Runtime


def problem(backend: str) -> str | None:
    """Why a backend of engines does not run here; None where it does."""
    try:
        return next(iter(runtime_class(backend).probe().values()))
    except UnavailableError as exc:
        return str(exc)


PRECISIONS = ("fp32", "fp16", "bf16")
QUANTIZED = ("int8", "fp8")  # of engines; speed does not depend on the images
IMAGES: dict[str, Any] = {"calibration_data": held_out_images(), "calibration_images": 2, "calibration_cache": False}
ENGINES = [
    name for name, row in BACKENDS.items() if row.artifact_format == name and row.device == "cuda" and not problem(name)
]


def configurations(batch: AxisRange) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for precision, attention in itertools.product(PRECISIONS, ("eager", "sdpa")):
        yield "torch", precision, {"attention": attention}
    yield "torch", "fp16", {"attention": "sdpa", "compile": True}
    if "CUDAExecutionProvider" in ort.get_available_providers():
        yield "onnxruntime", "fp32", {}
    if not problem("onnxruntime-tensorrt"):
        yield "onnxruntime-tensorrt", "fp32", {"batch": colons(batch)}
    for backend, precision, graphs in itertools.product(ENGINES, (*PRECISIONS, *QUANTIZED), (True, False)):
        yield backend, precision, {"cuda_graphs": graphs}


def median_ms(runtime: Runtime, batch_size: int, runs: int) -> float:
    shape = (batch_size, *runtime.inputs[0].shape[1:])
    pixel_values = np.random.default_rng(0).standard_normal(shape, np.float32)  # type: ignore[arg-type]
    times = []
    for _ in range(runs + 5):
        start = time.perf_counter()
        runtime.run({"pixel_values": pixel_values})
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times[5:])


def measure(bundle: Bundle, batch_sizes: list[int], runs: int, batch: AxisRange) -> list[dict[str, Any]]:
    rows = []
    for backend, precision, options in configurations(batch):
        with open_runtime(bundle, backend, precision=precision, device="cuda", **options) as runtime:
            for batch_size in batch_sizes:
                milliseconds = median_ms(runtime, batch_size, runs)
                row = {"backend": backend, "precision": precision, **options, "batch_size": batch_size}
                rows.append({**row, "median_ms": milliseconds, "images_per_second": 1e3 * batch_size / milliseconds})
                print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="vit-base-patch16-224")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8, 32, 256])
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--json", type=Path, help="write the results here")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        parser.exit(3, "gpu_latency needs a CUDA device, torch finds none\n")
    with tempfile.TemporaryDirectory() as folder:
        bundle = vitdeploy.export(random_weights=arguments.preset, output=Path(folder) / "bundle")
        batch = AxisRange(min(32, *arguments.batch_sizes), 32, max(32, *arguments.batch_sizes))
        for engine, precision in itertools.product(ENGINES, (*PRECISIONS, *QUANTIZED)):
            bundle = vitdeploy.export(
                random_weights=arguments.preset, to=engine, precision=precision, output=bundle.path,
                engine=EngineOptions(batch=(batch,)), **(IMAGES if precision in QUANTIZED else {}),
            )  # fmt: skip
        rows = measure(bundle, arguments.batch_sizes, arguments.runs, batch)
    not_run = {name: why for name, row in BACKENDS.items() if row.device == "cuda" and (why := problem(name))}
    device = {"device": torch.cuda.get_device_name(), "cuda": torch.version.cuda, **machine()}
    if arguments.json:
        found = {"machine": device, "preset": arguments.preset, "not_run": not_run, "rows": rows}
        arguments.json.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
