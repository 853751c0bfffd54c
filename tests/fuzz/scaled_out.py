"""Rows of images for the callable of Ray Data, Daft and Spark, and the settings of a Ray Serve deployment."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from fuzz.cases import DAMAGED, PASSED, UNAVAILABLE, USAGE, Case
from fuzz.damage import ODD_VALUES, choose
from fuzz.images import Images
from vitdeploy.serving.scale_out.batch_callable import BatchPredictor, Resolved, resolve
from vitdeploy.serving.scale_out.serve_config import ServeConfig

_BESIDE_IMAGES = ("id", "label", "error", "pixel_values", "image", "")


class ImageRows:
    """A batch of columns, with good images between odd values.

    Oracle: refused with 2; or a good image has the label that it has alone, and every other row a label or an error.
    """

    def __init__(self, base: Path) -> None:
        self._call = BatchPredictor(base / "bundle")
        self._path = min((base / "data").rglob("*.png"))
        self._good = self._path.read_bytes()
        self._label = self._call({"image": np.array([self._good], object)})["label"][0]

    def make(self, rng: np.random.Generator, folder: Path) -> Case:
        values, good = np.empty(int(rng.integers(1, 5)), object), []
        for row in range(len(values)):
            good.append(rng.random() < 0.5)
            values[row] = self._good if good[-1] else self._odd(rng)
            if rng.random() < 0.2:
                values[row] = {"bytes": values[row], "path": str(self._path)}
        batch: dict[str, Any] = {"image": values}
        if rng.random() < 0.2:
            batch[choose(rng, _BESIDE_IMAGES)] = np.arange(len(values))

        def check(columns: dict[str, np.ndarray]) -> str | None:
            for row, whole in enumerate(good):
                label, error = columns["label"][row], columns["error"][row]
                if (whole and label != self._label) or bool(label) == bool(error):
                    return f"row {row} has the label {label!r} and the error {error!r}"
            return None

        return Case(f"rows: {values!r:.200}", (), frozenset({PASSED, USAGE}), check, lambda: self._call(batch))

    def _odd(self, rng: np.random.Generator) -> Any:
        arrays = (np.zeros((4, 5, 3), np.uint8), np.zeros((4, 5), np.float32), np.zeros((0, 4, 3), np.uint8))
        others = (None, b"", bytearray(self._good), memoryview(self._good), str(self._path), self._path, *arrays)
        return Images.content(rng)[1] if rng.random() < 0.5 else choose(rng, (*others, *ODD_VALUES))


class ServeConfigs:
    """The `user_config` of a deployment, and the options by which it opens the bundle.

    Oracle: refused with 2, with 3 where its backend is not here, or with 4 where there is no such bundle.
    """

    def __init__(self, base: Path) -> None:
        self._values = dataclasses.asdict(ServeConfig(str(base / "bundle")))

    def make(self, rng: np.random.Generator, folder: Path) -> Case:
        values = dict(self._values)
        name = choose(rng, sorted(values))
        kind = choose(rng, ("value", "inner"))
        if kind == "inner":
            name = choose(rng, ("rows", "options"))
            keys = (
                "top_k",
                "pool",
                "normalize",
                "x",
                "",
                "backend",
                "precision",
                "device",
                "intra_op_threads",
                "bundle",
            )
            values[name] = {choose(rng, keys): choose(rng, (*ODD_VALUES, "onnxruntime", "fp32", "mean"))}
        else:
            values[name] = choose(rng, (*ODD_VALUES, "bundle", "1", 0.01))

        def call() -> Resolved:
            config = ServeConfig(**values)
            config.parsed_rows()
            return resolve(config.bundle, config.options, 1)

        allowed = frozenset({PASSED, USAGE, UNAVAILABLE, DAMAGED})
        return Case(f"settings: {name} {kind}", (), allowed, call=call)
