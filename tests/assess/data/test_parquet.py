"""The parquet files of a Hub dataset, written as its libraries do."""

from __future__ import annotations

import json
import os
import random
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed; run: pip install 'vitdeploy[parquet]'")
pq = pytest.importorskip("pyarrow.parquet")

from limited import MIB  # noqa: E402
from raising import raises  # noqa: E402

from vitdeploy.assess.data import parquet as parquet_data  # noqa: E402
from vitdeploy.assess.data.dataset import open_data  # noqa: E402
from vitdeploy.assess.data.parquet import IMAGE_COLUMNS, read_parquet  # noqa: E402
from vitdeploy.errors import ImageError, InputError, MissingDependencyError  # noqa: E402

LABELS = ("cat", "dog", "newt")


def write(
    path: Path,
    labels: Sequence[Any],
    *,
    names: Sequence[str] | None = None,
    images: Any = None,
    columns: tuple[str, str] = ("image", "label"),
    row_group_size: int = 2,
) -> Path:
    """Image i is the bytes "<file> <i>"."""
    if images is None:
        images = [{"bytes": f"{path.name} {index}".encode(), "path": None} for index in range(len(labels))]
    table = pa.table(dict(zip(columns, (images, labels), strict=True)))
    if names is not None:
        features = {columns[0]: {"_type": "Image"}, columns[1]: {"names": list(names), "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=row_group_size)
    return path


def test_names_of_the_dataset_are_matched_in_whatever_order(tmp_path: Path) -> None:
    data = open_data(write(tmp_path / "test.parquet", [0, 1, 1, 0, 1], names=["newt", "cat"]), LABELS)
    assert data.targets.tolist() == [2, 0, 0, 2, 0]
    assert data.names == tuple(f"test.parquet#{row}" for row in range(5))
    assert (data.kind, data.matched) == ("parquet", "by name")
    for order in (range(5), [4, 0, 3, 1, 2]):  # rows that lie in three groups
        assert [data.load(row) for row in order] == [f"test.parquet {row}".encode() for row in order]


def test_two_classes_of_one_name_are_not_merged(tmp_path: Path) -> None:
    path = write(tmp_path / "test.parquet", [0, 1, 2], names=["newt", "cat", "cat"])
    with raises(InputError, what="class names", found="cat"):
        open_data(path, LABELS)


def test_files_of_a_folder_are_one_data_set(tmp_path: Path) -> None:
    for index, labels in enumerate(([0, 1, 2], [2])):
        write(tmp_path / "data" / f"test-0000{index}-of-00002.parquet", labels)
    data = open_data(tmp_path, LABELS)
    assert data.targets.tolist() == [0, 1, 2, 2]
    assert data.names[-2:] == ("data/test-00000-of-00002.parquet#2", "data/test-00001-of-00002.parquet#0")
    assert (data.load(3), data.matched) == (b"test-00001-of-00002.parquet 0", "by index")


def test_a_name_that_is_no_text_is_read(tmp_path: Path) -> None:
    """Though pyarrow takes paths in UTF-8 alone."""
    path = write(tmp_path / "test.parquet", [0, 1, 2])
    path = path.rename(tmp_path / "\udcff.parquet")
    assert open_data(path, LABELS).load(2) == b"test.parquet 2"


def test_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    write(tmp_path / "data" / "0.parquet", [0, 1])
    os.mkfifo(tmp_path / "data" / "1.parquet")
    with raises(InputError, where=tmp_path / "data" / "1.parquet", found=re.compile("pipe")):
        read_parquet(tmp_path / "data", sorted((tmp_path / "data").iterdir()))


@pytest.mark.parametrize("other", ["data/train-00000-of-00001.parquet", "train/0000.parquet"])
def test_splits_are_not_mixed(tmp_path: Path, other: str) -> None:
    write(tmp_path / "data" / "test-00000-of-00001.parquet", [0])
    write(tmp_path / other, [1])
    with raises(InputError, where=tmp_path, what="splits", found=re.compile("test.*train")):
        open_data(tmp_path, LABELS)


def test_no_more_than_two_row_groups_are_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = open_data(write(tmp_path / "a.parquet", [0] * 20), LABELS)
    read: list[int] = []
    original = parquet_data._RowGroups._read

    def counted(self: Any, group: Any) -> Any:
        read.append(group.index)
        assert len(self._kept) < 2
        return original(self, group)

    monkeypatch.setattr(parquet_data._RowGroups, "_read", counted)
    for row in (0, 1, 2, 1, 3, 4, 3, *range(5, 20)):
        assert data.load(row) == f"a.parquet {row}".encode()
    assert read == list(range(10))


def test_other_types_and_columns(tmp_path: Path) -> None:
    data = open_data(
        write(tmp_path / "a.parquet", ["dog", "cat"], images=[b"x", b"y"], columns=("img", "labels")), LABELS
    )
    assert (data.targets.tolist(), [data.load(0), data.load(1)]) == ([1, 0], [b"x", b"y"])
    assert open_data(write(tmp_path / "b.parquet", ["2", "0"]), LABELS).matched == "by index"
    large = pa.array([b"z"], pa.large_binary())
    assert open_data(write(tmp_path / "c.parquet", [0], images=large), LABELS).load(0) == b"z"


def test_columns_that_the_dataset_says_are_an_image_and_a_class_label(tmp_path: Path) -> None:
    """As of cifar100, but for one of its two kinds of labels, which make it unclear."""
    data = open_data(
        write(tmp_path / "a.parquet", [1, 0], names=["cat", "dog"], columns=("photo", "fine_label")), LABELS
    )
    assert (data.targets.tolist(), data.load(1)) == ([1, 0], b"a.parquet 1")
    assert open_data(write(tmp_path / "b.parquet", ["dog"], columns=("Image", "LABEL")), LABELS).targets.tolist() == [1]
    path = write(tmp_path / "c.parquet", [0], names=["cat"], columns=("img", "fine_label"))
    table = pq.read_table(path)
    features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    features["coarse_label"] = features["fine_label"]
    table = table.append_column("coarse_label", pa.array([0]))
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})}), path)
    with raises(InputError, where=path, what="columns", found=("img", "fine_label", "coarse_label")):
        open_data(path, LABELS)


def test_a_list_that_is_the_models_tells_classes_of_one_name_apart(tmp_path: Path) -> None:
    labels = ("crane", "cat", "crane")
    data = open_data(write(tmp_path / "a.parquet", [2, 0, 1], names=labels), labels)
    assert (data.targets.tolist(), data.matched) == ([2, 0, 1], "by position")
    with raises(InputError, what="label", expected=[0, 2], found="crane"):
        open_data(write(tmp_path / "a.parquet", [1], names=["crane", "cat"]), labels)


def test_other_files_of_the_folder_are_counted(tmp_path: Path) -> None:
    write(tmp_path / "data" / "a.parquet", [0])
    write(tmp_path / "data" / ".b.parquet", [1])
    (tmp_path / "README.md").touch()
    (tmp_path / "preview.png").touch()
    data = open_data(tmp_path, LABELS)
    assert (len(data), str(data.left_out)) == (1, "files left out: 3 (1 ending .md, 1 ending .png, 1 hidden)")
    assert open_data(tmp_path / "data" / "a.parquet", LABELS).left_out is None


@pytest.mark.parametrize(
    ("labels", "options", "fields"),
    [
        ([0, 1], {"names": ["cat", "bird"]}, {"what": "label", "found": "bird"}),
        ([0, 2], {"names": ["cat", "dog"]}, {"what": "label", "expected": range(2), "found": 2}),
        ([0], {"names": []}, {"what": "huggingface", "found": []}),
        (pa.array([1, 2**63 + 1], pa.uint64()), {}, {"what": "label", "found": re.compile("9223372036854775809")}),
        ([0, 3], {}, {"what": "label", "expected": range(3), "found": 3}),
        ([0, -1], {"names": LABELS}, {"what": "label", "found": -1}),
        ([0, None], {}, {"what": "labels", "expected": 0, "found": 1}),
        ([0.5], {}, {"what": "labels", "found": "double"}),
        (pa.array([], pa.int64()), {"images": pa.array([], pa.binary())}, {"what": "images"}),
        ([0], {"images": ["a.png"]}, {"what": "image", "expected": "bytes", "found": "string"}),
        ([0], {"columns": ("pixels", "label")}, {"what": "columns", "expected": IMAGE_COLUMNS}),
        ([0], {"columns": ("image", "target")}, {"what": "columns", "found": ("image", "target")}),
    ],
)
def test_what_is_refused(tmp_path: Path, labels: list[Any], options: dict[str, Any], fields: dict[str, Any]) -> None:
    path = write(tmp_path / "a.parquet", labels, **options)
    with raises(InputError, where=str(path), **fields):
        open_data(path, LABELS)


def test_numbers_of_classes_that_are_named_by_others_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", [1, 2])
    for labels in (("1", "2", "3"), ("grade 1", "grade 2", "grade 3")):
        with raises(InputError, what="label", found=1, expected=None):
            open_data(path, labels)
    for labels in (("0", "1", "2"), ("grade 0", "grade 1", "grade 2"), LABELS):
        assert open_data(path, labels).targets.tolist() == [1, 2]
    assert open_data(write(path, ["01", "02"]), ("1", "2", "3")).targets.tolist() == [0, 1]


def test_files_that_disagree(tmp_path: Path) -> None:
    write(tmp_path / "a-00000-of-00002.parquet", [0], names=["cat", "dog"])
    write(tmp_path / "a-00001-of-00002.parquet", [0], names=["dog", "cat"])
    with raises(InputError, what="labels", expected="a-00000-of-00002.parquet"):
        open_data(tmp_path, LABELS)


def test_damage(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1 and no more")
    with raises(InputError, where=path, what=None):
        open_data(path, LABELS)
    table = pa.table({"image": [b"x"], "label": [0]}).replace_schema_metadata({"huggingface": '{"info": 1}'})
    pq.write_table(table, path)
    with raises(InputError, where=path, what="huggingface"):
        open_data(path, LABELS)
    data = open_data(
        write(path, [0, 1], images=[{"bytes": None, "path": "a.png"}, {"bytes": b"", "path": None}]), LABELS
    )
    with raises(ImageError, where="a.parquet#0", what="bytes"):
        data.load(0)


@pytest.mark.parametrize("rows", [0, 2, 4, 9])
def test_a_file_that_changes_after_it_was_listed(tmp_path: Path, rows: int) -> None:
    """Its rows may be others; a file that is gone has no bad images."""
    path = write(tmp_path / "a.parquet", [0] * 4)
    data = open_data(path, LABELS)
    path.unlink()
    if rows:
        write(path, [1] * rows, images=[b"other"] * rows)
    with raises(InputError, what="images", where=path):
        data.load(3)


def test_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.parquet", [0])
    monkeypatch.delitem(sys.modules, "vitdeploy.assess.data.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with raises(MissingDependencyError, extra="parquet"):
        open_data(tmp_path, LABELS)


def test_rows_that_hold_no_images_are_refused(tmp_path: Path) -> None:
    """50,000,000 labels that repeat take 10 kB of a file, and gigabytes of memory."""
    path = tmp_path / "rows.parquet"
    writer = pq.ParquetWriter(path, pa.schema([("image", pa.binary()), ("label", pa.int64())]))
    part = pa.table({"image": pa.nulls(10**6, pa.binary()), "label": pa.array(np.zeros(10**6, np.int64))})
    with writer:
        for _ in range(50):
            writer.write_table(part)
    with raises(InputError, where=path, what="rows", found=50_000_000):
        open_data(path, LABELS)


@pytest.mark.parametrize("struct", [True, False])
def test_an_image_that_repeats_is_in_memory_once(tmp_path: Path, struct: bool) -> None:
    """One of 1 MiB in 4,000 rows, which a file holds in 1 MiB."""
    content = random.Random(0).randbytes(MIB)
    words = pa.DictionaryArray.from_arrays(pa.array([0] * 4000, pa.int32()), pa.array([content], pa.binary()))
    images = pa.StructArray.from_arrays([words], ["bytes"]) if struct else words
    path = tmp_path / "repeated.parquet"
    table = pa.table({"image": images, "label": pa.array([0] * 4000)})
    pq.write_table(table, path, store_schema=False, dictionary_pagesize_limit=2 * MIB)
    assert path.stat().st_size < 2 * MIB
    before = pa.total_allocated_bytes()
    data = open_data(path, LABELS)
    assert data.load(3999) == data.load(0) == content
    assert pa.total_allocated_bytes() - before < 64 * MIB


def test_a_row_group_that_explodes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "zeros.parquet"
    images = pa.array([bytes(MIB) + bytes([index]) for index in range(8)], pa.binary())
    pq.write_table(pa.table({"image": images, "label": [0] * 8}), path, compression="zstd", use_dictionary=False)
    assert open_data(path, LABELS).load(7) == bytes(MIB) + bytes([7])
    monkeypatch.setattr(parquet_data, "_FLOOR_BYTES", 4 * MIB)
    with raises(ImageError, where=path, what="row group 0"):
        open_data(path, LABELS).load(7)
