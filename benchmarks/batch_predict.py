"""Throughput of `vitdeploy predict --output`, against decoding alone and inference alone.

JPEG photographs of 640x480 pixels go through ONNX Runtime in float32 on the CPU, in the default batch size, in three
ways that take turns: decoding and preprocessing only, on as many threads as cores; inference and ranking only, on
preprocessed images; and the job, with its listing, its work folder and its parquet file.

Decoding and inference each use all cores. An image therefore takes at least the processor time of both, and the bound
on images a second is the number of cores divided by it, or the slower of the two alone if that is less. With a GPU the
slower of the two is the bound. `waiting` stands for one: inference on the embedded model is replaced by a wait, half,
once and twice as long as decoding takes.
"""

from __future__ import annotations

import itertools
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import sklearn.datasets
from common import parser, record, start, turns, vitdeploy_export, wait
from PIL import Image

import vitdeploy
from vitdeploy.assess.data.image_set import open_images
from vitdeploy.assess.data.loader import prepare
from vitdeploy.assess.evaluate.loop import BATCHES_AHEAD
from vitdeploy.assets import default_checkpoint
from vitdeploy.predictor import Predictor
from vitdeploy.runtimes.base import Runtime
from vitdeploy.system.cpu import usable_cpus

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from typing_extensions import Self

    from vitdeploy.bundle.bundle import Bundle

PHOTOGRAPHS = [Path(sklearn.datasets.__file__).parent / "images" / name for name in ("china.jpg", "flower.jpg")]
SIZE = (640, 480)
EMBEDDED = "embedded"
SHARES = (0.5, 1.0, 2.0)  # of decoding's time
Way = tuple[float, float]  # wall and processor time


class Waiting(Runtime):
    """Waits as long as an accelerator would compute, and gives constant logits."""

    backend = "waiting"

    def __init__(self, like: Runtime, image_s: float) -> None:
        super().__init__()
        self.inputs, self.outputs, self.pixels, self.details = like.inputs, like.outputs, like.pixels, {}
        self._image_s = image_s

    def _run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        count = len(feeds["pixel_values"])
        time.sleep(count * self._image_s)
        (width,) = self.outputs[0].shape[1:]
        return {"logits": np.tile(np.arange(width, dtype=np.float32), (count, 1))}

    def _close(self) -> None:
        pass

    @classmethod
    def from_bundle(cls, bundle: Bundle, options: Any, *, precision: str, device: str) -> Self:
        raise NotImplementedError

    @classmethod
    def probe(cls) -> dict[str, str | None]:
        raise NotImplementedError


def write_photographs(folder: Path, count: int) -> Path:
    """JPEG files of 640x480; some of different content."""
    folder.mkdir()
    originals = []
    for path in PHOTOGRAPHS:
        with Image.open(path) as image:
            file = folder / f"{path.stem}.original"
            image.resize(SIZE).save(file, "JPEG", quality=90)
            originals.append(file.read_bytes())
            file.unlink()
    for index, content in zip(range(count), itertools.cycle(originals), strict=False):
        (folder / f"{index:05}.jpg").write_bytes(content)
    return folder


def measure(predictor: Predictor, photographs: Path, rounds: int) -> dict[str, Any]:
    images, runtime, threads = open_images(photographs), predictor.runtime, usable_cpus().workers
    size = predictor.batch_size
    ahead = BATCHES_AHEAD * max(size, threads)
    first = images.at(range(size))
    ready = list(prepare(first, predictor.processor, {runtime.pixels}, threads=threads, ahead=ahead))
    pixels = np.concatenate([image.pixels[runtime.pixels] for image in ready])
    top_k = predictor.classes_asked(None)

    def decode() -> None:
        for _ in prepare(images, predictor.processor, {runtime.pixels}, threads=threads, ahead=ahead):
            pass

    def infer() -> None:
        for start_row in range(0, len(images), size):
            predictor.problem_type.best(predictor.logits(pixels[: len(images) - start_row]), top_k)

    def job() -> None:
        vitdeploy.predict(predictor, photographs, photographs.parent / "predictions.parquet")

    ways = {"decoding": decode, "inference": infer, "job": job}
    taken: dict[str, list[Way]] = {name: [] for name in ways}
    for index, names in enumerate(turns(list(ways), rounds + 1)):
        for name in names:
            times = _seconds(ways[name])
            if index:  # the first is a warm-up
                taken[name].append(times)
    return _summary(taken, len(images))


def _seconds(way: Callable[[], None]) -> Way:
    wall, cpu = time.perf_counter(), time.process_time()
    way()
    return time.perf_counter() - wall, time.process_time() - cpu


def _summary(taken: dict[str, list[Way]], images: int) -> dict[str, Any]:
    cores = usable_cpus().workers
    bounds, slower = [], []
    for decoding, inference in zip(taken["decoding"], taken["inference"], strict=True):
        slower.append(max(decoding[0], inference[0]))
        bounds.append(max(slower[-1], (decoding[1] + inference[1]) / cores))
    walls = [wall for wall, _ in taken["job"]]
    return {
        "images": images,
        "images_per_s": {name: images / statistics.median(wall for wall, _ in rows) for name, rows in taken.items()},
        "cpu_ms_per_image": {
            name: 1000 * statistics.median(cpu for _, cpu in rows) / images for name, rows in taken.items()
        },
        "bound_images_per_s": images / statistics.median(bounds),
        "of_slower": statistics.quantiles([a / b for a, b in zip(slower, walls, strict=True)], n=4),
        "of_bound": statistics.quantiles([a / b for a, b in zip(bounds, walls, strict=True)], n=4),
        "load_average": os.getloadavg()[0],
    }


def measure_all(models: dict[str, int], rounds: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, images in models.items():
            bundle = Path(folder, name)
            model = ["--model", str(default_checkpoint())] if name == EMBEDDED else ["--random-weights", name]
            wait(start(vitdeploy_export(bundle, *model)))
            photographs = write_photographs(Path(folder, f"{name}-photographs"), images)
            with vitdeploy.load(bundle, beside_decoding=True) as predictor:
                found[name] = measure(predictor, photographs, rounds)
                if name != EMBEDDED:
                    continue
                for share in SHARES:
                    image_s = share / found[name]["images_per_s"]["decoding"]
                    waiting = Predictor(predictor.processor, Waiting(predictor.runtime, image_s), predictor.labels)
                    found[f"waiting, {share:g} of decoding"] = measure(waiting, photographs, rounds)
    return found


def main() -> None:
    arguments_parser = parser(__doc__)
    arguments_parser.add_argument("--images", type=int, default=800, help="of each round with the embedded model")
    arguments_parser.add_argument("--rounds", type=int, default=10)
    arguments = arguments_parser.parse_args()
    images = arguments.images
    models = {EMBEDDED: images, "vit-tiny-patch16-224": images // 2, "vit-small-patch16-224": images // 4}
    record(arguments, {"models": measure_all(models, arguments.rounds)})


if __name__ == "__main__":
    main()
