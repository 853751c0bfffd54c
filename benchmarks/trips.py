"""Count four commands on the embedded model, each in a new process: functions, files, stack, calls between rooms.

A room is a module or folder of the first level, or of the second if the import contracts in pyproject.toml order that
level too; a call is upward if they forbid the import. Other checkouts (`--trees`) are counted by the same rules, with
their own contracts. Child processes of a command are not counted.
"""

from __future__ import annotations

import collections
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import parser, record

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

HERE = Path(__file__).resolve().parent.parent
TRIPS = {
    "export-int8": "export --model checkpoint --to onnx --int8 --calibration-data images --min-agreement .99 -o int8",
    "predict": "predict bundle images/0/0078.png",
    "gate": "gate bundle --data images --baseline baseline.json",
    "export-engine": "export --model checkpoint --to tensorrt-rtx --fp16 -o engine",
}
PREPARED = {  # the bundle and the baseline that some commands need
    "predict": ["export --model checkpoint --to onnx -o bundle"],
    "gate": [
        "export --model checkpoint --to onnx -o bundle",
        "gate bundle --data images --baseline baseline.json --update",
    ],
}
BUNDLES = ("bundle", "int8", "engine")


def count_trips(tree: Path, trips: list[str]) -> dict[str, Any]:
    order = _layers(tree)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        shutil.copytree(tree / "vitdeploy" / "assets" / "vit-tiny-digits", folder / "checkpoint")
        shutil.copytree(tree / "vitdeploy" / "assets" / "held-out", folder / "images")
        for command in dict.fromkeys(command for trip in trips for command in PREPARED.get(trip, ())):
            _run(tree, folder, "-m", "vitdeploy", *command.split())
        return {trip: _summary(order, _count(tree, folder, TRIPS[trip])) for trip in trips}


def _count(tree: Path, folder: Path, command: str) -> dict[str, Any]:
    counts = folder / "counts.json"
    _run(tree, folder, str(Path(__file__).with_name("trip_worker.py")), str(tree), str(counts), *command.split())
    found: dict[str, Any] = json.loads(counts.read_text(encoding="utf-8"))
    return found


def _run(tree: Path, folder: Path, *arguments: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(tree), "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, stdout=subprocess.DEVNULL, check=True)


def _summary(order: dict[str, dict[str, int]], counts: dict[str, Any]) -> dict[str, Any]:
    between: collections.Counter[tuple[str, str]] = collections.Counter()
    upward: collections.Counter[str] = collections.Counter()
    for caller, callee, calls in counts.pop("calls"):
        pair = room(order, caller), room(order, callee)
        if pair[0] != pair[1]:
            between[pair] += calls
            if is_upward(order, *pair):
                upward[" -> ".join(pair)] += calls
    functions = counts.pop("functions")
    opened = counts.pop("opened")
    in_bundle = re.compile(rf"\.?({'|'.join(BUNDLES)})(\.partial-\w+)?/")  # it is written under a temporary name
    return {
        "functions": len(functions),
        "files": len({file for file, _, _ in functions}),
        **counts,
        "calls_between_rooms": sum(between.values()),
        "calls_upward": sum(upward.values()),
        "calls_upward_from_exporters": sum(calls for pair, calls in upward.items() if pair.startswith("exporters")),
        "upward": dict(upward.most_common()),
        "between": {" -> ".join(pair): calls for pair, calls in between.most_common()},
        "bundle_files_opened": sum(times for path, times in opened.items() if in_bundle.match(path)),
    }


def _layers(tree: Path) -> dict[str, dict[str, int]]:
    """Map each container (dotted, without `vitdeploy`) to its rooms and their layers, numbered from the top."""
    tools = tomllib.loads((tree / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    return {
        container.removeprefix("vitdeploy").lstrip("."): {
            name.strip(): level for level, names in enumerate(contract["layers"]) for name in names.split("|")
        }
        for contract in tools["importlinter"]["contracts"]
        if contract["type"] == "layers"
        for container in contract["containers"]
    }


def room(order: dict[str, dict[str, int]], file: str) -> str:
    """The room of a file (`vitdeploy/assess/gate/gate.py`), as `assess.gate`."""
    found = ""
    for part in Path(file).with_suffix("").parts[1:]:
        if part not in order.get(found, {}):
            break
        found = f"{found}.{part}".lstrip(".")
    return found or "vitdeploy"


def is_upward(order: dict[str, dict[str, int]], caller: str, callee: str) -> bool:
    """True if the contracts forbid the import: to a higher layer, or to a neighbour on the same one."""
    container = ""
    for of_caller, of_callee in zip(caller.split("."), callee.split("."), strict=False):
        if of_caller != of_callee:
            layers = order.get(container, {})
            return of_caller in layers and of_callee in layers and layers[of_caller] >= layers[of_callee]
        container = f"{container}.{of_caller}".lstrip(".")
    return False


def _commit(tree: Path) -> str:
    result = subprocess.run(["git", "-C", tree, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return result.stdout.strip() or tree.name


def main() -> None:
    arguments_parser = parser(__doc__)
    arguments_parser.add_argument("--trees", type=Path, nargs="+", default=[HERE], help="checkouts to count")
    arguments_parser.add_argument("--trips", nargs="+", choices=TRIPS, default=list(TRIPS), help="commands to count")
    arguments = arguments_parser.parse_args()
    trees = {_commit(tree): count_trips(tree.resolve(), arguments.trips) for tree in arguments.trees}
    arguments.trees = list(trees)  # folders depend on the machine
    record(arguments, {"commands": {trip: TRIPS[trip] for trip in arguments.trips}, "trees": trees})


if __name__ == "__main__":
    main()
