"""Check the intervals of `vitdeploy benchmark`: how often they contain the truth, and whether they show 5 %.

An experiment is one benchmark of three settings: a session, one that is identical, and one with a planted slowdown: its
runtime waits, busily, for 5 % of each run's time. The interval of the ratio of the first two should contain 1 in 19 of
20 experiments; that of the third to the first should exclude it. Half of the experiments run beside a process that
keeps one CPU busy.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import document, parser, record, save, start, vitdeploy_export, wait

from vitdeploy.assess.benchmark.setting import Load, Setting
from vitdeploy.assess.benchmark.turns import Request, time_settings
from vitdeploy.assess.runs.targets import Selected
from vitdeploy.bundle.bundle import Bundle

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vitdeploy.runtimes.base import Runtime

SELECTED = Selected("onnx-fp32", "onnxruntime", "fp32")
BURN = "while True: pass"


@dataclasses.dataclass(frozen=True)
class Slowed(Setting):
    """A setting whose runs take longer by a share of their time."""

    share: float = 0.05

    __hash__ = Setting.__hash__

    def open(self, bundle: Bundle, device: str, *, any_size: bool = False) -> Runtime:
        runtime = super().open(bundle, device, any_size=any_size)
        runtime.run = _slowed(runtime.run, self.share)  # type: ignore[method-assign]
        return runtime


def _slowed(run: Callable[..., Any], share: float) -> Callable[..., Any]:
    def slowed(feeds: Any) -> Any:
        begin = time.perf_counter()
        outputs = run(feeds)
        end = time.perf_counter()
        while time.perf_counter() < end + share * (end - begin):
            pass
        return outputs

    return slowed


@contextlib.contextmanager
def burner(burning: bool) -> Iterator[None]:
    """A process that keeps one CPU busy, if `burning`."""
    if not burning:
        yield
        return
    process = subprocess.Popen([sys.executable, "-c", BURN])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def experiment(bundle: Bundle, options: argparse.Namespace, seed: int, *, burning: bool) -> dict[str, Any]:
    """Ratios to the first setting, with their intervals."""
    # Severities of messages differ in nothing that is timed.
    first, same = (Setting(SELECTED, {"log_severity": severity}) for severity in (2, 3))
    slow = Slowed(SELECTED, {"log_severity": 4}, share=options.slowdown)
    with burner(burning):
        timed = time_settings(
            bundle,
            [Request(setting, (Load(options.batch_size),)) for setting in (first, same, slow)],
            images=_image(),
            processes=options.processes,
            rounds=options.rounds,
            runs=options.runs,
            from_files=False,
            seed=seed,
        )
    base, *others = timed.latencies
    identical, slowed = (latency.ratio(base) for latency in others)
    return {
        "burner": burning,
        "p50_ms": base.p50_ms,
        "identical": identical.to_dict(),
        "slowed": slowed.to_dict(),
    }


def _image() -> tuple[bytes, ...]:
    from vitdeploy.assess.benchmark.image_files import image_files

    return image_files(None, 1).encoded


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--preset", default="vit-tiny-patch16-224", help="model, with random weights")
    arguments.add_argument("--experiments", type=int, default=20, help="with and without the burner, each")
    arguments.add_argument("--batch-size", type=int, default=1)
    arguments.add_argument("--processes", type=int, default=5)
    arguments.add_argument("--rounds", type=int, default=10)
    arguments.add_argument("--runs", type=int, default=10)
    arguments.add_argument("--slowdown", type=float, default=0.05)
    arguments.add_argument(
        "--seconds", type=float, default=float("inf"), help="stop after this time; a later run continues with the file"
    )
    arguments.add_argument("--bundle", type=Path, help="a bundle of the model with onnx-fp32, instead of a new one")
    options = arguments.parse_args()
    deadline = time.monotonic() + options.seconds
    del options.seconds
    found = _earlier(options)
    with tempfile.TemporaryDirectory() as folder:
        if options.bundle is None:
            wait(start(vitdeploy_export(Path(folder, "bundle"), "--random-weights", options.preset)))
        bundle = Bundle.open(options.bundle or Path(folder, "bundle"))
        for number in range(len(found), 2 * options.experiments):
            if time.monotonic() > deadline:
                break
            found.append(experiment(bundle, options, number, burning=number % 2 == 1))
            print(found[-1], flush=True)
            save(options, document(options, {"slowdown": options.slowdown, "experiments": found}))
    record(options, {"slowdown": options.slowdown, "experiments": found})


def _earlier(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Recorded experiments with the same options."""
    if options.json is None or not options.json.exists():
        return []
    earlier: dict[str, Any] = json.loads(options.json.read_text(encoding="utf-8"))
    command = document(options, {})["command"]
    if earlier["command"] != command:
        raise SystemExit(f"{options.json} must have the results of {command}, it has those of {earlier['command']}")
    found: list[dict[str, Any]] = earlier["experiments"]
    return found


if __name__ == "__main__":
    main()
