"""Overhead of `Predictor.predict` over the bare ONNX Runtime session, on ViT-B in float32 on the CPU.

Three calls take turns on one session: the session itself, `predict` on a preprocessed image (checks, scores and
labels), and `predict` on a JPEG file. The overhead is the median difference from the session in the same round. The
image processor alone takes a batch too: with threads that a call starts and ends, and with those a predictor keeps.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sklearn.datasets
from common import parser, random_bundle, record

from vitdeploy.bundle.bundle import Bundle
from vitdeploy.images.processor import ImageProcessor
from vitdeploy.predictor import Predictor
from vitdeploy.runtimes.onnxrt.options import OnnxRuntimeOptions
from vitdeploy.runtimes.onnxrt.runtime import OnnxRuntime
from vitdeploy.system.forks import ThreadPool

if TYPE_CHECKING:
    from collections.abc import Callable

BATCH = 4
PHOTOGRAPH = Path(sklearn.datasets.__file__).parent / "images" / "china.jpg"  # 640x427


def measure(rounds: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        bundle = Bundle.open(random_bundle(Path(folder, "model")))
        processor = ImageProcessor.from_pretrained(bundle.path)
        with OnnxRuntime.from_bundle(bundle, OnnxRuntimeOptions(), precision="fp32", device="cpu") as runtime:
            session = runtime._session  # a second session would disturb it
            pixel_values = processor([PHOTOGRAPH])

            class Ready(ImageProcessor):
                def __call__(self, *_: Any, **__: Any) -> Any:
                    return pixel_values

            ready = Predictor(Ready.from_pretrained(bundle.path), runtime, bundle.read_config().labels)
            predictor = Predictor(processor, runtime, bundle.read_config().labels)
            calls = {
                "session": lambda: session.run(["logits"], {"pixel_values": pixel_values}),
                "predict_ready_image": lambda: ready.predict(PHOTOGRAPH),
                "predict_jpeg": lambda: predictor.predict(PHOTOGRAPH),
            }
            times = in_turns(calls, rounds)
    batch, pool = [PHOTOGRAPH] * BATCH, ThreadPool("kept")
    processing = in_turns(
        {
            "image_processing_ms": lambda: processor([PHOTOGRAPH]),
            "batch_new_threads_ms": lambda: processor(batch),
            "batch_kept_threads_ms": lambda: processor(batch, pool=pool),
        },
        rounds,
    )
    pool.close()
    bare = statistics.median(times["session"])
    return {
        "session_ms": bare,
        **{name: statistics.median(of_one) for name, of_one in processing.items()},
        **{name: _added(of_one, times["session"], bare) for name, of_one in times.items() if name != "session"},
    }


def in_turns(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Times of each call in milliseconds, without the first two rounds."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for index in range(rounds + 2):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if index >= 2:
                times[name].append(1e3 * (time.perf_counter() - start))
    return times


def _added(times: list[float], bare_times: list[float], bare: float) -> dict[str, float]:
    added = statistics.median(time - bare for time, bare in zip(times, bare_times, strict=True))
    return {"ms": statistics.median(times), "added_ms": added, "overhead": added / bare}


def main() -> None:
    arguments_parser = parser(__doc__)
    arguments_parser.add_argument("--rounds", type=int, default=100, help="calls of each kind")
    arguments = arguments_parser.parse_args()
    results = measure(arguments.rounds)
    record(arguments, {"results": results})


if __name__ == "__main__":
    main()
