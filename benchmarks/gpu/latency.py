"""Latency of torch, ONNX Runtime and engines on a GPU, with and without transfers from and to numpy.

Each row has its share of the device's matrix peak, and its difference from the reference in float32.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from common import PRESET, document, parser
from matrix_peak import matrix_peak
from torch.utils.flop_counter import FlopCounterMode

from gpu.device import about, check_backend, check_device
from gpu.models import BATCH, QUANTIZED, artifact
from gpu.rows import Ledger, Row
from gpu.tables import gpu_latency as table
from vitdeploy.assess.data.folder_listing import list_images
from vitdeploy.assess.metrics.outputs import DEFAULT_TOLERANCES, compare_outputs
from vitdeploy.assets import held_out_images
from vitdeploy.predictor import load_processor
from vitdeploy.runtimes import BACKENDS, open_runtime
from vitdeploy.trt.options import colons

if TYPE_CHECKING:
    from vitdeploy.runtimes.base import Runtime

ENGINES = [name for name, row in BACKENDS.items() if row.artifact_formats == (name,) and row.device == "cuda"]
LIMIT_S = 75.0  # of one configuration; includes the wait for its artifact
SDPA, EAGER = {"attention": "sdpa"}, {"attention": "eager"}


@dataclasses.dataclass(frozen=True)
class Configuration:
    backend: str
    precision: str
    options: dict[str, Any]

    def __str__(self) -> str:
        options = (f"{name}={value}" for name, value in self.options.items())
        return " ".join([self.backend, self.precision, *options])


def configurations(precision: str, *, variants: bool) -> list[Configuration]:
    """Configurations in a precision, the most important first.

    Args:
        variants: True for other settings of the same backends instead of their defaults.
    """
    engines = reversed(ENGINES)  # TensorRT last: it builds on the GPU, in minutes
    floats = precision not in QUANTIZED
    with_graph = floats and precision != "bf16"  # by ONNX Runtime
    tried: list[tuple[str, dict[str, Any]]]
    if variants:
        tried = [("torch", EAGER)] if floats else []
        tried += [(name, {"cuda_graphs": False}) for name in engines]
        tried += [("onnxruntime-tensorrt", {"batch": colons(BATCH)})] if with_graph else []
        tried += [("torch", {**SDPA, "compile": True})] if floats else []  # last: it compiles for each batch size
    else:
        tried = [("torch", SDPA)] if floats else []
        tried += [(name, {}) for name in engines]
        tried += [("onnxruntime", {})] if with_graph else []
    return [Configuration(backend, precision, options) for backend, options in tried]


class Measurement:
    """Inputs, reference outputs and operations of one model.

    Args:
        bundles: Folder of the models.
        model: Name of a model, see models.py.
        device: "cuda" or "cpu".
        batch_sizes: Images per run.
        seconds: Approximate duration of each measurement.
    """

    def __init__(self, bundles: Path, model: str, device: str, batch_sizes: list[int], seconds: float) -> None:
        self.bundles, self.model, self.device, self.seconds = bundles, model, device, seconds
        bundle = artifact(bundles, model, "onnx", "fp16")
        processor, files = load_processor(bundle), list_images(held_out_images()).files
        self.pixel_values = {
            size: processor(list(itertools.islice(itertools.cycle(files[:64]), size))) for size in batch_sizes
        }
        with open_runtime(bundle, "torch", EAGER, device=device) as runtime:
            self.expected = {size: runtime.run({"pixel_values": x}) for size, x in self.pixel_values.items()}
            counter = FlopCounterMode(display=False)
            with counter:
                runtime.run({"pixel_values": self.pixel_values[min(batch_sizes)][:1]})
        self.operations = counter.get_total_flops()  # per image

    def rows(self, configuration: Configuration, peak: float | None) -> Iterator[Row]:
        """Yield a row for each batch size as it is measured.

        Args:
            peak: Peak operations per second; None if unknown.

        Raises:
            VitDeployError, RuntimeError: If the configuration does not run.
        """
        backend, precision, options = configuration.backend, configuration.precision, configuration.options
        formats = BACKENDS[backend].artifact_formats
        bundle = artifact(self.bundles, self.model, *((formats[0], precision) if formats else ("onnx", "fp16")))
        with open_runtime(bundle, backend, options, precision=precision, device=self.device) as runtime:
            for size in self.pixel_values:
                yield self._row(configuration, runtime, size, peak)

    def _row(self, configuration: Configuration, runtime: Runtime, size: int, peak: float | None) -> Row:
        feeds, expected = {"pixel_values": self.pixel_values[size]}, self.expected[size]
        differences = compare_outputs(expected, runtime.run(feeds))
        here = {name: torch.from_numpy(array).to(self.device) for name, array in feeds.items()}
        results = {name: torch.empty(each.shape, device=self.device) for name, each in expected.items()}
        without = self._median_ms(lambda: runtime.run_device(here, results))
        differences += compare_outputs(expected, {name: each.cpu().numpy() for name, each in results.items()})
        tolerance = DEFAULT_TOLERANCES[configuration.precision]
        return {
            "model": self.model,
            "backend": configuration.backend,
            "precision": configuration.precision,
            "options": configuration.options,
            "batch_size": size,
            "ms": without,
            "ms_with_transfers": self._median_ms(lambda: runtime.run(feeds)),
            "images_per_second": 1e3 * size / without,
            "peak_share": None if peak is None else 1e3 * self.operations * size / without / peak,
            "max_relative": max(difference.max_relative for difference in differences),
            "min_cosine": min(each.min_cosine for each in differences if each.min_cosine is not None),
            "passed": all(difference.within(tolerance) for difference in differences),
        }

    def _median_ms(self, work: Callable[[], object]) -> float:
        """Median of as many runs as fit, at least five, after three untimed ones."""
        for _ in range(3):
            work()
        times: list[float] = []
        end = time.perf_counter() + self.seconds
        while len(times) < 5 or time.perf_counter() < end:
            start = time.perf_counter()
            work()
            times.append(1e3 * (time.perf_counter() - start))
        return statistics.median(times)


def add_peak(ledger: Ledger, precision: str, device: str, size: int) -> None:
    """Measure the matrix peak of a precision, unless the file has it."""

    def measured() -> Iterator[Row]:
        ledger.document["peaks"][precision] = matrix_peak(precision, device, size)
        yield from ()

    ledger.attempt(f"matrix product {precision}", LIMIT_S, measured)


def options() -> argparse.ArgumentParser:
    options = parser(__doc__)
    options.add_argument("--bundles", type=Path, required=True, help="folder of the models, see models.py")
    options.add_argument("--models", nargs="+", default=[PRESET])
    options.add_argument("--precisions", nargs="+", choices=list(DEFAULT_TOLERANCES), default=["fp16"])
    options.add_argument("--variants", action="store_true", help="other settings instead of the defaults")
    options.add_argument("--device", default="cuda", help="cpu to try this script without a GPU")
    options.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8, 32, 256])
    options.add_argument("--matrix-size", type=int, default=8192, help="of the peak's product")
    options.add_argument("--seconds-a-figure", type=float, default=0.4)
    return options


def main() -> None:
    arguments = options().parse_args()
    check_device(arguments.device)
    ledger = Ledger(arguments.json, document(arguments, about(arguments.device)))
    for key in ("peaks", "operations_an_image"):
        ledger.document.setdefault(key, {})
    for precision in arguments.precisions:
        add_peak(ledger, precision, arguments.device, arguments.matrix_size)

    @functools.cache
    def measurement(model: str) -> Measurement:
        chosen = Measurement(
            arguments.bundles, model, arguments.device, arguments.batch_sizes, arguments.seconds_a_figure
        )
        ledger.document["operations_an_image"][model] = chosen.operations
        return chosen

    def rows(model: str, configuration: Configuration) -> Iterator[Row]:
        check_backend(configuration.backend, arguments.device)  # before the reference is computed
        yield from measurement(model).rows(configuration, ledger.document["peaks"].get(configuration.precision))

    works = {
        f"{model} {each}": functools.partial(rows, model, each)
        for model, precision in itertools.product(arguments.models, arguments.precisions)
        for each in configurations(precision, variants=arguments.variants)
    }
    ledger.attempt_each(works, LIMIT_S)
    print(table(ledger.document))
    raise SystemExit(ledger.exit_code())


if __name__ == "__main__":
    main()
