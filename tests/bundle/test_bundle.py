"""Bundles: verified content, and refused manifests."""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from bundles import write_bundle
from raising import raises

from vitdeploy.bundle.bundle import Bundle
from vitdeploy.bundle.manifest import Artifact, FileRecord, Manifest, Source
from vitdeploy.bundle.staging import check_target, commit
from vitdeploy.errors import BundleError, OutputError, UsageError
from vitdeploy.exporters import EXPORTERS
from vitdeploy.files.atomic import staged_folder
from vitdeploy.specs import ENGINE_FORMATS, AxisRange, PixelFormat, TensorSpec
from vitdeploy.trt.library import LIBRARIES

ENGINE = {
    "format": "tensorrt",
    "options": {"batch": ["1:8:32", "64:64:64"], "height": ["16:32:64"], "width": "32"},
    "validation": {"status": "not yet run", "images": "none", "engine": "x", "tolerance": 1e-4, "outputs": []},
    "hardware": {"platform": "x", "compute_capabilities": ["8.9"]},
}
VALIDATION = {"tolerance": 0.2, "images": "given", "engine": "x", "outputs": []}
CALIBRATED = {"output": "logits", "images": 2, "mean_cosine": 1.0, "top1_agreement": None}


def graph(text: str) -> bytes:
    """A valid ONNX file: ModelProto.producer_name, which is field 2."""
    return b"\x12" + bytes([len(text) & 0x7F | 0x80, len(text) >> 7]) + text.encode()


def write(target: Path, name: str = "onnx/model.onnx", precision: str = "fp32", text: str = "graph") -> Bundle:
    """A bundle of one small artifact, or one more in the bundle that is there."""
    with staged_folder(target) as staging:
        (staging / name).parent.mkdir(exist_ok=True)
        (staging / name).write_bytes(graph(text))
        (staging / "config.json").write_text('{"id2label": {"0": "cat", "1": "dog"}}')
        artifact = Artifact(
            "onnx",
            precision,
            (FileRecord.of(staging, name),),
            inputs=(TensorSpec("pixel_values", "float32", ("batch", 3, 8, 8)),),
            outputs=(TensorSpec("logits", "float32", ("batch", 2)),),
            pixels=PixelFormat(),
            axes={"batch": AxisRange(1, 8, 32)},
            options={"opset": 20},
            tools={"vitdeploy": "0"},
            validation={},
        )
        files = (FileRecord.of(staging, "config.json"),)
        return commit(staging, target, Manifest(Source("a/b", "abc"), "image-classification", files, (artifact,)))


def edit(target: Path, change: Any) -> None:
    data = json.loads((target / "manifest.json").read_text())
    change(data)
    (target / "manifest.json").write_text(json.dumps(data))


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    written = write(tmp_path / "out")
    opened = Bundle.open(tmp_path / "out")
    assert opened == written
    opened.verify()
    assert opened.read_config().labels == ("cat", "dog")
    assert opened.artifact("onnx", "fp32").inputs[0].shape == ("batch", 3, 8, 8)


def test_another_artifact_keeps_the_first_and_other_files(tmp_path: Path) -> None:
    write(tmp_path / "out")
    (tmp_path / "out" / "notes" / "empty").mkdir(parents=True)
    (tmp_path / "out" / "notes" / "mine.txt").write_text("mine")
    (tmp_path / "out" / "elsewhere").symlink_to("/nowhere")
    write(tmp_path / "out", "onnx/model_int8.onnx", "int8")
    bundle = Bundle.open(tmp_path / "out")
    bundle.verify()
    assert [artifact.name for artifact in bundle.manifest.artifacts] == ["onnx-fp32", "onnx-int8"]
    assert (tmp_path / "out" / "notes" / "mine.txt").read_text() == "mine"
    assert (tmp_path / "out" / "notes" / "empty").is_dir()
    assert (tmp_path / "out" / "elsewhere").is_symlink()


def test_the_same_artifact_is_replaced_with_its_files(tmp_path: Path) -> None:
    write(tmp_path / "out", "onnx/model.onnx")
    write(tmp_path / "out", "onnx/other.onnx", text="new")
    bundle = Bundle.open(tmp_path / "out")
    bundle.verify()
    assert [file.path for file in bundle.artifact("onnx", "fp32").files] == ["onnx/other.onnx"]
    assert not (tmp_path / "out" / "onnx" / "model.onnx").exists()


def test_a_bundle_of_another_model_is_refused_and_untouched(tmp_path: Path) -> None:
    write(tmp_path / "out")
    edit(tmp_path / "out", lambda data: data.update(task="image-feature-extraction"))
    before = (tmp_path / "out" / "manifest.json").read_bytes()
    with raises(UsageError, what="model", where=tmp_path / "out", found="a/b"):
        write(tmp_path / "out")
    assert (tmp_path / "out" / "manifest.json").read_bytes() == before


def test_a_folder_of_other_files_is_refused_and_untouched(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "me.jpg").write_text("me")
    with raises(UsageError, what="output", where=tmp_path / "photos"):
        write(tmp_path / "photos")
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["me.jpg"]


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    write(tmp_path / "out").verify()


@pytest.mark.parametrize("name", ["config.json", "onnx/model.onnx"])
def test_a_flipped_byte(tmp_path: Path, name: str) -> None:
    bundle = write(tmp_path / "out")
    path = tmp_path / "out" / name
    data = bytearray(path.read_bytes())
    data[3] ^= 1
    path.write_bytes(data)
    with raises(BundleError, where=path, expected=re.compile("[0-9a-f]{64}")):
        bundle.verify()


@pytest.mark.parametrize("name", ["config.json", "onnx/model.onnx", "manifest.json"])
def test_a_pipe_is_not_waited_for(tmp_path: Path, name: str) -> None:
    write(tmp_path / "out")
    (tmp_path / "out" / name).unlink()
    os.mkfifo(tmp_path / "out" / name)
    with raises(BundleError, where=tmp_path / "out" / name):
        Bundle.open(tmp_path / "out").verify()


def tensor(*shape: Any, name: Any = "logits") -> dict[str, Any]:
    return {"name": name, "dtype": "float32", "shape": list(shape)}


WRONG: dict[str, tuple[Any, ...]] = {
    "files": ([], {}),
    "format": (None,),
    "precision": (7, []),
    "inputs": ([], [tensor(name=1)]),
    "outputs": (
        [],
        [tensor("batch", 2, name="\ud800")],
        [tensor("batch", 2)] * 2,
        *([tensor(*shape)] for shape in ((), ("batch", -1), (1.5,))),
    ),
    "options": ({"opset": {"deep": []}}, {"batch": 5}),
    "tools": (5, {"onnx": 1}),
    "validation": (
        {"tolerance": None},
        *({**VALIDATION, **change} for change in ({"tolerance": 10**399}, {"status": "pending"})),
        {**VALIDATION, "outputs": [{"output": "logits"}]},
    ),
    "hardware": ("x", *({"compute_capabilities": value} for value in ("8.9", [8.9], None))),
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in WRONG.items() for value in values])
def test_an_artifact_with_a_wrong_value(tmp_path: Path, key: str, value: Any) -> None:
    write(tmp_path / "out")
    edit(tmp_path / "out", lambda data: data["artifacts"][0].update({key: value}))
    with raises(BundleError, what=re.compile(rf"artifacts\[0\]\.{key}"), where=tmp_path / "out" / "manifest.json"):
        Bundle.open(tmp_path / "out")


@pytest.mark.parametrize(
    ("key", "value"),
    [("size_bytes", -1), ("size_bytes", 10**30), ("size_bytes", True), ("sha256", None),
     ("sha256", "abc"), ("path", "./config.json"), ("path", "a//b")],
)  # fmt: skip
def test_a_record_with_a_wrong_value(tmp_path: Path, key: str, value: Any) -> None:
    write(tmp_path / "out")
    edit(tmp_path / "out", lambda data: data["files"][0].update({key: value}))
    with raises(BundleError, what=f"files[0].{key}", found=value):
        Bundle.open(tmp_path / "out")


def test_a_missing_file(tmp_path: Path) -> None:
    bundle = write(tmp_path / "out")
    (tmp_path / "out" / "onnx" / "model.onnx").unlink()
    with raises(BundleError, where=tmp_path / "out" / "onnx" / "model.onnx"):
        bundle.verify()


@pytest.mark.parametrize(
    "path",
    [
        "../x", "a/../../x", "/etc/passwd", "C:/x", "C:x", "..\\x", "a\\..\\x", "//host/share/x", "", ".", "a\0b",
        "a\nb", "\ud800", 5,
    ],
)  # fmt: skip
def test_a_file_name_that_leaves_the_bundle(tmp_path: Path, path: Any) -> None:
    write(tmp_path / "out")
    edit(tmp_path / "out", lambda data: data["artifacts"][0]["files"][0].update(path=path))
    with raises(BundleError, what="artifacts[0].files[0].path", found=path):
        Bundle.open(tmp_path / "out")


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        *((text, {"expected": "JSON"}) for text in ("{", "\xff", "[" * 100_000)),
        ('{"schema_version": 3, "schema_version": 2}', {"expected": "JSON"}),
        *((f'{{"schema_version": {number}}}', {"expected": "JSON"}) for number in ("1e400", "Infinity")),
        ("[]", {"expected": "object", "found": []}),
        ("{}", {"what": "schema_version", "found": None}),
        *(
            (f'{{"schema_version": {version}}}', {"what": "schema_version", "expected": (2, 3), "found": version})
            for version in (1, 4)
        ),
        *((f'{{"schema_version": {version}}}', {"what": "source"}) for version in (2, 3)),
    ],
)
def test_a_corrupt_manifest(tmp_path: Path, text: str, fields: dict[str, Any]) -> None:
    (tmp_path / "manifest.json").write_bytes(text.encode("latin-1"))
    with raises(BundleError, where=tmp_path / "manifest.json", **fields):
        Bundle.open(tmp_path)


@pytest.mark.parametrize("key", ["source", "task", "files", "artifacts"])
@pytest.mark.parametrize("value", [None, 1, "x", {"id": 1}, [1], [{}]])
def test_a_manifest_with_a_wrong_value(tmp_path: Path, key: str, value: Any) -> None:
    write(tmp_path / "out")
    edit(tmp_path / "out", lambda data: data.update({key: value}))
    with raises(BundleError, what=re.compile(f"^{key}")):
        Bundle.open(tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"pixels": {"stage": "decoded", "layout": "nhwc", "dtype": "uint8"}}, "pixels"),
        ({"pixels": {"stage": "resized", "layout": "nchw", "dtype": "uint8"}}, "pixels"),
        ({"pixels": {"stage": "normalized", "layout": "nchw", "dtype": "float16"}}, "pixels"),
        ({"pixels": {"stage": "normalized", "layout": "nhwc", "dtype": "float32"}}, "pixels"),
        ({"pixels": {"stage": "banana", "layout": "nchw", "dtype": "float32"}}, "pixels"),
        ({"pixels": {"stage": "normalized", "layout": "nchw"}}, "pixels"),
        ({"axes": {"height": {"minimum": 1, "optimum": 2, "maximum": 3}}}, "axes"),
        ({"axes": {"batch": {"minimum": 3, "optimum": 2, "maximum": 3}}}, "axes.batch"),
        ({"axes": {"batch": {"minimum": 1, "optimum": 2}}}, "axes.batch"),
        ({"axes": []}, "axes"),
        *(
            ({"validation": {**VALIDATION, "calibration_images": measured}}, f"validation.calibration_images{what}")
            for measured, what in (
                ({}, ""),
                ([{}], "[0].output"),
                ([{**CALIBRATED, "images": 2.5}], "[0].images"),
                ([{**CALIBRATED, "mean_cosine": "1"}], "[0].mean_cosine"),
                ([{**CALIBRATED, "top1_agreement": True}], "[0].top1_agreement"),
            )
        ),
        *(
            ({**ENGINE, "options": {"batch": batch}}, f"options.batch{what}")
            for batch, what in (
                (5, ""), (None, ""), ("1:8:32", ""), ([], ""), ([1, 2], "[0]"), ([["1:8:32"]], ""), (["1:8"], "[0]"),
                (["8:1:32"], "[0]"), (["x"], "[0]"), ([None], "[0]"),
            )
        ),
        ({**ENGINE, "options": {}}, "options.batch"),
        ({**ENGINE, "format": "coreml"}, "validation.status"),
        ({**ENGINE, "format": "onnx"}, "validation.status"),
        ({**ENGINE, "precision": "fp7"}, "precision"),
    ],
    ids=str,
)  # fmt: skip
def test_an_artifact_that_contradicts_itself(tmp_path: Path, change: dict[str, Any], what: str) -> None:
    """Pixels and axes are those of the inputs; engines have profiles, and nothing else waits to be run."""
    write(tmp_path / "out")
    edit(tmp_path / "out", lambda data: data["artifacts"][0].update(change))
    with raises(BundleError, what=f"artifacts[0].{what}"):
        Bundle.open(tmp_path / "out")


@pytest.mark.parametrize("name", ["nowhere", "x" * 300, "a\0b"])
def test_no_bundle(tmp_path: Path, name: str) -> None:
    with raises(BundleError, where=tmp_path / name):
        Bundle.open(tmp_path / name)


def test_an_artifact_that_is_not_there(tmp_path: Path) -> None:
    with raises(UsageError, what="precision", expected=["onnx-fp32"], found="onnx-int8"):
        write(tmp_path / "out").artifact("onnx", "int8")


def test_an_engine_is_read(tmp_path: Path) -> None:
    write(tmp_path / "out")
    edit(tmp_path / "out", lambda data: data["artifacts"][0].update(ENGINE))
    assert Bundle.open(tmp_path / "out").artifact("tensorrt", "fp32").options == ENGINE["options"]


def test_every_artifact_that_is_made_from_another_is_an_engine() -> None:
    """The manifest is below the tables of exporters and libraries."""
    assert (
        set(ENGINE_FORMATS) == set(LIBRARIES) == {name for name, row in EXPORTERS.items() if row.made_from is not None}
    )


@pytest.mark.parametrize(
    ("format", "path"), [("onnx", "other/model.data"), ("onnx", "model.data"), ("tensorrt", "onnx/model.data")]
)
def test_a_second_file_elsewhere_or_of_an_engine(tmp_path: Path, format: str, path: str) -> None:  # noqa: A002
    write(tmp_path / "out")

    def change(data: Any) -> None:
        (artifact,) = data["artifacts"]
        artifact.update(format=format, options={"batch": ["1:8:32"]})
        artifact["files"].append({**artifact["files"][0], "path": path})

    edit(tmp_path / "out", change)
    with raises(BundleError, what="artifacts[0].files"):
        Bundle.open(tmp_path / "out")


@pytest.mark.parametrize("inside", [".", "below"])
def test_a_bundle_is_not_around_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inside: str
) -> None:
    (tmp_path / "out" / "below").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "out" / inside)
    with raises(UsageError, what="output", where=tmp_path / "out", hint="cd out of it"):
        check_target(tmp_path / "out")
    check_target(tmp_path / "out" / "below" / "other")


def test_a_bundle_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to("stored")
    for name, precision in (("onnx/model.onnx", "fp32"), ("onnx/model_int8.onnx", "int8")):
        write(tmp_path / "out", name, precision)
    assert (tmp_path / "out").readlink() == Path("stored")
    bundle = Bundle.open(tmp_path / "stored")
    bundle.verify()
    assert [artifact.name for artifact in bundle.manifest.artifacts] == ["onnx-fp32", "onnx-int8"]


def stored_elsewhere(tmp_path: Path, *, absolute: bool) -> Path:
    """A bundle whose graphs are in another folder, to which its own is a link."""
    write(tmp_path / "out")
    (tmp_path / "out" / "onnx").rename(tmp_path / "stored")
    (tmp_path / "stored" / "mine").mkdir()
    (tmp_path / "stored" / "mine" / "notes.txt").write_text("mine")
    (tmp_path / "out" / "onnx").symlink_to(tmp_path / "stored" if absolute else "../stored")
    Bundle.open(tmp_path / "out").verify()
    return tmp_path / "stored"


@pytest.mark.parametrize("absolute", [False, True])
def test_a_folder_that_is_a_link_loses_nothing(tmp_path: Path, absolute: bool) -> None:
    stored = stored_elsewhere(tmp_path, absolute=absolute)
    before = sorted(stored.rglob("*"))
    write(tmp_path / "out", "onnx/model_int8.onnx", "int8")
    write(tmp_path / "out", "torchscript/model.pt", "bf16")
    bundle = Bundle.open(tmp_path / "out")
    bundle.verify()
    assert [artifact.name for artifact in bundle.manifest.artifacts] == ["onnx-bf16", "onnx-fp32", "onnx-int8"]
    assert (tmp_path / "out" / "onnx" / "mine" / "notes.txt").read_text() == "mine"
    assert sorted(stored.rglob("*")) == before  # nothing is written through a link
    write(tmp_path / "out", "onnx/model.onnx", text="new")
    assert (stored / "model.onnx").read_bytes() == graph("graph")
    assert (tmp_path / "out" / "onnx" / "model.onnx").read_bytes() == graph("new")
    Bundle.open(tmp_path / "out").verify()


def test_a_folder_that_is_a_link_stays_one_where_nothing_is_written(tmp_path: Path) -> None:
    stored_elsewhere(tmp_path, absolute=False)
    write(tmp_path / "out", "torchscript/model.pt", "bf16")
    assert (tmp_path / "out" / "onnx").readlink() == Path("../stored")
    Bundle.open(tmp_path / "out").verify()


def test_a_file_that_is_a_link_out_of_the_bundle_stays_one(tmp_path: Path) -> None:
    write(tmp_path / "out")
    for name in ("config.json", "onnx/model.onnx"):
        (tmp_path / "out" / name).rename(tmp_path / "blob")
        (tmp_path / "out" / name).symlink_to(tmp_path / "blob")
        write(tmp_path / "out", "onnx/model_int8.onnx", "int8")
        bundle = Bundle.open(tmp_path / "out")
        bundle.verify()
        assert (tmp_path / "out" / name).is_symlink() == (name != "config.json")  # which the export writes
    write(tmp_path / "out", text="new")
    assert (tmp_path / "blob").read_bytes() == graph("graph")


def test_a_link_to_a_file_of_the_bundle_outlives_it(tmp_path: Path) -> None:
    write(tmp_path / "out")
    write(tmp_path / "out", "onnx/model_int8.onnx", "int8")
    (tmp_path / "out" / "onnx" / "model_int8.onnx").unlink()
    (tmp_path / "out" / "onnx" / "model_int8.onnx").symlink_to("model.onnx")  # which has the same bytes
    write(tmp_path / "out", text="new")
    Bundle.open(tmp_path / "out").verify()


@pytest.mark.parametrize("name", ["onnx/model_int8.onnx", "onnx"])
def test_a_file_that_the_manifest_does_not_name_is_not_replaced(tmp_path: Path, name: str) -> None:
    write(tmp_path / "out", "other/model.onnx")
    (tmp_path / "out" / name).parent.mkdir(exist_ok=True)
    (tmp_path / "out" / name).write_text("mine")
    with raises(UsageError, where=tmp_path / "out" / name):
        write(tmp_path / "out", "onnx/model_int8.onnx", "int8")
    assert (tmp_path / "out" / name).read_text() == "mine"
    Bundle.open(tmp_path / "out").verify()


def test_a_pipe_that_is_no_part_of_the_bundle_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "out")
    os.mkfifo(tmp_path / "out" / "pipe")
    write(tmp_path / "out", "onnx/model_int8.onnx", "int8")
    assert (tmp_path / "out" / "pipe").is_fifo()

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)  # as on a file system without hard links
    with raises(OutputError, where=tmp_path / "out"):
        write(tmp_path / "out", "onnx/model_bf16.onnx", "bf16")
    (tmp_path / "out" / "pipe").unlink()
    write(tmp_path / "out", "onnx/model_bf16.onnx", "bf16").verify()


def test_a_bundle_on_a_full_disk_is_untouched(tmp_path: Path) -> None:
    write(tmp_path / "out")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limit[1]))
    try:
        with pytest.raises(OutputError):
            write(tmp_path / "out", text="x" * 2000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    Bundle.open(tmp_path / "out").verify()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("pipes", "code"), [(["bundle/model.safetensors"], 4), (["bundle/notes", ".bundle.partial-00000000"], 0)]
)
def test_an_export_waits_for_no_pipe(tmp_path: Path, pipes: list[str], code: int) -> None:
    write_bundle(tmp_path, formats=("torchscript",))
    for pipe in pipes:
        (tmp_path / pipe).unlink(missing_ok=True)
        os.mkfifo(tmp_path / pipe)
    places = ["--model", str(tmp_path / "checkpoint"), "-o", str(tmp_path / "bundle")]
    command = [sys.executable, "-m", "vitdeploy", "export", "--to", "torchscript", *places]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    assert (done.returncode, done.stderr.count("\n")) == (code, min(code, 1)), done.stderr
    assert all((tmp_path / pipe).is_fifo() for pipe in pipes)
