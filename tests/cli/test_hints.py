"""Suggested commands in messages can be pasted: they have the real names, with shell quoting."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import pytest
from command_line import parsed, run
from faults import copy_of

from vitdeploy.assets import default_checkpoint, held_out_images
from vitdeploy.bundle.bundle import Bundle
from vitdeploy.bundle.manifest import MANIFEST


@pytest.fixture
def bundle(digits: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle with a name that a shell would part."""
    monkeypatch.chdir(tmp_path)
    copy_of(digits, tmp_path / "my bundle")
    return Path("my bundle")


def line_of(message: str) -> list[str]:
    """The words of the line that ends a message."""
    _, _, line = message.strip().rpartition(": vitdeploy ")
    parsed(line)
    return shlex.split(line)


def test_a_missing_artifact_is_made_by_the_line(bundle: Path) -> None:
    image = min((held_out_images() / "3").iterdir())
    refused = run("predict", bundle, image, "--precision", "int8")
    words = line_of(refused.err)
    assert (refused.code, words) == (
        2, ["export", "my bundle", "--to", "onnx", "--precision", "int8", "-o", "my bundle"]
    )  # fmt: skip
    assert run(*words).code == 0
    assert run("predict", bundle, image, "--precision", "int8").code == 0
    refused = run("benchmark", bundle, "--backend", "torchscript")
    assert line_of(refused.err) == ["export", "my bundle", "--to", "torchscript", "-o", "my bundle"]


def test_what_is_no_bundle_leads_to_one(bundle: Path, tmp_path: Path) -> None:
    absent = run("verify", "not here")
    assert line_of(absent.err) == ["export", "google/vit-base-patch16-224", "-o", "not here"]
    shutil.copytree(default_checkpoint(), tmp_path / "a checkpoint")
    assert line_of(run("compare", "a checkpoint").err) == ["export", "a checkpoint"]
    inside = run("predict", bundle / "onnx" / "model.onnx", "x.jpg")
    assert (inside.code, inside.err.endswith("; name the bundle that it is in: my bundle\n")) == (4, True)
    assert run("verify", tmp_path / "a checkpoint" / "config.json").err.endswith("folder that vitdeploy export wrote\n")


def test_a_bundle_without_artifacts(bundle: Path) -> None:
    data = json.loads((bundle / MANIFEST).read_text(encoding="utf-8"))
    (bundle / MANIFEST).write_text(json.dumps({**data, "artifacts": []}), encoding="utf-8")
    for arguments in (("compare", bundle), ("debug", "layers", bundle), ("gate", bundle, "--data", held_out_images())):
        refused = run(*arguments)
        assert (refused.code, line_of(refused.err)) == (2, ["export", "my bundle", "-o", "my bundle"])


def test_flags_of_former_versions(bundle: Path) -> None:
    assert line_of(run("compare", bundle, "--layers").err) == ["debug", "layers", "my bundle"]
