"""The server scenario's rate, replayed: how often its 99th percentile stays within the bound.

`vitdeploy.benchmark_scenario` finds the highest rate of ONNX Runtime (float32, CPU) on the embedded model, with its
held-out images, and on ViT-S with random weights, with synthetic JPEG files of 640x480 pixels. The rate is then
replayed with other arrivals, each time in a new process.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from common import parser, record, start, vitdeploy_export, wait

import vitdeploy
from vitdeploy.assets import default_checkpoint, held_out_images

if TYPE_CHECKING:
    from vitdeploy.assess.benchmark.scenarios.server_result import ServerResult

_FIRST_SEED = 10_000  # the search uses seeds from 0 up
MODELS = {"embedded model": [str(default_checkpoint())], "ViT-S": ["--random-weights", "vit-small-patch16-224"]}


def measured(bundle: Path, images: Path | None, **options: Any) -> ServerResult:
    scenario = vitdeploy.Scenario("server", **options)
    result = vitdeploy.benchmark_scenario(bundle, scenario, backends=["onnxruntime"], images=images)
    if not result.results:
        raise SystemExit(str(result.skipped))
    return cast("ServerResult", result.results[0])


def measure(bundle: Path, images: Path | None, arguments: argparse.Namespace, p99_ms: float) -> dict[str, Any]:
    """The found rate and its replays."""
    options = {"p99_ms": p99_ms, "duration_s": arguments.duration}
    found = measured(bundle, images, **options)
    print(found.name, *found.figure, found.reason, flush=True)
    if found.rate is None:
        return {"search": found.to_dict(), "replays": []}
    replays = []
    for index in range(arguments.replays):
        replay = measured(bundle, images, rate=found.rate, seed=_FIRST_SEED + index, **options)
        print(f"replay {index + 1}: {replay.percentile_ms(99):.2f} ms, {replay.late_share:.2%} late", flush=True)
        replays.append({
            "p99_ms": replay.percentile_ms(99), "late_share": replay.late_share, "held": replay.held == 1,
            "lateness_p99_ms": replay.lateness_ms,
        })  # fmt: skip
    return {"search": found.to_dict(), "replays": replays}


def main() -> None:
    arguments_parser = parser(__doc__)
    arguments_parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), help="models to measure")
    arguments_parser.add_argument("--p99-ms", nargs="+", type=float, default=[20.0, 250.0], help="bound of each model")
    arguments_parser.add_argument("--duration", type=int, default=10, help="least seconds of a replay")
    arguments_parser.add_argument("--replays", type=int, default=20, help="replays of the found rate")
    arguments = arguments_parser.parse_args()
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, p99_ms in zip(arguments.models, arguments.p99_ms, strict=True):
            bundle = Path(folder, name.replace(" ", "-"))
            wait(start(vitdeploy_export(bundle, *MODELS[name])))
            images = held_out_images() if name == "embedded model" else None
            results[name] = measure(bundle, images, arguments, p99_ms)
    record(arguments, {"models": results})


if __name__ == "__main__":
    main()
