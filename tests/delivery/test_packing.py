"""Packed bundles: the part of a bundle that production needs, and the errors for omitted parts."""

from __future__ import annotations

import dataclasses
import json
import shutil
from typing import TYPE_CHECKING

import numpy as np
import pytest
from bundles import sign_again
from command_line import run
from PIL import Image
from raising import raises

import vitdeploy
from vitdeploy.assets import default_checkpoint, held_out_images
from vitdeploy.bundle.bundle import Bundle
from vitdeploy.bundle.manifest import MANIFEST, FileRecord
from vitdeploy.errors import BundleChangedError, BundleError, NoReferenceError, OutputError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

WITHOUT_WEIGHTS = {"config.json", MANIFEST, "onnx/model.onnx", "preprocessor_config.json"}


@pytest.fixture
def slim(both: Bundle, tmp_path: Path) -> Bundle:
    return vitdeploy.pack(both.path, "onnx-fp32", output=tmp_path / "slim")


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_it_holds_what_the_artifact_needs_and_predicts_the_same(both: Bundle, slim: Bundle) -> None:
    files = content(slim.path)
    assert set(files) == WITHOUT_WEIGHTS
    assert all(files[name] == value for name, value in content(both.path).items() if name in files and name != MANIFEST)
    assert run("verify", slim.path).code == 0
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8))
    with vitdeploy.load(both.path) as whole, vitdeploy.load(slim.path) as part:
        assert part.predict(image) == whole.predict(image)


def test_the_manifest_keeps_its_facts_and_says_what_is_gone(both: Bundle, slim: Bundle) -> None:
    opened, whole = Bundle.open(slim.path).manifest, both.manifest
    assert opened == slim.manifest
    assert (opened.source, opened.task, opened.weights) == (whole.source, whole.task, whole.weights)
    assert opened.artifacts == (both.artifact("onnx", "fp32"),)
    assert opened.packed_from is not None
    assert opened.packed_from.manifest_sha256 == FileRecord.of(both.path, MANIFEST).sha256
    assert opened.packed_from.artifacts == ("onnx-fp16",)
    assert {*opened.packed_from.files, *opened.records} == {*whole.records}
    assert not opened.has_reference
    assert "packed_from" not in whole.to_dict()


def test_the_same_parts_have_the_same_bytes_however_they_come(both: Bundle, slim: Bundle, tmp_path: Path) -> None:
    direct = vitdeploy.pack(both, ["onnx-fp32"], output=tmp_path / "again")
    assert content(slim.path) == content(direct.path)
    for other in ("onnx-fp16", "torch"):  # each leaves out what the other keeps
        larger = vitdeploy.pack(both, ["onnx-fp32", other], output=tmp_path / "larger")
        indirect = vitdeploy.pack(larger, ["onnx-fp32"], output=tmp_path / "indirect")
        assert content(slim.path) == content(indirect.path)


def test_a_bundle_that_was_replaced_since_it_was_opened(both: Bundle, tmp_path: Path) -> None:
    """Its files are the same, and its manifest is another one."""
    artifacts = tuple(dataclasses.replace(artifact, options={}) for artifact in both.manifest.artifacts)
    sign_again(Bundle(both.path, dataclasses.replace(both.manifest, artifacts=artifacts)))
    with raises(BundleChangedError, where=both.path):
        vitdeploy.pack(both, ["onnx-fp32"], output=tmp_path / "slim")


def test_torch_keeps_the_weights(both: Bundle, tmp_path: Path) -> None:
    packed = vitdeploy.pack(both, ["torch"], output=tmp_path / "reference")
    assert set(content(packed.path)) == WITHOUT_WEIGHTS - {"onnx/model.onnx"} | {"model.safetensors"}
    with vitdeploy.load(packed.path, backend="torch") as predictor:
        assert predictor.details["files"] == ["config.json", "model.safetensors", "preprocessor_config.json"]


def test_an_engine_without_weights_brings_the_artifact_that_has_them(both: Bundle, tmp_path: Path) -> None:
    source = both.artifact("onnx", "fp16")
    (both.path / "tensorrt").mkdir()
    (both.path / "tensorrt/model_fp16.engine").write_bytes(b"plan")
    options = {"batch": ["1:8:32"], "strip_weights": True, "onnx_sha256": [file.sha256 for file in source.files]}
    engine = dataclasses.replace(
        source, format="tensorrt", files=(FileRecord.of(both.path, "tensorrt/model_fp16.engine"),), options=options
    )
    manifest = dataclasses.replace(both.manifest, artifacts=(*both.manifest.artifacts, engine))
    bundle = sign_again(Bundle(both.path, manifest))
    packed = vitdeploy.pack(bundle, "tensorrt-fp16", output=tmp_path / "engine")
    assert [artifact.name for artifact in packed.manifest.artifacts] == ["onnx-fp16", "tensorrt-fp16"]


def test_an_unknown_artifact_or_none(both: Bundle, tmp_path: Path) -> None:
    with raises(UsageError, what="--artifact", found="onnx-int8"):
        vitdeploy.pack(both, ["onnx-fp32", "onnx-int8"], output=tmp_path / "out")
    with raises(UsageError, what="artifacts", expected=("onnx-fp16", "onnx-fp32", "torch")):
        vitdeploy.pack(both, [], output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_path_that_cannot_be_an_output(both: Bundle, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    for output in (tmp_path / "loop", tmp_path / "loop" / "out", tmp_path / "a\0b"):
        with raises(UsageError, what="output", where=output):
            vitdeploy.pack(both, "onnx-fp32", output=output)


def test_an_altered_file_writes_nothing(both: Bundle, slim: Bundle) -> None:
    before = content(slim.path)
    with (both.path / "onnx/model.onnx").open("ab") as file:
        file.write(b"x")
    with raises(BundleError, where=both.path / "onnx/model.onnx"):
        vitdeploy.pack(both, "onnx-fp32", output=slim.path)
    assert content(slim.path) == before


def test_a_write_that_fails_leaves_what_was_there(both: Bundle, slim: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: object, target: Path) -> None:
        raise OSError(28, "No space left on device", str(target))

    before = content(slim.path)
    monkeypatch.setattr(shutil, "copyfile", full)
    with raises(OutputError, where=slim.path):
        vitdeploy.pack(both, "onnx-fp16", output=slim.path)
    assert content(slim.path) == before
    assert {path.name for path in slim.path.parent.iterdir()} == {"both", "slim"}


def test_a_packed_bundle_is_replaced_whole(both: Bundle, slim: Bundle) -> None:
    vitdeploy.pack(both, "onnx-fp16", output=slim.path)
    opened = Bundle.open(slim.path)
    opened.verify()
    assert [artifact.name for artifact in opened.manifest.artifacts] == ["onnx-fp16"]
    assert "onnx/model.onnx" not in content(slim.path)


def test_nothing_else_is_replaced(both: Bundle, slim: Bundle, digits: Bundle, tmp_path: Path) -> None:
    exported = shutil.copytree(digits.path, tmp_path / "exported")
    (slim.path / "notes.txt").write_text("mine")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/file").write_text("x")
    before = content(tmp_path)
    for output in (exported, slim.path, tmp_path / "other", both.path, both.path / "inside", tmp_path):
        with raises(UsageError, what="output", where=output):
            vitdeploy.pack(both, "onnx-fp32", output=output)
    assert content(tmp_path) == before


# Where the reference is asked for.


def test_comparing_says_that_the_reference_is_not_in_it(slim: Bundle) -> None:
    for command in (["compare", slim.path], ["gate", slim.path, "--data", held_out_images()]):
        ran = run(*command)
        assert ran.code == 4
        assert "was packed without the weights of its reference" in ran.err
    for call in (lambda: vitdeploy.load(slim.path, backend="torch"), lambda: vitdeploy.pack(slim, "torch", output="x")):
        with raises(NoReferenceError, what="reference", where=slim.path, expected=("model.safetensors",)):
            call()


def test_a_source_on_the_hub_is_named_with_its_commit(slim: Bundle) -> None:
    source = dataclasses.replace(slim.manifest.source, id="org/vit", revision="f" * 40)
    bundle = Bundle(slim.path, dataclasses.replace(slim.manifest, source=source))
    with raises(NoReferenceError) as caught:
        vitdeploy.compare(bundle)
    assert f"vitdeploy export org/vit --revision {'f' * 40}" in str(caught.value)


def test_golden_outputs_of_the_whole_take_its_place(both: Bundle, slim: Bundle, tmp_path: Path) -> None:
    golden = tmp_path / "golden.npz"
    assert vitdeploy.compare(both, backends=["onnxruntime:fp32"], save_golden=golden).status == "passed"
    assert vitdeploy.compare(slim, golden=golden).status == "passed"


def test_its_artifacts_are_evaluated_and_timed_alone(digits: Bundle, tmp_path: Path) -> None:

    packed = vitdeploy.pack(digits, "onnx-fp32", output=tmp_path / "slim")
    evaluation = vitdeploy.evaluate(packed, data=held_out_images(), limit=20)
    assert [(each.artifact, each.skipped) for each in evaluation.results] == [("onnx-fp32", None)]


def test_an_export_of_the_same_model_completes_it(tmp_path: Path) -> None:

    whole = vitdeploy.export(default_checkpoint(), output=tmp_path / "whole")
    packed = vitdeploy.pack(whole, "onnx-fp32", output=tmp_path / "slim")
    added = vitdeploy.export(default_checkpoint(), to="torchscript", output=packed.path)
    added.verify()
    assert added.manifest.has_reference
    assert added.manifest.packed_from is None
    assert [artifact.name for artifact in added.manifest.artifacts] == ["onnx-fp32", "torchscript-fp32"]


def test_the_command_line_packs_and_tells(both: Bundle, tmp_path: Path) -> None:
    ran = run("pack", both.path, "--artifact", "onnx-fp16", "--artifact", "onnx-fp32", "-o", tmp_path / "out", "--json")
    assert ran.code == 0
    assert ran.json == {"bundle": str(tmp_path / "out"), **json.loads((tmp_path / "out" / MANIFEST).read_text())}
    told = run("pack", both.path, "--artifact", "onnx-fp16", "-o", tmp_path / "small").out
    config = (both.path / "config.json").stat().st_size
    assert f"config.json {config} bytes" in " ".join(told.split())
    assert run("pack", both.path, "--artifact", "onnx-fp16", "-o", both.path).code == 2
    shown = run("inspect", tmp_path / "out").out
    assert "model.safetensors" in shown.split("left out", 1)[1]


@pytest.mark.parametrize(
    ("field", "value"),
    [("manifest_sha256", "abc"), ("files", [{"path": "../x", "size_bytes": 1, "sha256": "0" * 64}]), ("artifacts", 1)],
)
def test_a_malformed_origin_is_refused(slim: Bundle, field: str, value: object) -> None:
    file = slim.path / MANIFEST
    data = json.loads(file.read_text())
    data["packed_from"][field] = value
    file.write_text(json.dumps(data))
    with raises(BundleError, where=file):
        Bundle.open(slim.path)
