"""Caches of calibration: a damaged one counts as absent, and changes no range."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from small_graphs import graph_of

from fuzz.cases import PASSED, Case
from fuzz.damage import choose, damaged, odd_json
from fuzz.special_files import replace, rewrite
from vitdeploy.exporters.graph.measured_graph import measured_graph
from vitdeploy.exporters.quantization.number_format import UINT8
from vitdeploy.exporters.quantization.ranges.methods import HistogramReducer, MinMax
from vitdeploy.exporting.quantization.measure import measure
from vitdeploy.specs import PixelFormat

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path


class CalibrationCaches:
    """The files that ranges are kept in.

    Oracle: the ranges are those that were measured, whatever the file holds, and are kept again. Nothing is refused: a
    cache that cannot be read costs time alone.
    """

    def __init__(self, base: Path) -> None:
        del base
        self._model = graph_of("agraph (float[N, 4] x) => (float[N, 4] y) { y = Relu (x) }")

    def make(self, rng: np.random.Generator, folder: Path) -> Case:
        wanted = self._ranges(folder)
        (file,) = (folder / "cache").iterdir()
        checksum, content = file.read_bytes().split(b"\n", 1)
        kind = choose(rng, ("damaged", "content", "special", "swapped checksum", "empty"))
        if kind == "damaged":
            note, text = damaged(rng, checksum + b"\n" + content)
        elif kind == "content":
            note, odd, _ = odd_json(rng, {"x": [-1.0, 1.0], "y": [0.0, 1.0]})
            text = checksum + b"\n" + odd
        else:
            note, text = kind, content + b"\n" + checksum if kind != "empty" else b""
        rewrite(file, text)
        if kind == "special":
            note, _ = replace(rng, file)

        def check(found: Any) -> str | None:
            return None if found == wanted else f"ranges are {found}, {wanted} were measured"

        return Case(f"cache: {note}", (), frozenset({PASSED}), check, lambda: self._ranges(folder))

    def _ranges(self, folder: Path) -> dict[str, Any]:
        graph, reducer = measured_graph(self._model, self._model.graph.inputs), HistogramReducer(MinMax(), UINT8)
        return measure(graph, [_OneImage()], reducer, PixelFormat(), folder / "cache", folder / "made")


class _OneImage:
    def sha256(self) -> str:
        return "sha256"

    def run(self, path: Path, pixels: PixelFormat) -> Iterator[Mapping[str, np.ndarray[Any, Any]]]:
        yield {"value_0": np.array([[-1.5, 0.0, 0.25, 2.0]], np.float32)}
