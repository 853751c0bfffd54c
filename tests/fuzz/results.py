"""JSON that one command prints and another reads: recorded benchmarks, and the nodes that a bisection keeps."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fuzz.cases import Case
from fuzz.damage import damaged, odd_json
from fuzz.special_files import replace
from vitdeploy.assess.benchmark.comparison import BenchmarkComparison, compare_benchmarks
from vitdeploy.cli.debug import kept_nodes

if TYPE_CHECKING:
    import numpy as np

_SPECIAL_SHARE = 0.03
_LATENCY = {
    "artifact": "onnx-fp32", "backend": "onnxruntime", "precision": "fp32", "changes": "", "batch_size": 1,
    "image_size": None, "processes_ms": [[1.0, 1.1, 0.9], [1.2, 1.0, 1.1]],
}  # fmt: skip
_RECORDED: dict[str, Any] = {
    "bundle": "vit", "machine": {"cpu": "a processor", "cpus": "2"}, "settings": {"rounds": 3, "batch_sizes": [1, 8]},
    "latencies": [_LATENCY, {**_LATENCY, "batch_size": 8, "image_size": [32, 32]}], "notes": ["a note"],
}  # fmt: skip
_KEPT = {"kept": [{"name": "node_1", "error": 0.5}, {"name": "node_2", "error": 0.1}], "status": "passed"}


class RecordedBenchmarks:
    """Two results of `benchmark --json`, of which one is odd.

    Oracle: refused with 4, or a setting or more is compared, in strict JSON.
    """

    def __init__(self, base: Path) -> None:
        del base

    def make(self, rng: np.random.Generator, folder: Path) -> Case:
        (folder / "before.json").write_text(json.dumps(_RECORDED), encoding="utf-8")
        file = folder / "after.json"
        if rng.random() < 0.2:
            note, content = damaged(rng, json.dumps(_RECORDED).encode())
        else:
            note, content, _ = odd_json(rng, copy.deepcopy(_RECORDED))
        file.write_bytes(content)
        if rng.random() < _SPECIAL_SHARE:
            note, _ = replace(rng, file)
        names = ("before.json", "after.json") if rng.random() < 0.5 else ("after.json", "before.json")

        def check(result: BenchmarkComparison) -> str | None:
            json.dumps(result.to_dict(), allow_nan=False)
            count = len(result.changes_by_setting)
            return None if 1 <= count <= len(_RECORDED["latencies"]) else f"{count} changes"

        return Case(note, ("benchmark", *names, "--json"), check=check, call=lambda: compare_benchmarks(*names))


class KeptNodes:
    """A result of `debug bisect --json`.

    Oracle: refused with 4, or the names are texts.
    """

    def __init__(self, base: Path) -> None:
        del base

    def make(self, rng: np.random.Generator, folder: Path) -> Case:
        file = folder / "nodes.json"
        note, content, _ = odd_json(rng, copy.deepcopy(_KEPT))
        file.write_bytes(content)
        if rng.random() < _SPECIAL_SHARE:
            note, _ = replace(rng, file)

        def check(names: tuple[str, ...]) -> str | None:
            return None if all(isinstance(name, str) for name in names) else f"{names!r:.200}"

        return Case(note, (), check=check, call=lambda: kept_nodes(file.name))
