"""The tuned choice of a bundle: recorded with its evidence, opened by default, and never by mistake."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnxruntime
import pytest
from bundles import write_bundle
from command_line import run
from raising import raises

import vitdeploy
from vitdeploy.bundle.bundle import Bundle
from vitdeploy.bundle.manifest import MANIFEST, TUNING
from vitdeploy.delivery.packing import pack
from vitdeploy.errors import BundleError
from vitdeploy.runtimes import BACKENDS
from vitdeploy.runtimes.choice import TunedElsewhereWarning
from vitdeploy.serving.scale_out.batch_callable import resolve
from vitdeploy.system.processor import processor_identity
from vitdeploy.tuning.record import record_choice
from vitdeploy.tuning.variant import Variant

if TYPE_CHECKING:
    from PIL import Image

OPTIONS = {"intra_op_threads": 1, "allow_spinning": False}
MACHINE = processor_identity() | {"engine": f"onnxruntime {onnxruntime.__version__}"}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle of two artifacts."""
    bundle = write_bundle(tmp_path_factory.mktemp("exported"))
    return vitdeploy.export(bundle.path, precision="fp16", output=bundle.path)


def choose(bundle: Bundle, target: Path, name: str = "onnx-fp16", **changes: Any) -> Bundle:
    """A copy with a choice that was measured on this machine."""
    copy = Bundle.open(shutil.copytree(bundle.path, target))
    artifact = next(artifact for artifact in copy.manifest.artifacts if artifact.name == name)
    setting: dict[str, Any] = {
        "backend": "onnxruntime", "options": OPTIONS, "batch_size": 3, "machine": MACHINE,
        "evidence": {"candidates": []},
    }  # fmt: skip
    return record_choice(copy, Variant.of(copy, artifact), (), **setting | changes)


def edit(bundle: Bundle, change: Any) -> None:
    file = bundle.path / MANIFEST
    data = json.loads(file.read_text())
    change(data)
    file.write_text(json.dumps(data))


@pytest.fixture
def tuned(exported: Bundle, tmp_path: Path) -> Bundle:
    return choose(exported, tmp_path / "tuned")


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    from vitdeploy.assess.data.images import synthetic_images

    image: Image.Image = next(iter(synthetic_images(1, 40, 40)))
    image.save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_what_is_recorded_is_read_and_opened_again(tuned: Bundle) -> None:
    assert Bundle.open(tuned.path) == tuned
    tuned.verify()
    with vitdeploy.load(tuned.path) as predictor:
        assert (predictor.details["precision"], predictor.batch_size) == ("fp16", 3)
        assert predictor.details["tuned"]["in_use"]
        assert predictor.details["tuned"]["note"] is None
        assert {name: predictor.runtime.details[name] for name in OPTIONS} == OPTIONS
    with vitdeploy.load(tuned.path, device="cpu") as predictor:
        assert predictor.details["precision"] == "fp16"


@pytest.mark.parametrize("asked", [{"backend": "onnxruntime"}, {"precision": "fp32"}, {"intra_op_threads": 1}])
def test_an_argument_overrides_the_choice(tuned: Bundle, asked: dict[str, Any]) -> None:
    with vitdeploy.load(tuned.path, **asked) as predictor:
        assert (predictor.details["precision"], predictor.batch_size) == ("fp32", 8)
        assert "tuned" not in predictor.details


def test_beside_decoding_idle_threads_do_not_spin(exported: Bundle, tmp_path: Path, photo: Path) -> None:
    """Neither those of the tuned choice, nor of its replacement, nor of a job; but if the caller says so."""
    bundle = choose(exported, tmp_path / "beside", options={"prepack": False})
    with vitdeploy.load(bundle.path, beside_decoding=True) as predictor:
        details = predictor.runtime.details
        assert (details["prepack"], details["allow_spinning"]) == (False, False)
        assert predictor.details["tuned"]["options"] == {"prepack": False}
        assert predictor.details["tuned"]["in_use"]
    with vitdeploy.load(bundle.path, beside_decoding=True, allow_spinning=True) as predictor:
        assert predictor.runtime.details["allow_spinning"] is True
    with vitdeploy.load(bundle.path, backend="torch", beside_decoding=True) as predictor:
        assert predictor.details["backend"] == "torch"
    resolved = resolve(bundle.path, {"beside_decoding": True})
    assert resolved.options["allow_spinning"] is False
    assert resolved.batch_size == 3
    bundle = choose(exported, tmp_path / "other", options={"next": 1})
    with (
        pytest.warns(TunedElsewhereWarning),
        vitdeploy.load(bundle.path, beside_decoding=True) as predictor,
    ):
        assert predictor.runtime.details["allow_spinning"] is False
    job = run("predict", bundle.path, photo, "--output", tmp_path / "out.csv", "--json").json
    assert job["details"]["allow_spinning"] is False


def test_another_machine_is_told_once(exported: Bundle, tmp_path: Path, photo: Path) -> None:
    machine = {"cpu": "another", "cpu flags": MACHINE["cpu flags"], "engine": "onnxruntime 0.1"}  # and of unknown CPUs
    bundle = choose(exported, tmp_path / "elsewhere", machine=machine)
    with pytest.warns(TunedElsewhereWarning) as told:
        opened = vitdeploy.load(bundle.path)
    with opened as predictor:
        assert predictor.details["precision"] == "fp16"
        assert len(predictor.details["tuned"]["machine"]) == 3
    assert len(told) == 1
    shown = run("predict", bundle.path, photo)
    assert (shown.code, "another" in shown.err, ", tuned" in shown.out) == (0, True, True)
    assert run("predict", bundle.path, photo, "--json").json["tuned"]["in_use"]


@pytest.mark.parametrize("change", [{"backend": "onnxruntime-tensorrt"}, {"backend": "next"}, {"options": {"next": 1}}])
def test_a_choice_that_cannot_run_here_gives_way(exported: Bundle, tmp_path: Path, change: dict[str, Any]) -> None:
    bundle = choose(exported, tmp_path / "other", **change)
    with pytest.warns(TunedElsewhereWarning) as told:
        opened = vitdeploy.load(bundle.path)
    with opened as predictor:
        assert (predictor.details["precision"], predictor.batch_size) == ("fp32", 8)
        tuned = predictor.details["tuned"]
    assert not tuned["in_use"]
    assert len(told) == 1
    assert tuned["note"] in str(told[0].message)


def test_an_export_of_the_artifact_removes_the_choice(tuned: Bundle) -> None:
    again = vitdeploy.export(tuned.path, precision="fp16", output=tuned.path, graph=vitdeploy.GraphOptions(opset=21))
    assert again.manifest.tuned is None
    assert not (tuned.path / TUNING).exists()
    again.verify()


def test_an_export_of_another_artifact_keeps_it(tuned: Bundle) -> None:
    again = vitdeploy.export(tuned.path, precision="bf16", output=tuned.path)
    assert again.manifest.tuned == tuned.manifest.tuned
    again.verify()


def test_a_second_choice_replaces_the_first(tuned: Bundle, tmp_path: Path) -> None:
    again = choose(tuned, tmp_path / "again", name="onnx-fp32", evidence={"candidates": ["new"]})
    assert again.manifest.tuned is not None
    assert again.manifest.tuned.artifact == "onnx-fp32"
    assert json.loads((again.path / TUNING).read_text()) == {"candidates": ["new"]}


def test_a_choice_of_other_files_is_refused(tuned: Bundle) -> None:
    edit(tuned, lambda data: data["tuned"].update(artifact_sha256=["0" * 64]))
    with raises(BundleError, what="tuned"):
        vitdeploy.load(tuned.path)


@pytest.mark.parametrize(
    ("key", "value"),
    [("batch_size", 0), ("batch_size", True), ("options", {"a": {}}), ("machine", {"cpu": 1}), ("evidence", None)],
)
def test_a_malformed_choice_is_refused(tuned: Bundle, key: str, value: object) -> None:
    edit(tuned, lambda data: data["tuned"].update({key: value}))
    with pytest.raises(BundleError) as caught:
        Bundle.open(tuned.path)
    assert str(caught.value.what).startswith("tuned")


def test_altered_evidence_is_found(tuned: Bundle) -> None:
    (tuned.path / TUNING).write_text("{}")
    with raises(BundleError, where=tuned.path / TUNING):
        tuned.verify()
    assert run("verify", tuned.path).code == 4


def test_a_packed_bundle_carries_the_choice_of_its_artifact(tuned: Bundle, tmp_path: Path) -> None:
    packed = pack(tuned.path, "onnx-fp16", output=tmp_path / "packed")
    packed.verify()
    assert packed.manifest.tuned == tuned.manifest.tuned
    other = pack(tuned.path, "onnx-fp32", output=tmp_path / "other")
    assert other.manifest.tuned is None
    assert not (other.path / TUNING).exists()


def test_inspect_shows_the_choice(tuned: Bundle) -> None:
    shown = run("inspect", tuned.path)
    assert "onnx-fp16 on onnxruntime, intra_op_threads 1, allow_spinning False, batch_size 3" in shown.out
    assert run("inspect", tuned.path, "--json").json["tuned"]["backend"] == "onnxruntime"


def test_the_chosen_artifact_is_opened_where_its_backend_prefers_another_format(
    exported: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two artifacts in one precision, and a backend that prefers the format of the other one."""
    bundle = choose(exported, tmp_path / "two", name="onnx-fp32")

    def add_other_format(data: Any) -> None:
        fp16, fp32 = data["artifacts"]
        data["artifacts"].append(fp32 | {"format": "other", "files": fp16["files"]})

    edit(bundle, add_other_format)
    row = BACKENDS["onnxruntime"]
    monkeypatch.setitem(BACKENDS, "onnxruntime", row._replace(artifact_formats=("other", "onnx")))
    with vitdeploy.load(bundle.path) as predictor:
        assert predictor.details["files"][-1] == "onnx/model.onnx"
