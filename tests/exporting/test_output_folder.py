"""The output folder of an export: never the checkpoint, and refused before any work if unusable."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from bundles import tiny_model, write_checkpoint_of
from command_line import run
from raising import raises
from told import Told

import vitdeploy
from vitdeploy.bundle.manifest import MANIFEST
from vitdeploy.errors import CheckpointError, OutputError, UsageError, VitDeployError
from vitdeploy.exporting.output_folder import place_of


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def checkpoint_at(folder: Path) -> Path:
    return write_checkpoint_of(tiny_model(), folder)


def bundle_at(folder: Path) -> None:
    folder.mkdir()
    (folder / MANIFEST).write_text("{}")


ELSEWHERE = ("../other/my-vit", "other/my-vit")
DEFAULTS: dict[str, tuple[str, str, Callable[[Path], object], str]] = {  # --model, its place, what else is here
    "a checkpoint elsewhere": (*ELSEWHERE, lambda here: None, "my-vit"),
    "the checkpoint here": ("my-vit", "here/my-vit", lambda here: None, "my-vit-vitdeploy"),
    "the checkpoint here, as a path": ("./my-vit/", "here/my-vit", lambda here: None, "my-vit-vitdeploy"),
    "another folder of its name": (*ELSEWHERE, lambda here: checkpoint_at(here / "my-vit"), "my-vit-vitdeploy"),
    "a file of its name": (*ELSEWHERE, lambda here: (here / "my-vit").write_text("mine"), "my-vit-vitdeploy"),
    "a bundle of its name": (*ELSEWHERE, lambda here: bundle_at(here / "my-vit"), "my-vit"),
    "an empty folder of its name": (*ELSEWHERE, lambda here: (here / "my-vit").mkdir(), "my-vit"),
    "a broken link of its name": (*ELSEWHERE, lambda here: (here / "my-vit").symlink_to("nowhere"), "my-vit-vitdeploy"),
    "a link to it": (*ELSEWHERE, lambda here: (here / "my-vit").symlink_to("../other/my-vit"), "my-vit-vitdeploy"),
}


@pytest.mark.parametrize("case", DEFAULTS)
def test_the_default_is_never_the_checkpoint(here: Path, tmp_path: Path, case: str) -> None:
    model, folder, prepare, name = DEFAULTS[case]
    checkpoint_at(tmp_path / folder)
    prepare(here)
    assert place_of(None, model, None, 0) == here / name


def test_a_bundle_that_is_exported_is_not_its_own_default(here: Path) -> None:
    bundle_at(here / "my-vit")
    assert place_of(None, "my-vit", None, 0) == here / "my-vit-vitdeploy"


def test_other_models_have_names_too(here: Path) -> None:
    (here / "B_16.npz").touch()
    assert place_of(None, "B_16.npz", None, 0) == here / "B_16"
    (here / "B_16").write_text("mine")
    assert place_of(None, "B_16.npz", None, 0) == here / "B_16-vitdeploy"
    assert place_of(None, None, "vit-tiny-patch16-32", 3) == here / "vit-tiny-patch16-32-random-3"
    checkpoint_at(here / "vit-base")
    assert place_of(None, "google/vit-base", None, 0) == here / "vit-base-vitdeploy"
    assert place_of(None, "google/vit-large", None, 0) == here / "vit-large"


def test_a_default_hides_no_hub_id(here: Path) -> None:
    """The second format would be made of the folder that the first one made, since a folder wins over a Hub id."""
    assert place_of(None, "vit-of-nobody", None, 0) == here / "vit-of-nobody-vitdeploy"


REFUSED: dict[str, tuple[Callable[[Path], object], str, type[VitDeployError]]] = {
    "the checkpoint": (lambda here: None, "my-vit", UsageError),
    "in the checkpoint": (lambda here: None, "my-vit/out", UsageError),
    "in the checkpoint, by a link": (lambda here: (here / "to").symlink_to("my-vit"), "to/out", UsageError),
    "the working directory": (lambda here: (here / MANIFEST).write_text("{}"), "../here", UsageError),
    "a file": (lambda here: (here / "out").write_text("mine"), "out", UsageError),
    "another folder": (lambda here: checkpoint_at(here / "out"), "out", UsageError),
    "below a file": (lambda here: (here / "out").write_text("mine"), "out/bundle", UsageError),
    "no name": (lambda here: None, "", UsageError),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_output_that_cannot_be_used_is_refused_before_any_work(here: Path, case: str) -> None:
    """The weights are not even looked at: the file of these is empty."""
    checkpoint = checkpoint_at(here / "my-vit")
    (checkpoint / "model.safetensors").write_bytes(b"")
    prepare, output, error = REFUSED[case]
    prepare(here)
    before = sorted(here.rglob("*"))
    steps: list[str] = []
    with pytest.raises(error) as caught:
        vitdeploy.export("my-vit", output=output, progress=Told(steps.append))
    assert steps == []
    assert "\n" not in str(caught.value)
    ran = run("export", "--model", "my-vit", f"--output={output}")
    assert (ran.code, len(ran.err.splitlines())) == (error.exit_code, 1 if output else 4)  # click shows the usage
    assert sorted(here.rglob("*")) == before


def test_a_bundle_around_the_checkpoint_is_refused(here: Path) -> None:
    bundle_at(here / "out")
    checkpoint_at(here / "out" / "my-vit")
    with raises(UsageError, what="output", where=str((here / "out" / "my-vit").resolve())):
        place_of("out", "out/my-vit", None, 0)


@pytest.mark.parametrize("repository", ["my-vit", "my-vit/triton"])
def test_a_model_repository_in_the_checkpoint_is_refused(here: Path, repository: str) -> None:
    before = sorted(checkpoint_at(here / "my-vit").rglob("*"))
    ran = run("export", "--model", "my-vit", "-o", "out", "--triton", repository)
    assert (ran.code, "--triton" in ran.err) == (2, True)
    assert sorted((here / "my-vit").rglob("*")) == before


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="nothing is forbidden to root")
def test_an_output_in_a_folder_that_takes_none(here: Path) -> None:
    checkpoint_at(here / "my-vit")
    (here / "locked").mkdir(mode=0o500)
    with pytest.raises(OutputError):
        place_of("locked/out", "my-vit", None, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="these are Linux's")
def test_a_folder_that_takes_none_whatever_its_permissions_are() -> None:
    with raises(OutputError, where="/proc/out"):
        place_of("/proc/out", None, "vit-tiny-patch16-32", 0)


def test_the_default_in_the_checkpoint_asks_for_an_output(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    below = checkpoint_at(here / "my-vit") / "below"
    below.mkdir()
    for folder, model in ((here / "my-vit", "."), (below, "..")):
        monkeypatch.chdir(folder)
        with raises(UsageError, what="output", where=str((here / "my-vit").resolve())):
            place_of(None, model, None, 0)


def test_a_model_that_is_not_there_comes_first(here: Path) -> None:
    with pytest.raises(CheckpointError):
        place_of(None, "./my-vit", None, 0)


def test_a_checkpoint_is_exported_where_it_lies(here: Path) -> None:
    """From the command line, in two formats, of which the second one joins the first."""
    before = {path: path.read_bytes() for path in sorted(checkpoint_at(here / "my-vit").iterdir())}
    ran = run("export", "--model", "my-vit", "--to", "onnx", "--to", "torchscript", "--json")
    manifest = ran.json
    assert (ran.code, manifest["bundle"]) == (0, str(here / "my-vit-vitdeploy"))
    assert [item["format"] for item in manifest["artifacts"]] == ["onnx", "torchscript"]
    assert {path: path.read_bytes() for path in sorted((here / "my-vit").iterdir())} == before
