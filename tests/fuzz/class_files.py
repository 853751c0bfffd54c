"""Files about classes, beside a checkpoint: class embeddings (.npz), and class names (text and JSON)."""

from __future__ import annotations

import io
import json
import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from fuzz.arrays import odd_archive
from fuzz.base import LABELS
from fuzz.cases import Case
from fuzz.damage import ODD_VALUES, choose, damaged, odd_json
from fuzz.special_files import replace
from vitdeploy.sources.architectures.class_names_file import read_class_names
from vitdeploy.sources.class_embeddings import ClassEmbeddings

_SPECIAL_SHARE = 0.03
_WIDTH = 8


class ClassEmbeddingFiles:
    """Class embeddings.

    Oracle: refused with 4; or each class has its own name, and the rows of weights have one length, which is positive.
    """

    def __init__(self, base: Path) -> None:
        del base
        vectors = np.random.default_rng(0).standard_normal((len(LABELS), _WIDTH))
        self._arrays: dict[str, Any] = {
            "names": np.array(LABELS), "vectors": vectors, "logit_scale": np.array(2.0),
            "logit_bias": np.array(-1.0), "activation": np.array("sigmoid"),
        }  # fmt: skip
        self._content = _saved(self._arrays)
        with zipfile.ZipFile(io.BytesIO(self._content)) as archive:
            self._members = {name: archive.read(name) for name in archive.namelist()}

    def make(self, rng: np.random.Generator, folder: Path) -> Case:
        file = folder / "classes.npz"
        if rng.random() < 0.5:
            note, content, _ = odd_archive(rng, self._content, self._members)
        else:
            note, content = self._odd_values(rng)
        file.write_bytes(content)
        if rng.random() < _SPECIAL_SHARE:
            note, _ = replace(rng, file)

        def check(classes: ClassEmbeddings) -> str | None:
            lengths = np.linalg.norm(classes.weight.astype(np.float64), axis=1)
            count = len(set(classes.names))
            if classes.weight.shape != (count, classes.width) or classes.bias.shape != (count,):
                return f"{len(classes.names)} classes have weights {classes.weight.shape}, bias {classes.bias.shape}"
            if not np.isfinite(classes.bias).all() or not lengths.min() > 0 or not np.allclose(lengths, lengths[0]):
                return f"bias {classes.bias}, lengths of the weights {lengths}"
            return None

        return Case(note, (), check=check, call=lambda: ClassEmbeddings.read(file))

    def _odd_values(self, rng: np.random.Generator) -> tuple[str, bytes]:
        name = choose(rng, sorted(self._arrays))
        numbers = (math.nan, math.inf, 0.0, 1e-320, 1e308, -1e308, 1e39, 7.0, -7.0)
        texts = ("", " ", "a\nb", "\ud800", "x" * 10_000, "softmax", "SIGMOID", "cat")
        shape = choose(rng, ((), (1,), (0,), (3,), (4,), (3, 1), (3, _WIDTH), (1, 1, 1), (3, 0)))
        if rng.random() < 0.5:
            array = np.array(self._arrays[name])
            at = tuple(int(rng.integers(size)) for size in array.shape)
            array = array.astype(object) if array.dtype.kind == "U" else array
            array[at] = choose(rng, texts if array.dtype == object else numbers)
            array = array.astype(str) if array.dtype == object else array
        elif rng.random() < 0.5:
            kind = choose(rng, ("<f2", ">f4", "<f8", "<i8", "<c8", "?"))
            with np.errstate(all="ignore"):
                array = np.full(shape, choose(rng, numbers)).astype(kind)
        else:
            array = np.full(shape, choose(rng, texts))
        return f"values: {name} {array.dtype} {array.shape}", _saved(self._arrays | {name: array})


def _saved(arrays: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


class ClassNameFiles:
    """Class names.

    Oracle: refused with 4; or there are names, each a text that is not blank.
    """

    def __init__(self, base: Path) -> None:
        del base
        by_index = {str(index): label for index, label in enumerate(LABELS)}
        by_name = {label: index for index, label in enumerate(LABELS)}
        self._forms: list[dict[str, Any]] = [
            by_index, by_name, {"id2label": by_index}, {"label_names": list(LABELS), "architecture": "x"},
        ]  # fmt: skip

    def make(self, rng: np.random.Generator, folder: Path) -> Case:
        name = choose(rng, ("names.json", "names.json", "names.JSON", "names.txt", "names"))
        draw = rng.random()
        if name.lower().endswith(".json") and draw < 0.8:
            note, content, _ = odd_json(rng, choose(rng, self._forms))
        elif name.lower().endswith(".json"):
            names = [choose(rng, (*LABELS, *ODD_VALUES)) for _ in range(int(rng.integers(1, 4)))]
            note, content = "list", json.dumps(names).encode("utf-8", "surrogatepass")
        else:
            note, content = damaged(rng, "\n".join(LABELS).encode())
        (folder / name).write_bytes(content)
        if rng.random() < _SPECIAL_SHARE:
            note, _ = replace(rng, folder / name)

        def check(names: tuple[str, ...]) -> str | None:
            return None if names and all(isinstance(one, str) and one.strip() for one in names) else f"{names!r:.200}"

        return Case(f"{name}: {note}", (), check=check, call=lambda: read_class_names(name))
