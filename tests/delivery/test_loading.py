"""Bundles on the Hub: downloads for a prediction, the cache, and messages."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import shutil
import sys
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from bundles import sign_again
from command_line import run
from hub_server import Hub, hub_server, use_hub
from PIL import Image
from raising import raises

import vitdeploy
from vitdeploy.bundle.bundle import Bundle
from vitdeploy.bundle.manifest import MANIFEST, FileRecord
from vitdeploy.errors import (
    BundleError,
    CheckpointError,
    HubError,
    MissingDependencyError,
    NoReferenceError,
    UsageError,
)
from vitdeploy.runtimes.choice import TunedElsewhereWarning, engine_version
from vitdeploy.system.processor import processor_identity
from vitdeploy.tuning.record import record_choice
from vitdeploy.tuning.variant import Variant

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ID = "org/vit-bundle"
CONFIGURATION = ["config.json", MANIFEST, "preprocessor_config.json"]
IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8))


@pytest.fixture
def hub(both: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with hub_server({ID: both.path}) as server:
        use_hub(server.url, tmp_path / "home", monkeypatch)
        yield server


def test_only_what_the_artifact_needs_is_downloaded(hub: Hub, both: Bundle) -> None:
    with vitdeploy.load(both.path) as local, vitdeploy.load(ID) as predictor:
        assert predictor.predict(IMAGE) == local.predict(IMAGE)
        commit = hub.commit(ID, "main")
        files = ["config.json", "preprocessor_config.json", "onnx/model.onnx"]
        assert predictor.details["files"] == files
        assert (predictor.details["bundle"], predictor.details["revision"]) == (ID, commit)
        assert repr(predictor) == (
            f"<Predictor onnxruntime fp32 on cpu: '{ID}@{str(commit)[:7]}', image-classification, 3 labels>"
        )
    assert hub.downloads == sorted([*CONFIGURATION, "onnx/model.onnx"])
    hub.requests.clear()
    vitdeploy.load(ID).close()
    assert hub.downloads == []


@pytest.mark.parametrize("differs", [{}, {"cpu": "another"}, {"engine": "onnxruntime 0.1"}])
def test_a_tuned_choice_is_downloaded_and_elsewhere_the_usual_one_too(
    hub: Hub, both: Bundle, differs: dict[str, str]
) -> None:
    """Elsewhere it may not run: here its option is unknown."""
    usual, path = both.artifact("onnx", "fp32"), "onnx/model_fp16.onnx"
    model = onnx.load(both.path / "onnx/model.onnx")
    model.doc_string = "another file: equal ones are downloaded once"
    onnx.save(model, both.path / path)
    tuned = dataclasses.replace(usual, precision="fp16", files=(FileRecord.of(both.path, path),))
    bundle = sign_again(Bundle(both.path, dataclasses.replace(both.manifest, artifacts=(tuned, usual))))
    machine = processor_identity() | {"engine": engine_version("onnxruntime")} | differs
    options = {"next": 1} if differs else {"intra_op_threads": 1}
    record_choice(
        bundle, Variant.of(bundle, tuned), (), backend="onnxruntime", options=options, batch_size=1, machine=machine,
        evidence={},
    )  # fmt: skip
    hub.push(ID, both.path)
    with pytest.warns(TunedElsewhereWarning) if differs else contextlib.nullcontext(), vitdeploy.load(ID) as predictor:
        assert predictor.details["precision"] == ("fp32" if differs else "fp16")
        assert predictor.details["tuned"]["in_use"] is not bool(differs)
    assert hub.downloads == sorted([*CONFIGURATION, path, *(["onnx/model.onnx"] if differs else [])])
    hub.requests.clear()
    with vitdeploy.load(ID, artifact="onnx-fp32") as predictor:
        assert predictor.details["files"][-1] == "onnx/model.onnx"
    assert hub.downloads == ([] if differs else ["onnx/model.onnx"])


def test_torch_takes_the_weights(hub: Hub) -> None:
    vitdeploy.load(ID, backend="torch").close()
    assert hub.downloads == sorted([*CONFIGURATION, "model.safetensors"])


def test_without_the_hub_the_cache_serves(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    with vitdeploy.load(ID) as predictor:
        expected = predictor.predict(IMAGE)
        assert not predictor.details["cached"]
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with vitdeploy.load(ID) as predictor:
        assert predictor.predict(IMAGE) == expected
        assert predictor.details["cached"]
    with raises(HubError, what=ID):  # whose artifact was not downloaded
        vitdeploy.load(ID, precision="fp16")
    with raises(HubError, what="out/vit") as caught:
        vitdeploy.load("out/vit")
    assert "no folder is named 'out/vit'" in str(caught.value)


def test_a_revision(hub: Hub, both: Bundle, tmp_path: Path) -> None:
    packed = vitdeploy.pack(both, "onnx-fp32", output=tmp_path / "packed")
    commit = hub.push(ID, packed.path, branch="slim")
    for revision in ("slim", commit):
        with vitdeploy.load(ID, revision=revision) as predictor:
            assert predictor.details["revision"] == commit
    with raises(NoReferenceError, what="reference"):
        vitdeploy.load(ID, revision="slim", backend="torch")
    with raises(CheckpointError, what="revision", found="v9"):
        vitdeploy.load(ID, revision="v9")
    with raises(UsageError, what="revision", found="main"):
        vitdeploy.load(both.path, revision="main")


def test_a_private_bundle_and_its_token(hub: Hub) -> None:
    hub.private[ID] = "hf_secret"
    with raises(CheckpointError, what=ID):
        vitdeploy.load(ID)
    with vitdeploy.load(ID, token="hf_secret") as predictor:
        assert "hf_secret" not in repr(predictor) + repr(predictor.runtime) + json.dumps(predictor.details)
    with raises(UsageError, what="token") as caught:
        vitdeploy.load(ID, token=b"hf_secret")  # type: ignore[arg-type]
    assert "hf_secret" not in str(caught.value)


def test_an_altered_file_is_refused(hub: Hub, both: Bundle) -> None:
    with (both.path / "onnx/model.onnx").open("ab") as file:
        file.write(b"x")
    hub.push(ID, both.path)
    with raises(BundleError, where=re.compile("onnx/model.onnx$")):
        vitdeploy.load(ID)


def test_what_is_missing_on_the_hub(hub: Hub, both: Bundle, tmp_path: Path) -> None:
    with raises(UsageError, what="precision", found="onnx-int8", expected=["onnx-fp16", "onnx-fp32"]):
        vitdeploy.load(ID, precision="int8")
    with raises(CheckpointError, what="org/absent"):
        vitdeploy.load("org/absent")
    partial = shutil.copytree(both.path, tmp_path / "partial")
    (partial / "onnx/model.onnx").unlink()
    hub.push(ID, partial)
    with raises(BundleError, what="onnx/model.onnx"):
        vitdeploy.load(ID)
    (partial / MANIFEST).unlink()
    hub.push(ID, partial)
    with raises(BundleError, what=MANIFEST):
        vitdeploy.load(ID)


def test_weights_beside_the_model(hub: Hub, both: Bundle) -> None:
    """Whose names in the cache are links to files of other names."""
    graph = both.path / "onnx/model.onnx"
    onnx.save(onnx.load(graph), graph, save_as_external_data=True, location="model.onnx_data", size_threshold=1024)
    artifact = both.artifact("onnx", "fp32")
    record = FileRecord.of(both.path, "onnx/model.onnx_data")
    artifacts = (dataclasses.replace(artifact, files=(*artifact.files, record)), both.artifact("onnx", "fp16"))
    bundle = sign_again(Bundle(both.path, dataclasses.replace(both.manifest, artifacts=artifacts)))
    hub.push(ID, bundle.path)
    with vitdeploy.load(bundle.path) as local, vitdeploy.load(ID) as predictor:
        assert predictor.predict(IMAGE) == local.predict(IMAGE)
        assert "onnx/model.onnx_data" in predictor.details["files"]


@pytest.mark.parametrize("name", ["vit", "./org/vit", "../vit", "org/vit/x", "", "/org/vit", "-x/vit", "org/", "~/vit"])
def test_other_names_are_paths(hub: Hub, name: str) -> None:
    with raises(BundleError):
        vitdeploy.load(name)
    assert hub.requests == []


def test_a_folder_wins_over_a_hub_id(hub: Hub, both: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(both.path, tmp_path / ID)
    monkeypatch.chdir(tmp_path)
    vitdeploy.load(ID).close()
    assert hub.requests == []


def test_without_huggingface_hub_the_extra_is_named(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with raises(MissingDependencyError, extra="hub", what=re.compile(ID)):
        vitdeploy.load(ID)


def test_predict_on_the_command_line(hub: Hub, tmp_path: Path) -> None:
    IMAGE.save(tmp_path / "image.png")
    commit = hub.commit(ID, "main")
    ran = run("predict", ID, tmp_path / "image.png", "--revision", "main", "--json")
    assert ran.code == 0
    assert (ran.json["bundle"], ran.json["revision"]) == (ID, commit)
    assert f"{ID}@{str(commit)[:7]}" in run("predict", ID, tmp_path / "image.png").out
    assert run("predict", "org/absent", tmp_path / "image.png").code == 4
