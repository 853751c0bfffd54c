"""Take the results of a GPU machine into benchmarks/results, and rewrite the tables and pages that tell of them.

Results of an earlier run on the same device, with the same versions, stay where the new run has none.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import tables

from gpu.tables import ENGINES

RESULTS = Path(__file__).parents[1] / "results"
LEDGERS = ("gpu_agreement.json", "gpu_questions.json", "gpu_tests.json", "gpu_latency.json")
OTHERS = ("attention_gpu.json", "gpu_check.json")
_LEFT = ("not started", "skipped")

Document = dict[str, Any]


def take(folder: Path, results: Path) -> list[str]:
    """Copy or merge the files of `folder` into `results`; return their names.

    Raises:
        SystemExit: If there are none, or they are not of a GPU.
    """
    found = {name: _read(folder / name) for name in (*LEDGERS, *OTHERS) if (folder / name).exists()}
    if not found.keys() & {*LEDGERS, "attention_gpu.json"}:
        raise SystemExit(f"{folder} has no results of a GPU; no step of check.py came as far")
    devices = {found[name].get("device", "cpu") for name in found if name != "gpu_check.json"}
    if "cpu" in devices:
        raise SystemExit(f"{folder} has results of a CPU; only those of a GPU are recorded")
    for name, document in found.items():
        if name == "gpu_check.json":
            document = {**next(iter(about(found))), **document}
        before = _read(results / name) if (results / name).exists() else None
        if before is not None and name in LEDGERS and _setting(before) == _setting(document):
            document = merged(before, document)
        (results / name).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return list(found)


def about(found: dict[str, Document]) -> list[Document]:
    """The device, machine and date of each results file, for `gpu_check.json`, which does not import torch."""
    keys = ("date", "machine", "load_average", "device", "cuda", "compute_capability", "driver_cuda")
    of_others = [document for name, document in found.items() if name != "gpu_check.json"]
    return [{"command": "make gpu-check", **{key: each[key] for key in keys if key in each}} for each in of_others]


def merged(before: Document, after: Document) -> Document:
    """The later run's results, and the earlier one's of attempts that the later one did not make."""
    tried = {name for name, attempt in after["attempts"].items() if attempt["result"] not in _LEFT}
    kept = {name: attempt for name, attempt in before["attempts"].items() if name not in tried}
    made = {name for name, attempt in kept.items() if attempt["result"] not in _LEFT}
    new = {name: attempt for name, attempt in after["attempts"].items() if name not in made}
    combined: Document = {
        key: {**before[key], **after[key]} for key in ("peaks", "operations_an_image") if key in after
    }
    return {
        **after,
        **combined,
        "attempts": {**kept, **new},
        "rows": [*(row for row in before["rows"] if row["attempt"] in kept), *after["rows"]],
    }


def _setting(document: Document) -> list[str]:
    """Device and versions, which the table of a document states once for all its rows."""
    return [document["device"], *(document["machine"].get(name, "") for name in ENGINES)]


def _read(path: Path) -> Document:
    document: Document = json.loads(path.read_text(encoding="utf-8"))
    return document


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("folder", type=Path, help="$OUT of check.py, as it came back")
    arguments = options.parse_args()
    print("recorded:", ", ".join(take(arguments.folder, RESULTS)))
    tables.write()


if __name__ == "__main__":
    main()
