"""Shared by the benchmarks: arguments, the model, other tools, turns, and the record of a run."""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import random
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tables import TABLES

from vitdeploy.assess.environment.machine import machine
from vitdeploy.files.atomic import write_file

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

PRESET = "vit-base-patch16-224"
_OFFLINE = {**os.environ, "HF_HUB_OFFLINE": "1"}  # neither tool queries the Hub for a local folder
_draw = random.Random(0)


def parser(description: str | None) -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    result.add_argument("--json", type=Path, metavar="FILE", help="write the results, and what they were measured on")
    return result


def add_peer_python(to: argparse.ArgumentParser, environment: str) -> None:
    to.add_argument(
        f"--{environment}-python",
        type=Path,
        default=Path(f".venvs/{environment}/bin/python"),
        help=f"interpreter of the environment with {environment}",
    )


def vitdeploy_export(output: Path, *source: str) -> list[str]:
    return [sys.executable, "-m", "vitdeploy", "export", *source, "--to", "onnx", "-o", str(output)]


def optimum_export(
    python: Path, model: Path, output: Path, *options: str, task: str = "image-classification"
) -> list[str]:
    script = python.parent / "optimum-cli"
    if not script.exists():
        raise SystemExit(f"{script} must exist: make the environment with optimum-onnx, or name its --optimum-python")
    return [str(script), "export", "onnx", "-m", str(model), "--task", task, *options, str(output)]


def transformers_export(model: Path, output: Path, *options: str) -> list[str]:
    return [sys.executable, str(Path(__file__).with_name("transformers_export.py")), str(model), str(output), *options]


def random_bundle(folder: Path) -> Path:
    """ViT-B with random weights: a Hugging Face model repository, with vitdeploy's ONNX file in it."""
    wait(start(vitdeploy_export(folder, "--random-weights", PRESET)))
    return folder


def start(command: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=_OFFLINE)


def wait(process: subprocess.Popen[bytes]) -> Any:
    """Wait for the end of `process`; return the resource usage of it and its children, see `resource.getrusage`."""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"exit code {process.returncode} from: {subprocess.list2cmdline(list(process.args))}")  # type: ignore[arg-type]
    return usage


def resident_mb(process: int | str = "self") -> float:
    """Resident memory of a process, in units of 10^6 bytes; OSError if it has ended."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def turns(names: Sequence[str], rounds: int) -> Iterator[list[str]]:
    """The names in a new order each round: a slow phase affects all, and none always follows the same other."""
    for _ in range(rounds):
        yield _draw.sample(names, len(names))


def peer_versions(python: Path, *packages: str) -> dict[str, str]:
    code = (
        "import importlib.metadata as m, json, sys; "
        "found = {d.name: d.version for d in reversed(list(m.distributions()))}; "  # the first on the path wins
        "print(json.dumps({name: found[name] for name in sys.argv[1:]}))"
    )
    result = subprocess.run([python, "-c", code, *packages], stdout=subprocess.PIPE, check=True)
    versions: dict[str, str] = json.loads(result.stdout)
    return versions


def document(arguments: argparse.Namespace, results: dict[str, Any]) -> dict[str, Any]:
    """`results`, with the information to repeat them."""
    script = Path(sys.argv[0]).stem
    options = [
        f" --{name.replace('_', '-')}{_words(value)}" for name, value in vars(arguments).items() if _is_setting(value)
    ]
    return {
        "command": f"python benchmarks/{script}.py{''.join(options)}",
        "date": dt.datetime.now(dt.timezone.utc).date().isoformat(),
        "machine": machine(),
        "load_average": [round(load, 1) for load in os.getloadavg()],
        **results,
    }


def save(arguments: argparse.Namespace, found: dict[str, Any]) -> None:
    """Write a document to `--json` atomically."""
    if arguments.json is not None:
        write_file(arguments.json, (json.dumps(found, indent=2) + "\n").encode())


def record(arguments: argparse.Namespace, results: dict[str, Any]) -> None:
    """Print the table of `results`, and write them to `--json` with the information to repeat them."""
    found = json.loads(json.dumps(document(arguments, results)))
    print(TABLES[Path(sys.argv[0]).stem](found))
    save(arguments, found)


def _is_setting(value: object) -> bool:
    """Exclude paths, which depend on the machine and not on the measurement, and flags that are not set."""
    return isinstance(value, (int, str, list)) and value is not False


def _words(value: object) -> str:
    if value is True:
        return ""
    return f" {shlex.join(map(str, value)) if isinstance(value, list) else value}"
