"""Labelled images in folders, .csv, .tsv and parquet files: with damage, odd names and things that are no file."""

from __future__ import annotations

import io
import json
import os
import shutil
from typing import TYPE_CHECKING, Any

from fuzz.base import LABELS
from fuzz.cases import DAMAGED, PASSED, Case
from fuzz.damage import ODD_VALUES, choose, damaged
from fuzz.special_files import copy_tree, replace, rewrite

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy as np

_CATS = ("cat ", " cat", ".cat", "CAT", "cat,dog")
_ODD_NAMES = ("a\nb", "\udcff", "é", *_CATS, "0", "9" * 12, "-1", "x" * 200, "LABEL_0", "1e3")


class DataSets:
    """Inputs of evaluate.

    Oracle: refused with 4; or the accuracy is a share of the images that it states, of which there is one or more, and
    no more than there are files or rows.
    """

    def __init__(self, base: Path) -> None:
        self._base = base
        self._kinds: list[Callable[[np.random.Generator, Path], tuple[str, str]]] = [self._folder, self._table]
        if (base / "data.parquet").exists():
            self._kinds.append(self._parquet)

    def make(self, rng: np.random.Generator, folder: Path) -> Case:
        note, name = self.draw(rng, folder)
        limit = ("--limit", "3") if rng.random() < 0.2 else ()
        args = ("evaluate", str(self._base / "bundle"), "--data", name, "--backend", "onnxruntime", *limit, "--json")
        return Case(note, args, frozenset({PASSED, DAMAGED}), _check)

    def draw(self, rng: np.random.Generator, folder: Path) -> tuple[str, str]:
        """Write a data set; how it was made, and its name."""
        return choose(rng, self._kinds)(rng, folder)

    def _folder(self, rng: np.random.Generator, folder: Path) -> tuple[str, str]:
        data = copy_tree(self._base / "data", folder / "data")
        files = sorted(data.rglob("*.png"))
        file, label = choose(rng, files), data / choose(rng, LABELS)

        def image() -> str:
            note, content = damaged(rng, file.read_bytes(), head=64)
            rewrite(file, content)
            return f"image {note}"

        def empty() -> None:
            shutil.rmtree(label)
            label.mkdir()

        names = ("a\nb.png", "\udcff.png", "é.png", "x" * 250 + ".png", ".png", "-h.png", "a.csv")
        others = ("Thumbs.db", "x.png", "x.txt", ".DS_Store", "x.parquet", "x.csv")
        kinds: dict[str, Callable[[], Any]] = {
            "image": image,
            "special": lambda: replace(rng, file)[0],
            "name": lambda: label.rename(data / choose(rng, _ODD_NAMES)),
            "file name": lambda: file.rename(file.with_name(choose(rng, names))),
            "not an image": lambda: (label / choose(rng, others)).write_bytes(rng.bytes(20)),
            "nested": lambda: (
                shutil.move(data / "dog", label / "dog") if label.name != "dog" else label.rename(data / "fish")
            ),
            "link": lambda: (label / "other.png").symlink_to(file),
            "broken link": lambda: (label / choose(rng, others)).symlink_to(
                choose(rng, ("gone", "x.png", "/dev/full/x"))
            ),
            "loop": lambda: (label / "loop").symlink_to(data),
            "empty": empty,
            "deep": lambda: label.joinpath(*["d" * 100] * int(rng.integers(1, 30))).mkdir(parents=True),
            "at the top": lambda: file.rename(data / file.name),
            "gone": lambda: shutil.rmtree(data),
        }
        kind = choose(rng, tuple(kinds))
        outcome = kinds[kind]()
        kind = outcome if kind in ("image", "special") else kind
        return f"folder: {kind}", "data"

    def _table(self, rng: np.random.Generator, folder: Path) -> tuple[str, str]:
        copy_tree(self._base / "data", folder / "data")
        lines = [line.split(",") for line in (self._base / "data.csv").read_text().splitlines()]
        lines = [[f"data/{image}" if image != "image" else image, label] for image, label in lines]
        ending = choose(rng, (".csv", ".tsv"))
        separator = "," if ending == ".csv" else "\t"
        row = int(rng.integers(len(lines)))
        odd_lines = ("bytes", "value", "header", "row", "quote", "twice", "utf-16", "nul", "long", "many")
        kind = choose(rng, (*odd_lines, "special", "separator", "bom"))
        if kind in ("value", "header"):
            paths = ("../../etc/passwd", "/dev/zero", "/etc", ".", "a\0b")
            value = choose(rng, ("", "x", *paths, "9" * 50, "-1", "cat", "LABEL", "data", *_ODD_NAMES))
            lines[0 if kind == "header" else row][int(rng.integers(2))] = value
        elif kind == "row":
            lines[row] = lines[row] * int(rng.integers(0, 4))
        elif kind == "quote":
            lines[row][0] = choose(rng, ('"', '"a', 'a"b', '""', "'"))
        elif kind == "twice":
            lines.append(lines[row])
        elif kind == "long":
            lines[row][0] = "x" * choose(rng, (5000, 200_000))
        elif kind == "many":
            lines = [["image", "label"], *[["x.png", "cat"]] * 20_000]
        if kind == "separator":
            separator = choose(rng, (";", "|", " ", "\t", ","))
        content = "\n".join(separator.join(line) for line in lines).encode("utf-8", "surrogateescape") + b"\n"
        if kind == "bytes":
            note, content = damaged(rng, content)
            kind = f"bytes {note}"
        content = {
            "utf-16": content.decode(errors="replace").encode("utf-16"),
            "nul": content + b"\0",
            "bom": b"\xef\xbb\xbf" * 2 + content,
        }.get(kind, content)
        file = folder / f"data{ending}"
        file.write_bytes(content)
        if kind == "special":
            kind, _ = replace(rng, file)
        return f"table: {kind}", file.name

    def _parquet(self, rng: np.random.Generator, folder: Path) -> tuple[str, str]:
        whole = self._base / "data.parquet"
        kind = choose(rng, ("bytes", "bytes", "footer", "columns", "features", "special", "folder"))
        file = folder / "data.parquet"
        if kind == "bytes":
            note, content = damaged(rng, whole.read_bytes())
            kind = f"bytes {note}"
        elif kind == "footer":
            content = whole.read_bytes()
            note, footer = damaged(rng, content[-1500:])
            kind, content = f"footer {note}", content[:-1500] + footer
        elif kind in ("columns", "features"):
            note, content = _odd_table(rng, whole, kind)
            kind = f"{kind} {note}"
        else:
            content = whole.read_bytes()
        file.write_bytes(content)
        if kind == "special":
            kind, _ = replace(rng, file)
        elif kind == "folder":
            (folder / "data").mkdir()
            for number in range(int(rng.integers(1, 3))):
                name = choose(rng, ("test-00000-of-00001.parquet", "x.parquet", "train-0.parquet", "\udcff.parquet"))
                os.link(file, folder / "data" / f"{number}{name}")
            if rng.random() < 0.5:
                (folder / "data" / "x.png").write_bytes(b"x")
            return "parquet: folder", "data"
        return f"parquet: {kind}", file.name


def _odd_table(rng: np.random.Generator, whole: Path, kind: str) -> tuple[str, bytes]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(whole)
    images, labels = table["image"].to_pylist(), table["label"].to_pylist()
    options: dict[str, Any] = {
        "row_group_size": choose(rng, (1, 3, 100)),
        "compression": choose(rng, ("none", "snappy", "gzip", "zstd")),
    }
    if kind == "features":
        odd: tuple[Any, ...] = (["cat"], [], None, 1, [1, 2, 3], ["\ud800"], ["cat", "cat", "dog"], {"a": 1})
        label = {"_type": "ClassLabel", "names": choose(rng, (list(LABELS), *odd))}
        features: Any = choose(rng, ({"image": {"_type": "Image"}, "label": label}, *ODD_VALUES[:60]))
        text = json.dumps({"info": {"features": features}}).encode("utf-8", "surrogatepass")
        if rng.random() < 0.2:
            note, text = damaged(rng, text)
        table = table.replace_schema_metadata({b"huggingface": text})
        note = repr(features)[:60]
    else:
        changes: dict[str, tuple[Any, Any]] = {
            "bytes": ([image["bytes"] for image in images], labels),
            "no bytes": ([{"bytes": None, "path": image["path"]} for image in images], labels),
            "paths": ([image["path"] for image in images], labels),
            "numbers": (list(range(6)), labels),
            "null images": ([None, *images[1:]], labels),
            "null labels": (images, [None, *labels[1:]]),
            "labels out of range": (images, [choose(rng, (-1, 3, 10**9, -(2**63))), *labels[1:]]),
            "float labels": (images, [0.5, *map(float, labels[1:])]),
            "text labels": (images, ["cat", "fish", "", "0", "dog", "é"]),
            "lists": ([[image] for image in images], [[label] for label in labels]),
            "empty": ([], []),
            "structs": ([{"a": 1}] * 6, labels),
            "damaged": ([{"bytes": b"x" * 30, "path": None}] * 6, labels),
            "large": ([{"bytes": bytes(10**6), "path": None}] * 6, labels),
            "bool": (images, [True] * 6),
            "big": (images, pa.array([2**64 - 1] * 6, pa.uint64())),
        }
        note = choose(rng, sorted(changes))
        names = choose(rng, (("image", "label"), ("img", "labels"), ("x", "y"), ("image", "fine_label")))
        values = dict(zip(names, changes[note], strict=True))
        metadata = table.schema.metadata if rng.random() < 0.5 else None
        table = pa.table(values).replace_schema_metadata(metadata)
    file = io.BytesIO()
    pq.write_table(table, file, **options)
    return note, file.getvalue()


def _check(out: str) -> str | None:
    """Every count is of images that there are."""
    data = json.loads(out)
    images = data["images"]
    for result in data["results"]:
        right, total = result["top1"]["correct"], result["top1"]["total"]
        if not 1 <= images <= 12 or total != images or not 0 <= right <= total:
            return f"{images} images, {right} of {total} are right"
    return None
