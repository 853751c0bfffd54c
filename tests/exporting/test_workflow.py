"""Export end to end: the bundle's content, and no leftovers of a failed export."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from raising import raises
from told import Told

import vitdeploy
from vitdeploy import GraphOptions, SourceOptions, ValidationOptions
from vitdeploy.bundle.bundle import Bundle
from vitdeploy.bundle.manifest import FileRecord
from vitdeploy.errors import CheckFailedError, CheckpointError, UsageError
from vitdeploy.specs import Task

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import WriteCheckpoint

# ONNX Runtime and torch sum in another order; tiny models differ by about 1e-6 of the output's scale.
TOLERANCE = 1e-5
RANDOM = SourceOptions(random_weights="vit-tiny-patch16-32")


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    target = tmp_path_factory.mktemp("bundles") / "tiny"
    return vitdeploy.export(output=target, source=RANDOM)


def test_two_exports_are_the_same_bytes(
    tmp_path: Path, write_checkpoint: WriteCheckpoint, tiny_config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In another process, with another order of sets; each kind is made of a float32 graph."""
    checkpoint = write_checkpoint(Task.CLASSIFICATION, tiny_config)
    code = """
import sys, vitdeploy
kinds = ("fp16", {"dynamic_image_size": True}), ("bf16", {"embed_resize": True})
for precision, options in kinds:
    graph = vitdeploy.GraphOptions(**options)
    vitdeploy.export(sys.argv[1], output=f"{sys.argv[2]}/{precision}", precision=precision, graph=graph)
"""
    arguments = ["-c", code, str(checkpoint.folder)]
    command = [sys.executable, *arguments, str(tmp_path / "a")]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONHASHSEED": "7"})
    monkeypatch.setattr(sys, "argv", [*arguments[::2], str(tmp_path / "b")])
    exec(code)
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_an_export_into_a_bundle_replaces_the_artifact(bundle: Bundle) -> None:
    before = files(bundle.path)
    vitdeploy.export(output=bundle.path, source=RANDOM)
    assert files(bundle.path) == before


def test_the_manifest_says_where_everything_came_from(
    tmp_path: Path, write_checkpoint: WriteCheckpoint, tiny_config: dict[str, Any]
) -> None:
    checkpoint = write_checkpoint(Task.CLASSIFICATION, tiny_config)
    bundle = vitdeploy.export(checkpoint.folder, output=tmp_path / "out", graph=GraphOptions(opset=18))
    manifest = bundle.manifest
    assert manifest.source.id == checkpoint.folder.name
    assert manifest.source.weights == (FileRecord.of(checkpoint.folder, "model.safetensors"),)
    (artifact,) = manifest.artifacts
    assert (artifact.name, artifact.options["opset"]) == ("onnx-fp32", 18)
    assert artifact.tools["torch"] == torch.__version__
    assert artifact.validation["batches"] == [1, 2, 4]
    assert 0 < artifact.validation["outputs"][0]["max_relative"] < TOLERANCE
    assert str(tmp_path) not in (tmp_path / "out" / "manifest.json").read_text()


def test_half_precision_weights_become_a_float32_repository(
    tmp_path: Path, write_checkpoint: WriteCheckpoint, tiny_config: dict[str, Any]
) -> None:
    checkpoint = write_checkpoint(Task.CLASSIFICATION, tiny_config)
    checkpoint.peer.half().save_pretrained(checkpoint.folder)
    vitdeploy.export(checkpoint.folder, output=tmp_path / "out")
    model = transformers.ViTForImageClassification.from_pretrained(tmp_path / "out")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_out_of_tolerance_is_a_failed_export(tmp_path: Path) -> None:
    with raises(CheckFailedError, what="logits", where="onnx-fp32", expected=1e-12) as caught:
        vitdeploy.export(output=tmp_path / "out", source=RANDOM, validation=ValidationOptions(tolerance=1e-12))
    assert list(tmp_path.iterdir()) == []
    passing = float(str(caught.value.found))
    vitdeploy.export(output=tmp_path / "out", source=RANDOM, validation=ValidationOptions(tolerance=passing))


def test_given_images_are_what_is_compared(bundle: Bundle, tmp_path: Path) -> None:
    from sklearn.datasets import load_sample_images

    folder = os.path.dirname(load_sample_images().filenames[0])  # noqa: PTH120  (a string on purpose)
    given = vitdeploy.export(output=tmp_path / "out", source=RANDOM, validation=ValidationOptions(images=folder))
    (made,), (proven) = bundle.manifest.artifacts, given.manifest.artifacts[0]
    assert (made.validation["images"], proven.validation["images"]) == ("synthetic", "given")
    assert made.validation["pixel_values_sha256"] != proven.validation["pixel_values_sha256"]


def test_an_image_size_of_more_patches_than_any_machine_holds(tmp_path: Path) -> None:
    with raises(UsageError, what="image_size"):
        vitdeploy.export(output=tmp_path / "out", source=RANDOM, graph=GraphOptions(image_size=(32, 32, 9999)))
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_cannot_be_is_found_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    steps: list[str] = []
    with raises(UsageError, what="output", where=str(tmp_path)):
        vitdeploy.export(output=tmp_path, progress=Told(steps.append), source=RANDOM)
    assert steps == []


@pytest.mark.parametrize("name", ["", "x" * 300, "loop"])
def test_an_output_that_no_folder_can_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    with raises(UsageError, what="output"):
        vitdeploy.export(output=name, source=RANDOM)


def test_weights_that_are_no_numbers(
    tmp_path: Path, write_checkpoint: WriteCheckpoint, tiny_config: dict[str, Any]
) -> None:
    checkpoint = write_checkpoint(Task.CLASSIFICATION, tiny_config)
    checkpoint.peer.classifier.weight[0, 0] = float("nan")
    checkpoint.peer.save_pretrained(checkpoint.folder)
    with raises(CheckpointError, where=checkpoint.folder.name):
        vitdeploy.export(checkpoint.folder, output=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_processor_that_does_not_fit_the_model(
    tmp_path: Path, write_checkpoint: WriteCheckpoint, tiny_config: dict[str, Any]
) -> None:
    checkpoint = write_checkpoint(Task.CLASSIFICATION, tiny_config)
    config = {"image_processor_type": "ViTImageProcessor", "size": {"height": 64, "width": 64}}
    (checkpoint.folder / "preprocessor_config.json").write_text(json.dumps(config))
    with raises(CheckpointError, what="image_size", expected=(32, 32), found=(64, 64)):
        vitdeploy.export(checkpoint.folder, output=tmp_path / "out")


def test_killed_in_the_middle(bundle: Bundle) -> None:
    """The process is killed once its artifact is written and is being compared."""
    before = files(bundle.path)
    code = """
import sys, vitdeploy

class Printed(vitdeploy.Progress):
    def step(self, text):
        print(text, flush=True)

source = vitdeploy.SourceOptions(random_weights="vit-tiny-patch16-32")
graph = vitdeploy.GraphOptions(opset=23)
vitdeploy.export(output=sys.argv[1], graph=graph, source=source, progress=Printed())
"""
    process = subprocess.Popen([sys.executable, "-c", code, str(bundle.path)], stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout is not None
        assert any("comparing" in line for line in process.stdout)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    Bundle.open(bundle.path).verify()
    assert files(bundle.path) == before
    vitdeploy.export(output=bundle.path, source=RANDOM)
    assert [path.name for path in bundle.path.parent.iterdir()] == [bundle.path.name]
