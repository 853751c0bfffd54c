"""CPU utilization of `vitdeploy evaluate`: throughput with decoding, against decoding and inference alone.

JPEG photographs of 640x427 pixels go through ONNX Runtime in float32 on the CPU, in batches of 32, in three ways that
take turns: decoding and preprocessing only, on as many threads as cores; inference only, on preprocessed images; and
both, as in `evaluate`. Each way has all cores. If both parts need all of them, no arrangement can reach the slower
part's throughput: at best it takes the processor time of both. So the used share of processor time stands beside the
ratios, and the throughput of both parts in sequence.
"""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sklearn.datasets
from common import parser, record, start, turns, vitdeploy_export, wait

from vitdeploy.assess.data.dataset import open_data
from vitdeploy.assess.data.loader import prepare
from vitdeploy.assess.evaluate.backend_run import BackendRun
from vitdeploy.assess.evaluate.loop import run_all
from vitdeploy.assess.runs.open_runtimes import OpenRuntimes
from vitdeploy.assess.runs.targets import select
from vitdeploy.bundle.bundle import Bundle
from vitdeploy.runtimes import BESIDE_OTHERS
from vitdeploy.system.cpu import usable_cpus
from vitdeploy.system.progress import SILENT

if TYPE_CHECKING:
    from collections.abc import Callable

PHOTOGRAPHS = [Path(sklearn.datasets.__file__).parent / "images" / name for name in ("china.jpg", "flower.jpg")]
BATCH_SIZE = 32


def measure(preset: str, images: int, rounds: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        wait(start(vitdeploy_export(Path(folder, "bundle"), "--random-weights", preset)))
        bundle = Bundle.open(Path(folder, "bundle"))
        runtimes = OpenRuntimes(bundle, options=BESIDE_OTHERS)
        labels, processor = bundle.read_config().labels, runtimes.processor
        target = Path(folder, "data", labels[0])
        target.mkdir(parents=True)
        for index in range(images):
            shutil.copy(PHOTOGRAPHS[index % len(PHOTOGRAPHS)], target / f"{index:05}.jpg")
        data = open_data(target.parent, labels)
        (selected,) = select(bundle, ["onnxruntime"])
        run = BackendRun(selected, runtimes, labels, images)
        formats = {run.pixels} if run.pixels is not None else set()
        threads = usable_cpus().workers
        ready = list(
            prepare(data.subset(min(images, BATCH_SIZE)), processor, formats, threads=threads, ahead=BATCH_SIZE)
        )

        def decode() -> None:
            for _ in prepare(data, processor, formats, threads=threads, ahead=2 * BATCH_SIZE):
                pass

        def infer() -> None:
            for first in range(0, images, BATCH_SIZE):
                run.run(ready[: images - first], first)

        def both() -> None:
            run_all([run], data, labels, processor, BATCH_SIZE, None, SILENT)

        ways = {"decoding": decode, "inference": infer, "both": both}
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        for index, names in enumerate(turns(list(ways), rounds + 1)):
            for name in names:
                seconds = _seconds(ways[name])
                if index:  # the first is a warm-up
                    taken[name].append(seconds)
        run.close()
    return _summary(taken, images)


def _seconds(way: Callable[[], None]) -> tuple[float, float]:
    """Wall and processor time."""
    wall, cpu = time.perf_counter(), time.process_time()
    way()
    return time.perf_counter() - wall, time.process_time() - cpu


def _summary(taken: dict[str, list[tuple[float, float]]], images: int) -> dict[str, Any]:
    cores = usable_cpus().workers
    walls = {name: [wall for wall, _ in rows] for name, rows in taken.items()}
    slower = [max(pair) for pair in zip(walls["decoding"], walls["inference"], strict=True)]
    after = [sum(pair) for pair in zip(walls["decoding"], walls["inference"], strict=True)]
    return {
        "images_per_s": {name: images / statistics.median(of_one) for name, of_one in walls.items()},
        "busy": {name: statistics.median(cpu / wall / cores for wall, cpu in rows) for name, rows in taken.items()},
        "of_slower": statistics.quantiles([a / b for a, b in zip(slower, walls["both"], strict=True)], n=4),
        "of_one_after_the_other": statistics.quantiles([a / b for a, b in zip(after, walls["both"], strict=True)], n=4),
        "load_average": os.getloadavg()[0],
    }


def main() -> None:
    arguments_parser = parser(__doc__)
    arguments_parser.add_argument(
        "--presets", nargs="+", default=["vit-base-patch16-224", "vit-tiny-patch16-224"], help="with random weights"
    )
    arguments_parser.add_argument("--images", type=int, default=96, help="of each round")
    arguments_parser.add_argument("--rounds", type=int, default=8)
    arguments = arguments_parser.parse_args()
    found = {preset: measure(preset, arguments.images, arguments.rounds) for preset in arguments.presets}
    record(arguments, {"presets": found})


if __name__ == "__main__":
    main()
