"""The license of a checkpoint is in its bundle, in the manifest, and in the model card of a push."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

import pytest
from command_line import run
from hub_server import hub_server
from raising import raises

import vitdeploy
from vitdeploy.assets import default_checkpoint
from vitdeploy.bundle.bundle import Bundle
from vitdeploy.delivery.model_card import model_card
from vitdeploy.errors import CheckpointError
from vitdeploy.sources.license_files import read_licenses, stated_license
from vitdeploy.sources.read import read_checkpoint

CARD = """---
license: other  # Meta's
license_name: "dinov3-license"
license_link: https://ai.meta.com/resources/models-and-libraries/dinov3-license
tags:
- license: no
---
license: mit
"""
STATED = {
    "license": "other",
    "license_name": "dinov3-license",
    "license_link": "https://ai.meta.com/resources/models-and-libraries/dinov3-license",
}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = shutil.copytree(default_checkpoint(), tmp_path / "checkpoint")
    (folder / "README.md").write_text(CARD)
    (folder / "LICENSE.md").write_text("DINOv3 License\n")
    (folder / "Notice").write_bytes(b"\xff")
    (folder / "license_plates.csv").write_text("")
    return Path(folder)


def export(model: str | Path, folder: Path, **options: object) -> Bundle:
    return vitdeploy.export(model, to="torchscript", output=folder, **options)  # type: ignore[arg-type]


def assert_licensed(bundle: Bundle) -> None:
    records = {record.path for record in bundle.manifest.files}
    assert {"LICENSE.md", "Notice"} <= records
    assert "license_plates.csv" not in records
    assert (bundle.path / "LICENSE.md").read_text() == "DINOv3 License\n"
    assert (bundle.path / "Notice").read_bytes() == b"\xff"
    assert Bundle.open(bundle.path).manifest.source.license == STATED


def test_a_folders_license_is_in_its_bundle(checkpoint: Path, tmp_path: Path) -> None:
    bundle = export(checkpoint, tmp_path / "out")
    assert_licensed(bundle)
    run("pack", bundle.path, "--artifact", "torchscript-fp32", "-o", tmp_path / "packed")
    assert_licensed(Bundle.open(tmp_path / "packed"))
    assert "dinov3-license" in run("inspect", bundle.path).out
    card = model_card(bundle, "me/model")
    assert 'license: "other"\nlicense_name: "dinov3-license"' in card


def test_a_license_of_the_hub_is_read_with_its_checkpoint(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with hub_server({"org/model": checkpoint}) as server:
        fetch = partial(read_checkpoint, "org/model", cache_dir=tmp_path / "cache", endpoint=server.url)
        found = fetch()
        assert {"LICENSE.md", "Notice", "README.md"} <= set(server.downloads)
        assert "license_plates.csv" not in server.downloads
    for read in (found, fetch(offline=True)):
        assert read.source.license == STATED
        assert {name: read.files[name] for name in ("LICENSE.md", "Notice")} == {
            name: (checkpoint / name).read_bytes() for name in ("LICENSE.md", "Notice")
        }


def test_another_license_is_no_other_model(checkpoint: Path, tmp_path: Path) -> None:
    export(default_checkpoint(), tmp_path / "out")
    bundle = vitdeploy.export(checkpoint, to="torchscript", precision="bf16", output=tmp_path / "out")
    assert_licensed(bundle)
    assert len(bundle.manifest.artifacts) == 2


def test_what_is_no_card_states_nothing(tmp_path: Path) -> None:
    assert stated_license(tmp_path) is None
    for text in ("", "license: mit\n", "---\nlicense:\n- mit\n---\n", "---\nlicense: mit\n"):
        (tmp_path / "README.md").write_text(text)
        assert stated_license(tmp_path) is None
    (tmp_path / "README.md").write_bytes(b"---\r\nlicense: apache-2.0\r\n---\r\n\xff")
    assert stated_license(tmp_path) == {"license": "apache-2.0"}


def test_a_license_that_is_no_text_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "LICENSE").open("wb") as file:
        file.truncate(17 * 1024**2)
    with raises(CheckpointError, where=tmp_path / "LICENSE"):
        read_licenses(tmp_path)
