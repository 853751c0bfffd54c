"""Time the image processor against transformers' PIL backend and hf-processors-rs: JPEG files to (N, 3, 224, 224).

hf-processors-rs does the same in Rust, also bit-exact. All three take turns in one process. transformers copies the
image several times; its time changes by half depending on whether the copies use memory that the process still holds or
new memory from the system (a thousand page faults per image). Each process does one or the other, so the comparison
runs in several new processes, and the spread of the ratio is part of the result.
"""

from __future__ import annotations

import functools
import importlib.metadata
import multiprocessing
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import sklearn.datasets
from common import parser, record
from PIL import Image
from transformers import ViTImageProcessorPil
from transformers.image_utils import load_image

from vitdeploy.images.processor import ImageProcessor
from vitdeploy.specs import PixelFormat, PixelStage
from vitdeploy.system.cpu import usable_cpus

if TYPE_CHECKING:
    from collections.abc import Callable

PHOTOGRAPH = Path(sklearn.datasets.__file__).parent / "images" / "china.jpg"  # 640x427
SIZES = ((320, 240), (640, 427), (1920, 1080))
FILTERS = {2: "bilinear", 3: "bicubic"}
BATCH = 16
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
BYTES = PixelFormat(PixelStage.RESIZED, "nhwc", "uint8")  # of a model exported with --input uint8
# Recorded on another machine, where transformers' PIL backend took 7.1 ms; torchvision is not a dependency.
TORCHVISION_NOTE = "transformers' torchvision backend: not run here; 4.5 ms recorded beside 7.1 ms for its PIL backend"


def interleaved_ms(
    candidates: dict[str, Callable[[], Any]], runs: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Median time of each candidate in milliseconds.

    They alternate in blocks of ten: a slow phase of the machine affects all, and each reuses its own memory.
    """
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(0, runs, 10):
        for name, call in candidates.items():
            call()
            for _ in range(10):
                start = clock()
                call()
                times[name].append((clock() - start) * 1e3)
    return {name: statistics.median(values) for name, values in times.items()}


def measure(runs: int, peer_folder: str, clock_name: str) -> dict[str, Any]:
    sys.path.append(peer_folder)
    import hf_processors_rs

    def peer(processor: ImageProcessor) -> Any:
        return hf_processors_rs.ImageProcessor.from_dict(processor.to_dict(), backend="pil")

    clock = CLOCKS[clock_name]
    ours, theirs = ImageProcessor(), ViTImageProcessorPil()
    rust = peer(ours)
    path, encoded = str(PHOTOGRAPH), PHOTOGRAPH.read_bytes()

    def reference() -> Any:
        return theirs(load_image(path), return_tensors="np")["pixel_values"]

    check_equal(ours(path), reference(), rust(path))
    image_ms = interleaved_ms(
        {
            "vitdeploy_file": lambda: ours(path),
            "vitdeploy_bytes": lambda: ours(encoded),
            "vitdeploy_uint8": lambda: ours(path, pixels=BYTES),
            "transformers_pil": reference,
            "hf_processors_rs": lambda: rust(path, num_threads=1),
        },
        runs,
        clock,
    )
    batch = [path] * BATCH
    batch_ms = {
        str(threads): interleaved_ms(
            {
                "vitdeploy": functools.partial(ours, batch, threads=threads),
                "vitdeploy_uint8": functools.partial(ours, batch, threads=threads, pixels=BYTES),
                "hf_processors_rs": functools.partial(rust, batch, num_threads=threads),
            },
            max(runs // 10, 10),
        )
        for threads in (1, usable_cpus().workers)
    }
    settings_ms = {}
    with tempfile.TemporaryDirectory() as folder, Image.open(PHOTOGRAPH) as photograph:
        for width, height in SIZES:
            file = str(Path(folder, f"{width}.jpg"))
            photograph.resize((width, height), Image.Resampling.BICUBIC).save(file, quality=90)
            for number, name in FILTERS.items():
                processor = ImageProcessor(resample=number)
                other = peer(processor)
                check_equal(processor(file), other(file))
                settings_ms[f"{width}x{height}, {name}"] = interleaved_ms(
                    {
                        "vitdeploy": functools.partial(processor, file),
                        "hf_processors_rs": functools.partial(other, file, num_threads=1),
                    },
                    max(runs // 4, 10),
                    clock,
                )
    return {"image_ms": image_ms, "batch16_ms": batch_ms, "settings_ms": settings_ms}


def check_equal(ours: np.ndarray, *others: np.ndarray) -> None:
    if not all(np.array_equal(ours, other) for other in others):
        raise SystemExit("the processors differ: their times cannot be compared")


def measure_in_fresh_processes(runs: int, processes: int, peer_folder: Path, clock: str) -> list[dict[str, Any]]:
    context = multiprocessing.get_context("spawn")
    results = []
    for _ in range(processes):
        with context.Pool(1) as pool:
            results.append(pool.apply(measure, (runs, str(peer_folder), clock)))
    return results


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--runs", type=int, default=200, help="timed runs of each candidate on one image")
    options.add_argument("--processes", type=int, default=5, help="fresh processes to repeat it in")
    options.add_argument(
        "--clock",
        choices=CLOCKS,
        default="wall",
        help="of one image; processor time where other work runs; batches: wall",
    )
    options.add_argument(
        "--hf-processors", type=Path, default=Path(".venvs/hf-processors"), help="folder with hf-processors-rs in it"
    )
    arguments = options.parse_args()
    versions = [found.version for found in importlib.metadata.distributions(path=[str(arguments.hf_processors)])]
    if not versions:
        raise SystemExit(f"no hf-processors-rs in {arguments.hf_processors}: run `make .venvs/hf-processors/.done`")
    results = measure_in_fresh_processes(arguments.runs, arguments.processes, arguments.hf_processors, arguments.clock)
    print(TORCHVISION_NOTE)
    peers = {"hf-processors-rs": versions[0]}
    record(arguments, {"processes": results, "peers": peers, "note": TORCHVISION_NOTE})


if __name__ == "__main__":
    main()
