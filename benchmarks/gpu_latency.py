"""Latency of torch, ONNX Runtime and engines on a GPU, with and without transfers from and to numpy.

Each row has its difference from the reference. Results are written after each configuration; failed ones, and those
left at the time limit, are listed as not run.
"""

from __future__ import annotations

import dataclasses
import itertools
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from common import PRESET, document, parser, record, save
from matrix_peak import matrix_peak
from torch.utils.flop_counter import FlopCounterMode

import vitdeploy
from vitdeploy import EngineOptions
from vitdeploy.assess.data.folder_listing import list_images
from vitdeploy.assess.metrics.outputs import DEFAULT_TOLERANCES, compare_outputs
from vitdeploy.assets import held_out_images
from vitdeploy.errors import UnavailableError, VitDeployError, first_line
from vitdeploy.predictor import load_processor
from vitdeploy.runtimes import BACKENDS, open_runtime, runtime_class
from vitdeploy.specs import AxisRange
from vitdeploy.trt.options import colons

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vitdeploy.bundle.bundle import Bundle
    from vitdeploy.runtimes.base import Runtime

HALF = ("fp16", "bf16")
QUANTIZED = ("int8", "fp8")  # of engines; speed does not depend on the images
IMAGES = vitdeploy.Quantization(vitdeploy.Calibration(held_out_images(), count=2, cache=False))
ENGINES = [name for name, row in BACKENDS.items() if row.artifact_formats == (name,) and row.device == "cuda"]


@dataclasses.dataclass(frozen=True)
class Configuration:
    backend: str
    precision: str
    options: dict[str, Any]

    def __str__(self) -> str:
        options = (f"{name}={value}" for name, value in self.options.items())
        return " ".join([self.backend, self.precision, *options])


def configurations(device: str, batch: AxisRange) -> list[Configuration]:
    """Configurations, the most important first."""
    sdpa, eager = {"attention": "sdpa"}, {"attention": "eager"}
    if device == "cpu":
        tried = [("torch", "fp32", sdpa), ("torch", "fp32", eager), ("onnxruntime", "fp32", {}), *_engines(("fp32",))]
    else:
        sizes = {"batch": colons(batch)}
        tried = [
            ("torch", "fp16", sdpa),
            *_engines(("fp16",)),
            ("onnxruntime", "fp16", {}),
            ("onnxruntime-tensorrt", "fp16", sizes),
            ("torch", "fp16", {**sdpa, "compile": True}),
            ("torch", "fp32", sdpa),
            *_engines(("fp32", *QUANTIZED, "bf16")),
            ("onnxruntime", "fp32", {}),
            ("onnxruntime-tensorrt", "fp32", sizes),
            *(("torch", precision, eager) for precision in ("fp32", *HALF)),
            ("torch", "bf16", sdpa),
            *_engines(("fp16",), graphs=False),
        ]
    return [Configuration(*each) for each in tried]


def _engines(precisions: tuple[str, ...], *, graphs: bool = True) -> list[tuple[str, str, dict[str, Any]]]:
    return [(name, precision, {"cuda_graphs": graphs}) for precision, name in itertools.product(precisions, ENGINES)]


class Measurement:
    """The shared setup for measuring the configurations in sequence.

    Args:
        folder: The bundle's folder.
        preset: Preset of the model, with random weights.
        device: "cuda" or "cpu".
        batch_sizes: Images per run.
        seconds: Approximate duration of each measurement.
    """

    def __init__(self, folder: Path, preset: str, device: str, batch_sizes: list[int], seconds: float) -> None:
        self.preset, self.device, self.seconds = preset, device, seconds
        self.bundle: Bundle = vitdeploy.export(output=folder, source=vitdeploy.SourceOptions(random_weights=preset))
        self.batch = AxisRange(min(batch_sizes), sorted(batch_sizes)[len(batch_sizes) // 2], max(batch_sizes))
        processor, files = load_processor(self.bundle), list_images(held_out_images()).files
        self.pixel_values = {
            size: processor(list(itertools.islice(itertools.cycle(files[:64]), size))) for size in batch_sizes
        }
        with open_runtime(self.bundle, "torch", {"attention": "eager"}, device=device) as runtime:
            self.expected = {size: runtime.run({"pixel_values": x}) for size, x in self.pixel_values.items()}
        counter = FlopCounterMode(display=False)
        with open_runtime(self.bundle, "torch", {"attention": "eager"}) as runtime, counter:
            runtime.run({"pixel_values": self.pixel_values[min(batch_sizes)][:1]})
        self.operations = counter.get_total_flops()  # per image

    def of(self, configuration: Configuration, peak: float | None) -> Iterator[dict[str, Any]]:
        """Yield a row for each batch size as it is measured.

        Args:
            configuration: Configuration; opened and closed here.
            peak: Peak operations per second; None if unknown.

        Raises:
            VitDeployError, RuntimeError: If it does not run here, or differs from the reference.
        """
        self._make(configuration)
        backend, precision, options = dataclasses.astuple(configuration)
        with open_runtime(self.bundle, backend, options, precision=precision, device=self.device) as runtime:
            for size in self.pixel_values:
                yield self._row(configuration, runtime, size, peak)

    def _make(self, configuration: Configuration) -> None:
        """Create the artifact unless the bundle has it."""
        backend, precision = configuration.backend, configuration.precision
        formats = BACKENDS[backend].artifact_formats
        if not formats or any(each.precision == precision for each in self.bundle.artifacts(formats)):
            return
        self.bundle = vitdeploy.export(
            to=formats[0],
            precision=precision,
            output=self.bundle.path,
            engine=EngineOptions(batch=(self.batch,)) if formats[0] in ENGINES else None,
            source=vitdeploy.SourceOptions(random_weights=self.preset),
            quantization=IMAGES if precision in QUANTIZED else None,
        )

    def _row(self, configuration: Configuration, runtime: Runtime, size: int, peak: float | None) -> dict[str, Any]:
        feeds = {"pixel_values": self.pixel_values[size]}
        (difference,) = compare_outputs(self.expected[size], runtime.run(feeds))
        here = {name: torch.from_numpy(array).to(self.device) for name, array in feeds.items()}
        results = {name: torch.empty(each.shape, device=self.device) for name, each in self.expected[size].items()}
        without = self._median_ms(lambda: runtime.run_device(here, results))
        (resident,) = compare_outputs(self.expected[size], {name: each.cpu().numpy() for name, each in results.items()})
        return {
            "backend": configuration.backend,
            "precision": configuration.precision,
            **configuration.options,
            "batch_size": size,
            "ms": without,
            "ms_with_transfers": self._median_ms(lambda: runtime.run(feeds)),
            "images_per_second": 1e3 * size / without,
            "peak_share": None if peak is None else 1e3 * self.operations * size / without / peak,
            "max_relative": max(difference.max_relative, resident.max_relative),
            "min_cosine": min(each.min_cosine for each in (difference, resident) if each.min_cosine is not None),
            "within_tolerance": all(
                each.within(DEFAULT_TOLERANCES[configuration.precision]) for each in (difference, resident)
            ),
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


def peaks(device: str, size: int, not_run: dict[str, str]) -> dict[str, float]:
    found = {}
    for precision in ("fp32", *HALF, *QUANTIZED):
        try:
            found[precision] = matrix_peak(precision, device, size)
        except RuntimeError as exc:
            not_run[f"matrix product in {precision}"] = first_line(exc)
    return found


def unavailable(backend: str) -> str | None:
    """Reason why an engine's backend does not run here; None if it runs."""
    try:
        return next(iter(runtime_class(backend).probe().values()))
    except UnavailableError as exc:
        return str(exc)


def main() -> None:
    start = time.monotonic()
    arguments_parser = parser(__doc__)
    arguments_parser.add_argument("--preset", default=PRESET, help="with random weights")
    arguments_parser.add_argument("--device", default="cuda", help="cpu to try this script without a GPU")
    arguments_parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8, 32, 256])
    arguments_parser.add_argument("--matrix-size", type=int, default=8192, help="of the peak's product")
    arguments_parser.add_argument("--seconds", type=int, default=280, help="after which nothing more is begun")
    arguments_parser.add_argument("--seconds-a-figure", type=float, default=0.5)
    arguments = arguments_parser.parse_args()
    if arguments.device != "cpu" and not torch.cuda.is_available():
        arguments_parser.exit(3, "gpu_latency needs a CUDA device, torch finds none\n")
    not_run: dict[str, str] = {}
    results: dict[str, Any] = {
        "device": "cpu" if arguments.device == "cpu" else torch.cuda.get_device_name(),
        "cuda": torch.version.cuda,
        "peaks": peaks(arguments.device, arguments.matrix_size, not_run),
        "rows": [],
        "not_run": not_run,
    }
    problems = {name: why for name in ENGINES if (why := unavailable(name))}
    with tempfile.TemporaryDirectory() as folder:
        measurement = Measurement(
            Path(folder, "bundle"),
            arguments.preset,
            arguments.device,
            arguments.batch_sizes,
            arguments.seconds_a_figure,
        )
        results["operations_an_image"] = measurement.operations
        chosen = configurations(arguments.device, measurement.batch)
        not_run.update({str(each): problems.get(each.backend, "the time was over") for each in chosen})
        for configuration in (each for each in chosen if each.backend not in problems):
            if time.monotonic() - start > arguments.seconds:
                break
            try:
                for row in measurement.of(configuration, results["peaks"].get(configuration.precision)):
                    results["rows"].append(row)
                    save(arguments, document(arguments, results))
            except (VitDeployError, RuntimeError) as exc:  # torch's, for example out of memory
                not_run[str(configuration)] = first_line(exc)
            else:
                del not_run[str(configuration)]
            save(arguments, document(arguments, results))
    record(arguments, results)


if __name__ == "__main__":
    main()
