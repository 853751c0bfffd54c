"""The images below a folder, and the count of what is left out."""

from __future__ import annotations

import io
import os
import socket
from pathlib import Path
from typing import Any

import pytest
from forbidden import forbidden
from PIL import Image
from raising import raises

from vitdeploy.assess.data import folder_listing
from vitdeploy.assess.data.folder_listing import LeftOut, Reason, list_folder, list_images
from vitdeploy.assess.data.image_set import open_images
from vitdeploy.errors import InputError
from vitdeploy.images.formats import image_endings


def fill(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")


def refuse_to_list(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir = os.scandir

    def refused(path: Any) -> Any:
        if os.fspath(path).endswith(name):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)


def test_image_files_are_found_below_and_sorted(tmp_path: Path) -> None:
    fill(tmp_path, "b.PNG", "a/c.jpg", "a/b/d.jpeg", "notes.txt", "e.webp.json", "z.tiff")
    (tmp_path / "folder.png").mkdir()
    found = [path.relative_to(tmp_path).as_posix() for path in list_images(tmp_path).files]
    assert found == ["a/b/d.jpeg", "a/c.jpg", "b.PNG", "z.tiff"]
    assert list_images(str(tmp_path)) == list_images(tmp_path)


def test_links_are_followed_and_a_loop_ends(tmp_path: Path) -> None:
    fill(tmp_path / "far", "a.png", "more/b.png")
    fill(tmp_path / "data", "cat/c.png")
    (tmp_path / "data" / "dog").symlink_to(tmp_path / "far")
    (tmp_path / "data" / "newt").symlink_to(tmp_path / "far" / "more")
    (tmp_path / "far" / "loop").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "cat" / "d.png").symlink_to(tmp_path / "far" / "a.png")
    found = [path.relative_to(tmp_path / "data").as_posix() for path in list_images(tmp_path / "data").files]
    assert found == ["cat/c.png", "cat/d.png", "dog/a.png", "dog/more/b.png", "newt/b.png"]


@pytest.mark.parametrize("name", ["cat/b.png", "dog"])
def test_a_link_to_nothing_and_a_pipe_are_not_left_out(tmp_path: Path, name: str) -> None:
    fill(tmp_path, "cat/a.png")
    for target in ("absent", name, "cat/a.png/below", "x" * 300):
        (tmp_path / name).symlink_to(tmp_path / target)
        with raises(InputError, where=tmp_path / name, hint="remove it"):
            list_images(tmp_path)
        (tmp_path / name).unlink()
    os.mkfifo(tmp_path / "cat" / "b.png")
    with raises(InputError, where=tmp_path / "cat" / "b.png", hint="remove it"):
        list_images(tmp_path)


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_a_forbidden_image_is_kept_or_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind a link or without an ending, it is not left out in silence."""
    monkeypatch.chdir(tmp_path)
    fill(tmp_path, "closed/in/b.png", "data/a.png", "data/cat/c.png", "data/noend", "data/notes.txt")
    links = {
        "link.png": "in/b.png",
        "link": "in/b.png",
        "folder": "in",
        "link.txt": "in/b.png",
        "cat/d.png": "in/b.png",
    }
    for name, target in links.items():
        Path("data", name).symlink_to(("../" * len(Path(name).parts)) + f"closed/{target}")
    with forbidden(Path("closed"), Path("data/noend")):
        images, _ = list_folder(Path("data"), keep_unreadable=True)
    found = [path.relative_to("data").as_posix() for path in images.files]
    assert found == ["a.png", "cat/c.png", "cat/d.png", "folder", "link", "link.png", "noend"]
    assert images.left_out == LeftOut(2, (Reason("broken link", 1), Reason("ending .txt", 1)))
    for name in links:
        with forbidden(Path("closed")), raises(InputError, hint="remove it"):
            list_folder(Path("data"))
        (tmp_path / "data" / name).unlink()
    with forbidden(Path("data/noend")), raises(InputError, where=Path("data/noend"), found="Permission denied"):
        list_folder(Path("data"))


def test_pipes_and_sockets_are_kept_if_they_may_be_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the path of a socket is short
    for name in ("a.png", "b.txt", "c"):
        os.mkfifo(name)
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind("d.jpg")
    Path("e.txt").symlink_to("b.txt")
    images, _ = list_folder(Path(), keep_unreadable=True)
    assert images.files == (Path("a.png"), Path("d.jpg"))
    assert images.left_out == LeftOut(3, (Reason("pipe or device", 3),))
    with raises(InputError, hint="remove it"):
        list_folder(Path())


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, "cat/a.png", "dog/b.png")
    refuse_to_list("dog", monkeypatch)
    with raises(InputError, where=tmp_path / "dog", expected="a folder", found="Permission denied"):
        list_images(tmp_path)
    with raises(InputError, expected="a folder of images", found="File name too long"):
        list_images(tmp_path / ("x" * 300))


def test_a_folder_without_images(tmp_path: Path) -> None:
    fill(tmp_path, "notes.txt", ".hidden.png")
    left_out = LeftOut(2, (Reason("ending .txt", 1), Reason("hidden", 1)))
    with raises(InputError, where=tmp_path, what="images", found=left_out, expected=sorted(image_endings())):
        list_images(tmp_path)
    for name in ("notes.txt", "absent"):
        with raises(InputError, where=tmp_path / name, expected="a folder of images"):
            list_images(tmp_path / name)


def test_every_ending_that_pillow_registers_for_a_format_is_taken(tmp_path: Path) -> None:
    names = [f"a{ending}" for ending in sorted(image_endings())]
    fill(tmp_path, *names, *(name.upper() for name in names))
    assert len(list_images(tmp_path).files) == 2 * len(names)


@pytest.mark.parametrize(
    "hidden",
    [
        ".DS_Store",
        "._cat.jpg",
        "Thumbs.db",
        "desktop.ini",
        ".ipynb_checkpoints/cat.png",
        "cat/.ipynb_checkpoints/deep/cat.png",
        "__MACOSX/cat/._cat.jpg",
        "__MACOSX/cat.jpg",
    ],
)
def test_hidden_files_and_folders_are_skipped_everywhere_and_counted(tmp_path: Path, hidden: str) -> None:
    fill(tmp_path, "cat/a.png", hidden)
    listing = list_images(tmp_path)
    assert [path.name for path in listing.files] == ["a.png"]
    assert listing.left_out == LeftOut(1, (Reason("hidden", 1),))


def test_a_folder_that_is_hidden_itself_can_be_given(tmp_path: Path) -> None:
    fill(tmp_path / ".cache", "a.png")
    assert len(list_images(tmp_path / ".cache").files) == 1


def test_a_hidden_folder_that_cannot_be_read_counts_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, "a.png", ".Trashes/b.png")
    refuse_to_list(".Trashes", monkeypatch)
    assert list_images(tmp_path).left_out == LeftOut(1, (Reason("hidden", 1),))


def test_files_without_an_ending_are_taken_by_their_content(tmp_path: Path) -> None:
    for kind in ("JPEG", "PNG", "WEBP", "TIFF", "PPM", "GIF", "BMP"):
        file = io.BytesIO()
        Image.new("RGB", (5, 4)).save(file, kind)
        (tmp_path / kind).write_bytes(file.getvalue())
    (tmp_path / "README").write_text("Pyramids in a desert, photographed in 1990", encoding="utf-8")
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "zeros").write_bytes(bytes(100))
    listing = list_images(tmp_path)
    assert [path.name for path in listing.files] == ["BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP"]
    assert listing.left_out == LeftOut(3, (Reason("without an ending and not an image", 3),))


def test_a_folder_of_images_is_listed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b", "c.png"):
        Image.new("RGB", (5, 4)).save(tmp_path / name, "PNG")
    opened: list[str] = []
    is_image = folder_listing._is_image

    def counted(path: Path) -> bool:
        opened.append(path.name)
        return is_image(path)

    monkeypatch.setattr(folder_listing, "_is_image", counted)
    assert (open_images(tmp_path).names, sorted(opened)) == (("a", "b", "c.png"), ["a", "b"])


def test_folders_without_an_image_are_told(tmp_path: Path) -> None:
    fill(tmp_path, "cat/a.png", "dog/b.heic", "dog/c.HEIC")
    (tmp_path / "newt").mkdir()
    left_out = list_images(tmp_path).left_out
    assert left_out == LeftOut(2, (Reason("ending .heic (needs pillow-heif)", 2),), ("dog", "newt"))
    assert (
        str(left_out)
        == "files left out: 2 (2 ending .heic (needs pillow-heif)); folders without an image: 2 (dog, newt)"
    )
    assert (LeftOut.from_dict(left_out.to_dict()), str(LeftOut())) == (left_out, "files left out: none")


def test_the_rarest_reasons_become_one(tmp_path: Path) -> None:
    fill(tmp_path, "a.png", *(f"b{index}.{kind}" for kind in range(30) for index in range(1 + (kind == 7))))
    left_out = list_images(tmp_path).left_out
    assert (left_out.files, left_out.reasons[0]) == (31, Reason("ending .7", 2))
    assert left_out.reasons[-1] == Reason("other endings", 10)
    assert sum(reason.files for reason in left_out.reasons) == 31


def test_images_beside_parquet_files_are_counted(tmp_path: Path) -> None:
    fill(tmp_path, "data/a.parquet", "data/.b.parquet", "images/c.png", "README.md")
    images, tables = list_folder(tmp_path)
    assert [path.name for path in tables.files] == ["a.parquet"]
    assert tables.left_out == LeftOut(3, (Reason("ending .md", 1), Reason("ending .png", 1), Reason("hidden", 1)))
    assert images.left_out.files == 3
