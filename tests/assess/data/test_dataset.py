"""Labelled images on disk: labels of images, and refusals before anything runs."""

from __future__ import annotations

import re
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from raising import raises

from vitdeploy.assess.data.dataset import CSV_IMAGE_COLUMNS, CSV_LABEL_COLUMNS, LabelledData, open_data
from vitdeploy.assess.data.folder_listing import LeftOut, Reason
from vitdeploy.assess.data.imagenet import synsets
from vitdeploy.errors import ImageError, InputError, UsageError

LABELS = ("cat", "dog", "newt, eft")


def fill(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(f"bytes of {name}".encode())
    return root


def write_csv(root: Path, text: str) -> Path:
    path = root / "labels.csv"
    path.write_text(text, encoding="utf-8")
    return path


def content(data: LabelledData) -> list[tuple[str, int, bytes]]:
    assert data.targets.dtype == np.int32
    return [(name, int(data.targets[index]), data.load(index)) for index, name in enumerate(data.names)]


def test_class_folders(tmp_path: Path) -> None:
    data = open_data(fill(tmp_path, "eft/a.png", "cat/more/b.png", "cat/notes.txt"), LABELS)
    assert content(data) == [("cat/more/b.png", 0, b"bytes of cat/more/b.png"), ("eft/a.png", 2, b"bytes of eft/a.png")]
    assert (data.kind, data.matched, data.source, len(data)) == ("folder", "by synonym", str(tmp_path), 2)
    assert open_data(fill(tmp_path.with_name("other"), "dog/a.png"), LABELS).matched == "by name"
    with raises(InputError, where=str(tmp_path), what="labels", found=("eft", "newt")):
        open_data(fill(tmp_path, "newt/c.png"), LABELS)


@pytest.mark.parametrize("columns", ["image,label", "label,path", "more,file,class", "class,file_name,more"])
def test_csv_with_each_name_of_its_columns(tmp_path: Path, columns: str) -> None:
    fill(tmp_path, "a.png", "b/c.png")
    values = {"image": "{}", "path": "{}", "file": "{}", "file_name": "{}", "label": "{label}", "class": "{label}"}
    row = ",".join(values.get(column, "x") for column in columns.split(","))
    lines = [row.format("./a.png", label="dog"), "", row.format(" b/c.png", label='"newt, eft"')]
    data = open_data(write_csv(tmp_path, "\ufeff" + "\r\n".join([columns, *lines])), LABELS)
    assert content(data) == [("a.png", 1, b"bytes of a.png"), ("b/c.png", 2, b"bytes of b/c.png")]
    assert (data.kind, data.matched) == ("csv", "by name")


def test_csv_of_indices_and_absolute_paths(tmp_path: Path) -> None:
    image = fill(tmp_path / "elsewhere", "a.png") / "a.png"
    data = open_data(write_csv(tmp_path, f"path,label\n{image},2\n"), LABELS)
    assert (content(data), data.matched) == ([(image.as_posix(), 2, b"bytes of a.png")], "by index")


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("", {"what": "columns", "expected": CSV_IMAGE_COLUMNS, "found": ()}),
        ("a.png,cat\n", {"what": "columns", "found": ("a.png", "cat")}),
        ("image;label\na.png;cat\n", {"what": "columns", "found": ("image;label",)}),
        ("image,label,class\na.png,cat,cat\n", {"what": "columns", "expected": CSV_LABEL_COLUMNS}),
        ("image,label\n", {"what": "images"}),
        ("image,label\na.png\n", {"what": "line 2", "found": "a.png"}),
        ("image,label\na.png,cat,dog\n", {"what": "line 2", "found": "a.png,cat,dog"}),
        ("image,label\na.png, \n", {"what": "line 2", "found": "a.png, "}),
        ("image,label\na.png,cat\n./a.png,cat\n", {"what": "lines", "found": (2, 3)}),
        ("image,label\nb.png,cat\n", {"what": "line 2", "found": "b.png"}),
        ("image,label\na.png,bird\n", {"what": "label", "expected": [], "found": "bird"}),
        ("image,label\na.png,3\n", {"what": "label", "expected": range(3), "found": 3}),
        ('image,label\n"a.png,cat\n', {"expected": "UTF-8", "found": "unexpected end of data"}),
    ],
)
def test_csv_that_is_refused(tmp_path: Path, text: str, fields: dict[str, object]) -> None:
    fill(tmp_path, "a.png")
    with raises(InputError, where=str(tmp_path / "labels.csv"), **fields):
        open_data(write_csv(tmp_path, text), LABELS)


def test_csv_names_an_image_once_whatever_the_path(tmp_path: Path) -> None:
    for other in ((fill(tmp_path, "b/a.png") / "b" / "a.png").as_posix(), "b/../b/a.png"):
        with raises(InputError, what="lines", found=(2, 3)):
            open_data(write_csv(tmp_path, f"image,label\nb/a.png,cat\n{other},dog\n"), LABELS)


def test_tabs_and_letter_case_of_columns(tmp_path: Path) -> None:
    fill(tmp_path, "a.png", "b,c.png")
    path = tmp_path / "labels.TSV"
    path.write_text("\ufeffImage\tLABEL\na.png\t\ufeffdog \nb,c.png\tnewt, eft\n", encoding="utf-8-sig")
    data = open_data(path, LABELS)
    assert content(data) == [("a.png", 1, b"bytes of a.png"), ("b,c.png", 2, b"bytes of b,c.png")]
    assert (data.kind, data.matched, data.left_out) == ("tsv", "by name", None)
    with raises(InputError, what="columns", hint=re.compile("commas")):
        open_data(write_csv(tmp_path, "image\tlabel\na.png\tdog\n"), LABELS)


@pytest.mark.parametrize("width", [1, 3])
def test_folders_of_numbers_are_indices_where_none_is_a_name(tmp_path: Path, width: int) -> None:
    fill(tmp_path, f"{1:0{width}}/a.png", f"{0:0{width}}/b.png")
    data = open_data(tmp_path, LABELS)
    assert (data.targets.tolist(), data.matched) == ([0, 1], "by index")
    named = open_data(tmp_path, (f"{1:0{width}}", "x", f"{0:0{width}}"))
    assert (named.targets.tolist(), named.matched) == ([2, 0], "by name")
    fill(tmp_path, "3/c.png")
    with raises(InputError, what="label", expected=range(3), found=3):
        open_data(tmp_path, LABELS)


def test_two_folders_of_one_index_are_refused(tmp_path: Path) -> None:
    with raises(InputError, what="labels", found=("01", "1")):
        open_data(fill(tmp_path, "1/a.png", "01/b.png"), LABELS)


@pytest.mark.parametrize("width", [1, 2])
def test_numbers_are_names_first_and_off_by_none(tmp_path: Path, width: int) -> None:
    """Classes that count from 1, in folders and in a CSV with and without leading zeros."""
    labels = tuple(str(number) for number in range(1, 11))
    files = [f"{number:0{width}}/a.png" for number in range(1, 10)]
    fill(tmp_path, *files)
    rows = "".join(f"{file},{file.split('/')[0]}\n" for file in files)
    for source in (tmp_path, write_csv(tmp_path, f"image,label\n{rows}")):
        data = open_data(source, labels)
        assert [labels[target] for target in data.targets] == [str(int(name.split("/")[0])) for name in data.names]
    fill(tmp_path, f"{0:0{width}}/b.png")
    with raises(InputError, what="label", found=f"{0:0{width}}"):
        open_data(tmp_path, labels)


def test_imagenet_v2_in_folders_of_indices(tmp_path: Path) -> None:
    names = [", ".join(words) for words in synsets().values()]
    fill(tmp_path, *(f"{index}/{index}.jpeg" for index in range(1000)))
    data = open_data(tmp_path, names)
    assert data.matched == "by index"
    assert [int(name.split("/")[0]) for name in data.names] == data.targets.tolist()


def test_classes_whose_names_hold_a_slash(tmp_path: Path) -> None:
    data = open_data(fill(tmp_path, "tank/water/a.png", "tank/war/more/b.png"), ("tank/war", "tank/water"))
    assert (data.targets.tolist(), data.matched) == ([0, 1], "by name")
    with raises(InputError, where=tmp_path / "tank/war/more", found=("tank", "tank/war")):
        open_data(tmp_path, ("tank/war", "tank", "tank/water"))


def test_a_folder_of_one_class_in_that_of_another_is_refused(tmp_path: Path) -> None:
    with raises(InputError, where=tmp_path / "cat/dog", found=("cat", "dog")):
        open_data(fill(tmp_path, "cat/a.png", "cat/dog/b.png"), LABELS)


@pytest.mark.parametrize(("link", "target"), [("newt", "dog"), ("cat/more", "../dog"), ("newt", "cat/../dog")])
def test_a_folder_of_one_class_is_not_that_of_another_by_a_link(tmp_path: Path, link: str, target: str) -> None:
    fill(tmp_path, "cat/a.png", "dog/b.png")
    (tmp_path / link).symlink_to(target)
    with raises(InputError, what="link", found=re.compile(r"b\.png'\)$")):
        open_data(tmp_path, ("cat", "dog", "newt"))


def test_an_image_that_is_linked_in_the_folder_is_not_two(tmp_path: Path) -> None:
    fill(tmp_path, "cat/a.png", "dog/b.png")
    (tmp_path / "cat" / "c.png").symlink_to("../dog/b.png")
    with raises(InputError, where=tmp_path, what="link", found=("cat/c.png", "dog/b.png")):
        open_data(tmp_path, LABELS)


def test_links_to_folders_and_to_a_store_are_followed(tmp_path: Path) -> None:
    """The Hub's cache keeps files by their hash: two images of the same bytes are links to one file."""
    fill(tmp_path, "blobs/0", "far/c.png", "data/dog/d.png")
    for name in ("cat/a.png", "newt/b.png"):
        (tmp_path / "data" / name).parent.mkdir()
        (tmp_path / "data" / name).symlink_to(tmp_path / "blobs" / "0")
    (tmp_path / "data" / "cat" / "far").symlink_to(tmp_path / "far")
    (tmp_path / "link").symlink_to("data")
    for root in (tmp_path / "data", tmp_path / "link"):
        data = open_data(root, ("cat", "dog", "newt"))
        assert data.names == ("cat/a.png", "cat/far/c.png", "dog/d.png", "newt/b.png")
        assert data.targets.tolist() == [0, 0, 1, 2]


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("bird/a.png", {"what": "label", "expected": [], "found": "bird"}),
        ("Cat/a.png", {"what": "label", "expected": ["cat"], "found": "Cat"}),
        ("train/cat/a.png", {"what": "label", "found": "train", "hint": re.compile("name .*train instead")}),
        ("a.png", {"what": "folder"}),
    ],
)
def test_an_image_whose_class_is_not_clear(tmp_path: Path, name: str, fields: dict[str, object]) -> None:
    with raises(InputError, where=str(tmp_path), **fields):
        open_data(fill(tmp_path, name), LABELS)


def test_a_name_that_two_classes_have_is_no_matter_where_no_image_is_of_them(tmp_path: Path) -> None:
    labels = ("crane", "crane", "dog")
    assert open_data(fill(tmp_path, "dog/a.png"), labels).targets.tolist() == [2]
    with raises(InputError, what="label", expected=[0, 1], found="crane"):
        open_data(fill(tmp_path, "crane/a.png"), labels)


def test_labels_are_not_matched_by_a_part(tmp_path: Path) -> None:
    labels = ("Pepper,_bell___healthy", "Potato___healthy")
    data = open_data(fill(tmp_path, "Pepper,_bell___healthy/a.png"), labels)
    assert (data.targets.tolist(), data.matched) == ([0], "by name")
    with raises(InputError, expected=[labels[0]], found="Pepper,_bell___Bacterial_spot"):
        open_data(fill(tmp_path, "Pepper,_bell___Bacterial_spot/b.png"), labels)


def test_files_that_are_left_out_are_counted(tmp_path: Path) -> None:
    fill(tmp_path, "cat/a.png", "cat/._a.png", "cat/.ipynb_checkpoints/b.png", "cat/notes.txt", "bird/c.heic", ".git/x")
    left_out = open_data(tmp_path, LABELS).left_out
    assert left_out == LeftOut(
        5, (Reason("hidden", 3), Reason("ending .heic (needs pillow-heif)", 1), Reason("ending .txt", 1)), ("bird",)
    )
    assert open_data(fill(tmp_path, "cat/d.png"), LABELS).subset(1).left_out == left_out


def test_csv_goes_up_from_where_a_link_leads(tmp_path: Path) -> None:
    fill(tmp_path, "a.png", "far/a.png", "far/deep/b.png")
    (tmp_path / "link").symlink_to(tmp_path / "far" / "deep")
    data = open_data(write_csv(tmp_path, "image,label\nlink/../a.png,cat\n"), LABELS)
    assert data.load(0) == b"bytes of far/a.png"


@pytest.mark.parametrize("path", ["x" * 300, "x/" * 3000])
def test_a_path_that_is_too_long_is_one_line(tmp_path: Path, path: str) -> None:
    with raises(InputError, where=tmp_path / path, found="File name too long"):
        open_data(tmp_path / path, LABELS)
    with raises(InputError, where=re.compile(r"labels\.csv, line 2: "), found="File name too long"):
        open_data(write_csv(tmp_path, f"image,label\n{path},cat\n"), LABELS)


def test_what_is_no_data_set(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_bytes(b"image,label\n\xff\xfe,cat\n")
    with raises(InputError, where=tmp_path / "labels.csv", expected="UTF-8"):
        open_data(tmp_path / "labels.csv", LABELS)
    for name in ("absent.csv", "absent", "absent.parquet"):
        with raises(InputError, where=tmp_path / name, what="data"):
            open_data(tmp_path / name, LABELS)


def test_an_image_that_is_gone_meanwhile(tmp_path: Path) -> None:
    data = open_data(fill(tmp_path, "cat/a.png"), LABELS)
    (tmp_path / "cat" / "a.png").unlink()
    with raises(ImageError, where=tmp_path / "cat" / "a.png", found="No such file or directory"):
        data.load(0)


def test_subsets_are_the_same_everywhere_and_nested(tmp_path: Path) -> None:
    names = tuple(f"cat/{index:03}.png" for index in range(200))
    whole = LabelledData("it", "folder", "by name", names, np.arange(200, dtype=np.int32), lambda i: names[i].encode())
    few, more = whole.subset(3, seed=1), whole.subset(50, seed=1)
    assert few.names == ("cat/077.png", "cat/134.png", "cat/193.png")  # fixed: a baseline must not change its images
    assert set(few.names) < set(more.names)
    assert list(more.names) == sorted(more.names)
    for subset in (few, more):
        assert [subset.load(index).decode() for index in range(len(subset))] == list(subset.names)
        assert [names[target] for target in subset.targets] == list(subset.names)
    assert whole.subset(50, seed=2).names != more.names
    assert whole.subset(None) is whole.subset(200) is whole
    with raises(UsageError, what="limit", found=0):
        whole.subset(0)


def test_a_table_that_never_ends_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    with path.open("wb") as file:
        file.truncate(2**33)
    with raises(InputError, where=path):
        open_data(path, ("cat", "dog"))


@pytest.mark.parametrize(("rows", "found"), [(2**22 * ",", "a line has more than"), (2**18 * "no.png,cat\n", "no.png")])
def test_a_table_is_read_no_further_than_its_first_error(tmp_path: Path, rows: str, found: str) -> None:
    (tmp_path / "data.csv").write_text(f"image,label\n{rows}")
    tracemalloc.start()
    try:
        with raises(InputError, where=tmp_path / "data.csv", found=re.compile(found)):
            open_data(tmp_path / "data.csv", ("cat", "dog"))
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 16 * 2**20  # of the whole table, 56 MB and more
