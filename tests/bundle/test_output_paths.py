"""Places for outputs: never an input, told before the work where they cannot be, and streams only where they are."""

from __future__ import annotations

import collections
import dataclasses
import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from bundles import write_bundle
from written_results import COMPARISON

import vitdeploy
from vitdeploy.assess.report.markdown import write_markdown
from vitdeploy.bundle.output_paths import check_outputs, check_writable, write_output
from vitdeploy.errors import InputError, OutputError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

posix = pytest.mark.skipif(os.name != "posix", reason="there are no such files")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a bundle, a folder of images, a table of another one, and more names of them."""
    monkeypatch.chdir(tmp_path)
    for name in ("bundle/manifest.json", "bundle/onnx/model.onnx", "photos/cat/1.png", "stray.png", "rules.toml"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(name)
    Path("table.csv").write_text("image,label\nstray.png,cat\n")
    Path("blob").write_text("elsewhere")
    Path("bundle/linked.json").symlink_to("../blob")
    Path("photos/cat/2.png").symlink_to("../../blob")
    Path("to-bundle").symlink_to("bundle")
    Path("to-image").symlink_to("photos/cat/1.png")
    os.link("bundle/onnx/model.onnx", "hard-model")
    os.link("photos/cat/1.png", "hard-image")
    os.link("stray.png", "hard-stray")
    return tmp_path


@posix
@pytest.mark.parametrize(
    "output",
    [
        "bundle/manifest.json",
        "bundle/new.md",
        "./photos/../bundle/onnx/model.onnx",
        "to-bundle/onnx/model.onnx",
        "hard-model",
        "blob",
        "photos/cat/1.png",
        "photos/new.JPG",
        "photos/labels.csv",
        "to-image",
        "hard-image",
        "table.csv",
        "stray.png",
        "hard-stray",
        "rules.toml",
    ],
)
def test_an_output_is_no_input_under_any_name(here: Path, output: str) -> None:
    inputs = {"images": "photos", "data": "table.csv", "rules": "rules.toml", "none": None}
    for spelling in (output, here / output):
        with pytest.raises(UsageError, match="--html"):
            check_outputs({"--html": spelling}, inputs, bundle="bundle")
    with pytest.raises(UsageError, match="--html"):
        check_outputs({"--html": output}, {"images": list(map(Path, ("photos", "table.csv", "rules.toml", "bundle")))})


@posix
def test_other_places_are_outputs(here: Path) -> None:
    Path("old.html").write_text("replaced")
    os.link("old.html", "old-too.html")
    inputs = {"images": "photos", "data": "table.csv", "rules": "rules.toml"}
    for output in ("new.html", "old.html", "photos/summary.md", "bundle.html", "/dev/null", "a" * 300, "x\0y"):
        check_outputs({"--html": output, "--junit": None}, inputs, bundle="bundle")
    assert "old.html" in {path.name for path in here.iterdir()}


def test_an_output_is_no_folder_of_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for one, other in (("a", "a/b"), ("a/b", "a")):
        with pytest.raises(OutputError, match="folder"):
            check_outputs({"--html": one, "--junit": other}, {})
    Path("a").mkdir()
    check_outputs({"--html": "a/b", "--junit": "a"}, {})  # `check_writable` says that "a" is a folder


@posix
@pytest.mark.parametrize("place", ["photos/kept.md", "elsewhere/kept.md", "linked.md", "hard.md"])
def test_a_file_that_is_there_is_part_of_a_folder_by_any_way(here: Path, place: str) -> None:
    """In it, in a folder that a link in it leads to, or with another name in it."""
    Path("elsewhere").mkdir()
    Path("photos/more").symlink_to(here / "elsewhere")
    Path("photos/circle").symlink_to("circle")
    Path(place).write_text("kept")
    if place == "linked.md":
        Path("photos/link").symlink_to(here / place)
    if place == "hard.md":
        os.link(place, "photos/hard")
    with pytest.raises(UsageError, match="--junit"):
        check_outputs({"--html": "new", "--junit": place}, {"data": "photos"})


@posix
def test_many_images_are_not_looked_at_one_by_one(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor once for each of several reports that exist."""
    reports = {name: here / name for name in ("--html", "--markdown", "--junit")}
    for report in reports.values():
        report.write_text("old")
    for index in range(300):
        (here / "photos" / "cat" / f"{index}.png").touch()
    calls: collections.Counter[str] = collections.Counter()

    def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, **options: Any) -> Any:
            calls[name] += 1
            return function(path, **options)

        return call

    for name in ("stat", "scandir"):
        monkeypatch.setattr(os, name, counted(name, getattr(os, name)))
    check_outputs(reports, {"data": "photos"})
    assert calls["stat"] < 100
    assert calls["scandir"] == 2  # photos and photos/cat


@posix
@pytest.mark.parametrize(("first", "second"), [("a", "./a"), ("old", "link"), ("old", "hard"), ("dangling", "absent")])
def test_two_outputs_are_not_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str, second: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("old").write_text("")
    Path("link").symlink_to("old")
    os.link("old", "hard")
    Path("dangling").symlink_to("absent")
    for one, other in ((first, second), (second, first)):
        with pytest.raises(UsageError, match=r"(?:--html|--junit) and"):
            check_outputs({"--html": one, "--junit": other}, {})
    check_outputs({"--html": "/dev/null", "--junit": "/dev/null"}, {})


@pytest.mark.parametrize(
    "output", ["bundle/model.safetensors", "bundle/manifest.json", "to-bundle/config.json", "hard"]
)
def test_python_refuses_them_too_and_alters_nothing(tmp_path: Path, output: str) -> None:
    bundle = write_bundle(tmp_path)
    (tmp_path / "to-bundle").symlink_to("bundle")
    os.link(tmp_path / "bundle" / "onnx" / "model.onnx", tmp_path / "hard")
    place = tmp_path / output
    (tmp_path / "data").mkdir()
    with pytest.raises(UsageError, match="save_golden"):
        vitdeploy.compare(bundle, save_golden=place)
    with pytest.raises(UsageError, match="resume"):
        vitdeploy.evaluate(bundle, data=tmp_path / "data", resume=place)
    with pytest.raises(UsageError, match="baseline"):
        vitdeploy.gate(bundle, data=tmp_path / "data", baseline=place, update=True)
    bundle.verify()


def test_a_report_is_not_written_into_what_it_is_of(here: Path) -> None:
    with pytest.raises(UsageError, match="the report"):
        write_markdown("hard-model", dataclasses.replace(COMPARISON, bundle="bundle"))
    assert (here / "bundle" / "onnx" / "model.onnx").read_text() == "bundle/onnx/model.onnx"


@pytest.mark.parametrize("place", ["/", "/proc/report.html", "/proc/new/report.html", "/dev/fd"])
@pytest.mark.skipif(sys.platform != "linux", reason="these are Linux's")
def test_a_place_that_takes_no_file_is_told_before(place: str) -> None:
    with pytest.raises(OutputError):
        check_writable(Path(place))
    with pytest.raises(OutputError):
        write_output(Path(place), b"report")


def test_looking_whether_a_file_can_be_written_leaves_nothing(tmp_path: Path) -> None:
    check_writable(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="there is no /dev/shm")
def test_a_file_below_dev_is_replaced_whole_or_not_at_all() -> None:
    code = """
import resource, sys
from pathlib import Path
from vitdeploy.errors import OutputError
from vitdeploy.bundle.output_paths import write_output
write_output(Path(sys.argv[1]), b"old")
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    write_output(Path(sys.argv[1]), bytes(2000))
except OutputError:
    print(Path(sys.argv[1]).read_text())
"""
    place = Path(f"/dev/shm/vitdeploy-test-{os.getpid()}")
    try:
        done = subprocess.run([sys.executable, "-c", code, str(place)], capture_output=True, text=True, check=False)
        assert done.stdout == "old\n", done.stderr
        assert [path.name for path in place.parent.glob(f"*{place.name}*")] == [place.name]
    finally:
        place.unlink(missing_ok=True)


@posix
def test_a_pipe_and_a_device_take_the_content(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with ThreadPoolExecutor(1) as pool:
        read = pool.submit((tmp_path / "pipe").read_bytes)
        write_output(tmp_path / "pipe", b"all of it")
        assert read.result(timeout=10) == b"all of it"
    write_output(Path(os.devnull), b"nothing")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    assert stat.S_ISCHR(Path(os.devnull).stat().st_mode)


@posix
def test_a_pipe_that_nobody_reads_is_not_waited_for_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitdeploy.bundle.output_paths._READER_SECONDS", 0.2)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OutputError, match="pipe"):
        write_output(tmp_path / "pipe", b"content")


@pytest.mark.skipif(sys.platform != "linux", reason="these are Linux's")
@pytest.mark.parametrize("name", ["/dev/fd/{}", "/proc/self/fd/{}", "link"])
def test_an_open_file_is_written_where_it_is(tmp_path: Path, name: str) -> None:
    file = tmp_path / "log"
    file.write_text("before ")
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND)
    try:
        place = Path(name.format(descriptor))
        if name == "link":
            place = tmp_path / "link"
            place.symlink_to(f"/dev/fd/{descriptor}")
        write_output(place, b"after")
        os.write(descriptor, b", and more")
    finally:
        os.close(descriptor)
    assert file.read_text() == "before after, and more"


@posix
def test_a_report_for_whoever_went_away_is_dropped() -> None:
    """As whatever else the command line prints: the exit code is that of the verdict."""
    code = """
import pathlib, sys
from vitdeploy.cli.process import guard_streams
from vitdeploy.bundle.output_paths import write_output
guard_streams()
sys.stdin.read()
write_output(pathlib.Path("/dev/stdout"), bytes(1 << 20))
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        process.stdout.close()
        process.stdout = None
        assert (process.communicate()[1], process.returncode) == ("", 0)


def test_an_image_is_no_output_however_large_the_table_that_names_it(here: Path) -> None:
    with Path("table.csv").open("a") as table:
        table.writelines(f"{index:01023}\n" for index in range(2**16))  # 64 MiB
        table.write("blob,cat\n")
    with pytest.raises(UsageError, match="--html"):
        check_outputs({"--html": "blob"}, {"data": "table.csv"})


def test_a_table_that_is_too_large_to_protect_its_images_is_refused(here: Path) -> None:
    with Path("table.csv").open("a") as table:
        table.truncate(2**33)
    with pytest.raises(InputError, match=r"table\.csv"):
        check_outputs({"--html": "stray.png"}, {"data": "table.csv"})


@pytest.mark.skipif(sys.platform != "linux", reason="these are Linux's")
def test_an_open_file_that_takes_nothing_is_told_before(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    descriptor = os.open(tmp_path / "file", os.O_RDONLY)
    try:
        with pytest.raises(OutputError, match="reading"):
            check_writable(Path(f"/dev/fd/{descriptor}"))
    finally:
        os.close(descriptor)
    with pytest.raises(OutputError):
        check_writable(Path(f"/dev/fd/{descriptor}"))
