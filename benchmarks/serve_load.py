"""`vitdeploy serve` under load on loopback: at the rate of `benchmark --scenario server`, at thrice it, and killed.

For the embedded model with its held-out images, and a ViT-Ti with random weights and synthetic JPEG files, in float32
on ONNX Runtime, over HTTP and gRPC:

- the highest rate with its 99th percentile within the bound, in one process (`vitdeploy.benchmark_scenario`); the same
  rate served, with Poisson arrivals; and if that misses the bound, the highest rate that holds it served;
- three times the rate of one process, doubled until requests are refused: refusals, their latency, memory, and the
  served rate once more;
- Triton, and then `serve` itself, killed (SIGKILL) under load and started again: the outcome of every request.

Client, front and model share the machine's cores. Every answer is compared with the predictor's.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from common import parser, record, start, vitdeploy_export, wait
from served import Load, Memory, Outcomes, Server
from server_replay import measured

import vitdeploy
from vitdeploy.assess.benchmark.image_files import image_files
from vitdeploy.assess.benchmark.scenarios.arrivals import poisson_arrivals
from vitdeploy.assets import default_checkpoint, held_out_images

MODELS = {"embedded model": [str(default_checkpoint())], "ViT-Ti": ["--random-weights", "vit-tiny-patch16-224"]}
_IMAGES = 64
_STEPS = 20  # of the rate in one process: the resolution of the search is 5 %
_REPLAYS = 3  # of a rate that counts as valid
_OVERLOAD, _DOUBLINGS = 3.0, 4
_KILLED_AT = 0.5  # of the served rate, so that a restarted server works off what waits
_KILLED_AFTER_S, _KILLED_FOR_S = 3.0, 15.0
_WARM_UP_S = 5.0
_MIN_QUERIES = 459  # the fewest that show a 99th percentile, as in benchmark's scenario
_FIRST_SEED = 20_000


class Loaded:
    """Loads on one model over one protocol, each with other arrivals."""

    def __init__(self, python: Path, load: Load, bound_ms: float, duration_s: float) -> None:
        self.python, self.load, self.bound_ms, self.duration_s = python, load, bound_ms, duration_s
        self._seed = _FIRST_SEED

    def arrivals(self, rate: float, seconds: float, fewest: int = 1) -> list[float]:
        self._seed += 1
        times: list[float] = poisson_arrivals(rate, max(round(rate * seconds), fewest), self._seed).tolist()
        return times

    def replay(self, rate: float) -> Outcomes:
        with self.load.sending(self.python, self.arrivals(rate, self.duration_s, _MIN_QUERIES)) as sending:
            found = sending.outcomes()
        print(f"  {self.load.protocol}, {rate:.4g}/s: {found.to_dict()}", flush=True)
        return found

    def holds(self, found: Outcomes) -> bool:
        """True if every request was answered, and at most 1 % of them later than the bound."""
        return found.count("answered") == len(found.outcomes) and (found.percentile_ms(99) or 0.0) <= self.bound_ms

    def highest(self, rate: float) -> tuple[float | None, list[Outcomes]]:
        """The highest of 20 steps up to `rate` of which three replays hold, with these; None and the last if none is.

        Bisected by single replays, and lowered until three others hold.
        """
        low, high = 0, _STEPS + 1
        while high - low > 1:
            middle = (low + high) // 2 if low or high <= _STEPS else _STEPS  # the rate itself first
            found = [self.replay(rate * middle / _STEPS)]
            low, high = (middle, high) if self.holds(found[0]) else (low, middle)
        for step in range(low, 0, -1):
            found = []
            while len(found) < _REPLAYS and all(map(self.holds, found)):
                found.append(self.replay(rate * step / _STEPS))
            if all(map(self.holds, found)):
                return rate * step / _STEPS, found
        return None, found

    def overload(self, rate: float, server: Server) -> dict[str, Any]:
        """A load above the capacity, and the memory of the server's processes meanwhile.

        Triton runs batches, one process single images: a rate that it holds is doubled until it refuses some.
        """
        for _ in range(_DOUBLINGS):
            with Memory(server.process.pid) as memory:
                found = self.replay(rate)
            if found.count("refused"):
                break
            rate *= 2
        quarter = max(1, len(memory.mb) // 4)
        return {
            "rate": rate, **found.to_dict(),
            "answered_per_second": rate * found.count("answered") / len(found.outcomes),
            "memory_first_quarter_mb": max(memory.mb[:quarter]), "memory_last_quarter_mb": max(memory.mb[-quarter:]),
        }  # fmt: skip

    def killed(self, rate: float, server: Server, program: str) -> dict[str, Any]:
        """A load during which a process is killed; see `Server.kill`."""
        arrivals = self.arrivals(rate, _KILLED_FOR_S)
        with self.load.sending(self.python, arrivals) as sending:
            sending.sleep_until(_KILLED_AFTER_S)
            server.kill(program)
            found = sending.outcomes()
        late = [time for time, outcome in zip(arrivals, found.outcomes, strict=True) if outcome != "answered"]
        return {
            "killed": program, "rate": rate, **found.to_dict(),
            "seconds_without_answers": max(0.0, max(late, default=0.0) - _KILLED_AFTER_S),
        }  # fmt: skip


def measure(
    name: str, bundle: Path, folder: Path, bound_ms: float, rate: float | None, arguments: argparse.Namespace
) -> dict[str, Any]:
    held_out = held_out_images() if name == "embedded model" else None
    search = measured(bundle, held_out, p99_ms=bound_ms, rate=rate, duration_s=arguments.duration)
    print(name, *search.figure, search.reason, flush=True)
    rate = search.rate
    if rate is None:
        raise SystemExit(f"{name}: no rate holds {bound_ms:g} ms in one process")
    images = write_images(held_out, folder)
    with vitdeploy.load(bundle, backend="onnxruntime", precision="fp32") as predictor:
        expected: list[dict[str, list[Any]]] = [
            {
                "labels": [best.label for best in predictions],
                "scores": [best.score for best in predictions],
                "indices": [best.index for best in predictions],
            }
            for predictions in predictor.predict(images)
        ]
    protocols = {}
    for protocol in arguments.protocols:
        with Server(arguments.triton_python, bundle) as server:
            load = Load(protocol, server.address(protocol), server.described["name"], "image", images, expected)
            loaded = Loaded(arguments.triton_python, load, bound_ms, arguments.duration)
            with load.sending(arguments.triton_python, loaded.arrivals(rate / 4, _WARM_UP_S)) as sending:
                sending.outcomes()
            same = loaded.replay(rate)
            served, replays = loaded.highest(rate)
            settled = served or rate / _STEPS
            protocols[protocol] = {
                "same_rate": {**same.to_dict(), "held": loaded.holds(same)},
                "served_rate": served,
                "replays": [replay.to_dict() for replay in replays],
                "overload": loaded.overload(_OVERLOAD * rate, server),
                "recovered": [loaded.replay(settled).to_dict() for _ in range(_REPLAYS)],
                "killed": [loaded.killed(_KILLED_AT * settled, server, program) for program in ("Triton", "serve")],
            }
    return {"bound_ms": bound_ms, "in_process": search.to_dict(), "protocols": protocols}


def write_images(folder: Path | None, to: Path) -> list[str]:
    """The image files that the scenario measures with."""
    to.mkdir()
    paths = [to / str(number) for number in range(_IMAGES)]
    for path, content in zip(paths, image_files(folder, _IMAGES).encoded, strict=True):
        path.write_bytes(content)
    return [str(path) for path in paths]


def main() -> None:
    arguments_parser = parser(__doc__)
    arguments_parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), help="models to measure")
    arguments_parser.add_argument("--p99-ms", nargs="+", type=float, default=[20.0, 100.0], help="bound of each model")
    arguments_parser.add_argument(
        "--rates", nargs="+", type=float, help="rate of each model in one process, in place of a search"
    )
    arguments_parser.add_argument("--protocols", nargs="+", choices=["http", "grpc"], default=["http", "grpc"])
    arguments_parser.add_argument("--duration", type=int, default=10, help="least seconds of a replay")
    arguments_parser.add_argument(
        "--triton-python", type=Path, default=Path(".venvs/triton/bin/python"), help="interpreter with Triton"
    )
    arguments = arguments_parser.parse_args()
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        rates = arguments.rates or [None] * len(arguments.models)
        for name, p99_ms, rate in zip(arguments.models, arguments.p99_ms, rates, strict=True):
            bundle = Path(folder, name.replace(" ", "-"))
            wait(start(vitdeploy_export(bundle, *MODELS[name])))
            results[name] = measure(name, bundle, Path(folder, f"images of {name}"), p99_ms, rate, arguments)
    record(arguments, {"models": results})


if __name__ == "__main__":
    main()
