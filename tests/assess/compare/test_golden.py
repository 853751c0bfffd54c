"""Golden outputs: saved with torch, used without it, and refused for another model or other images."""

from __future__ import annotations

import json
import shutil
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import sign_again
from command_line import run
from environments import ROOT, environment
from environments import run as run_in
from faults import copy_of, perturb_layer
from raising import raises

import vitdeploy
from vitdeploy.assess.compare.compare import compare
from vitdeploy.assess.compare.golden import FORMAT, Golden
from vitdeploy.assess.data.images import synthetic_images
from vitdeploy.bundle.bundle import Bundle
from vitdeploy.errors import InputError, NotFiniteError, OutputError, UsageError
from vitdeploy.runtimes import BACKENDS, Backend


@pytest.fixture(scope="module")
def golden(single: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("golden") / "golden.npz"
    assert compare(single, save_golden=path).status == "passed"
    return path


@pytest.fixture
def without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BACKENDS, "torch", Backend("not_there:X", (), "torch", "torch"))


@pytest.mark.usefixtures("without_torch")
def test_the_reference_does_not_run(single: Bundle, golden: Path, tmp_path: Path) -> None:
    result = compare(single, golden=golden)
    assert (result.status, result.images, result.synthetic) == ("passed", 16, True)
    assert compare(perturb_layer(copy_of(single, tmp_path / "faulty"), 0), golden=golden).status == "failed"


def test_it_gives_what_a_run_of_the_reference_gives(single: Bundle, golden: Path) -> None:
    live, from_file = compare(single), compare(single, golden=golden)
    assert live.to_dict() == from_file.to_dict()
    found = Golden.read(golden)
    assert found.reference == single.manifest.reference
    assert {name: value.dtype.name for name, value in found.outputs.items()} == {"logits": "float32"}
    assert found.tools["engine"].startswith("torch")


def test_an_environment_without_torch_compares(single: Bundle, golden: Path) -> None:
    code = """
import json, sys, vitdeploy
result = vitdeploy.compare(sys.argv[1], golden=sys.argv[2])
print(json.dumps([result.status, "torch" in sys.modules, [item.artifact for item in result.results]]))
"""
    assert json.loads(run_in(environment("embedded"), "-c", code, single.path, golden, PYTHONPATH=str(ROOT))) == [
        "passed", False, ["onnx-fp32"]
    ]  # fmt: skip


@pytest.mark.usefixtures("without_torch")
def test_golden_outputs_of_something_else_are_refused(single: Bundle, golden: Path, tmp_path: Path) -> None:
    images: list[Any] = list(synthetic_images(16, 32, 32, seed=1))
    with raises(UsageError, what="images"):
        compare(single, golden=golden, images=images)
    with raises(UsageError, what="batch_size", expected=4, found=8):
        compare(single, golden=golden, batch_size=4)
    shutil.copytree(single.path, tmp_path / "other")
    path = tmp_path / "other" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x00")
    with raises(UsageError, what="model.safetensors"):
        compare(sign_again(Bundle.open(tmp_path / "other")), golden=golden)
    shutil.copytree(single.path, tmp_path / "relu")
    config = json.loads((single.path / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "relu" / "config.json").write_text(json.dumps(config | {"hidden_act": "relu"}), encoding="utf-8")
    with raises(UsageError, what="config.json"):
        compare(sign_again(Bundle.open(tmp_path / "relu")), golden=golden)
    found = Golden.read(golden)
    Golden({}, found.reference, found.pixels_sha256, found.batch_size).write(tmp_path / "lacking.npz")
    with raises(UsageError, what="logits", found=None):
        compare(single, golden=tmp_path / "lacking.npz")
    with raises(UsageError, what="golden"):
        compare(single, golden=golden, save_golden=tmp_path / "new.npz")


@pytest.mark.parametrize(
    "content", [b"", b"not an archive", b"PK\x03\x04 cut short", "half", "pickle", "other", "bare"]
)
def test_a_damaged_file_is_one_line(golden: Path, tmp_path: Path, content: Any) -> None:
    path = tmp_path / "golden.npz"
    header = np.frombuffer(json.dumps({"format": "another 7"}).encode(), np.uint8)
    if content == "half":
        path.write_bytes(golden.read_bytes()[: golden.stat().st_size // 2])
    elif content == "pickle":
        np.savez(path, header=np.array([{}], object), allow_pickle=True)
    elif content == "other":
        np.savez(path, header=header)
    elif content == "bare":
        np.savez(path, x=np.zeros(1))
    else:
        path.write_bytes(content)
    with raises(InputError, where=str(path), expected=FORMAT):
        Golden.read(path)
    with raises(InputError, where=str(tmp_path / "absent.npz"), found="No such file or directory"):
        Golden.read(tmp_path / "absent.npz")


def npy_member(shape: str, body: bytes = b"") -> bytes:
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + body


@pytest.mark.parametrize(
    ("member", "compression"),
    [
        (npy_member("(16, 3)", b"\0" * 192), zipfile.ZIP_DEFLATED),
        (npy_member("(16, 3)", b"\0" * 192), zipfile.ZIP_LZMA),
        (npy_member("(16, 3)", b"\0" * 64), zipfile.ZIP_STORED),
        (npy_member("(1000000000, 1000000)"), zipfile.ZIP_STORED),
        (npy_member("(-1, 3)", b"\0" * 192), zipfile.ZIP_STORED),
        (npy_member("()", b"\0" * 4), zipfile.ZIP_STORED),
        (npy_member("(" * 9000), zipfile.ZIP_STORED),
        (npy_member("(16, 3)", b"\0" * 192).replace(b"<f4", b"<i4"), zipfile.ZIP_STORED),
        (npy_member("(16, 3)", b"\0" * 192).replace(b"<f4", b">f4"), zipfile.ZIP_STORED),
        (npy_member("(3, 3)", b"\0" * 36), zipfile.ZIP_STORED),
    ],
)
def test_an_array_that_is_not_as_it_was_written_is_refused(tmp_path: Path, member: bytes, compression: int) -> None:
    path = tmp_path / "golden.npz"
    Golden({"other": np.zeros((16, 2), np.float32)}, {}, "", 8).write(path)
    Golden.read(path)
    with zipfile.ZipFile(path, "a", compression) as archive:
        archive.writestr("output/logits.npy", member)
    with raises(InputError, where=str(path), expected=FORMAT):
        Golden.read(path)


def test_an_encrypted_or_unknown_member_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "golden.npz"
    Golden({}, {}, "", 8).write(path)
    content = path.read_bytes()
    entry = content.index(b"PK\x01\x02")
    for offset, value in ((8, 1), (10, 99)):
        path.write_bytes(content[: entry + offset] + bytes([value]) + content[entry + offset + 1 :])
        with raises(InputError, where=str(path), expected=FORMAT):
            Golden.read(path)


@pytest.mark.parametrize(
    "header", [b"[" * 100_000, b'{"batch_size": Infinity}', b'{"batch_size": 8, "tools": 7}', b"3"]
)
def test_a_damaged_header_is_one_line(tmp_path: Path, header: bytes) -> None:
    path = tmp_path / "golden.npz"
    values = {"format": FORMAT, "reference": {}, "pixels_sha256": "", "tools": {}}
    if header.startswith(b"{"):
        header = json.dumps({**values, **json.loads(header)}).encode()
    np.savez(path, header=np.frombuffer(header, np.uint8))
    with raises(InputError, where=str(path), expected=FORMAT):
        Golden.read(path)


def test_outputs_of_another_shape_are_the_file_s_fault(single: Bundle) -> None:
    reference = single.manifest.reference
    for shape in ((3, 3), (16, 6), (16, 3, 1)):
        with raises(InputError, what="logits", expected=(16, 3), found=shape):
            Golden({"logits": np.zeros(shape, np.float32)}, reference, "", 8).check(single, "", 16, 8)
    Golden({"logits": np.zeros((16, 3), np.float32)}, reference, "", 8).check(single, "", 16, 8)


def test_it_is_written_whole_or_not_at_all(single: Bundle, golden: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError):
        compare(single, save_golden=tmp_path / "file" / "golden.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_command(single: Bundle, golden: Path) -> None:
    assert run("compare", single.path, "--golden", golden).code == 0
    assert vitdeploy.compare is compare


def test_arrays_that_share_their_bytes_are_refused(golden: Path, tmp_path: Path) -> None:
    """A hundred names for one place in the file would take a hundred times its size."""
    path = tmp_path / "golden.npz"
    with zipfile.ZipFile(golden) as archive:
        contents = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
        largest = max(archive.infolist(), key=lambda info: info.file_size)
        archive.filelist.extend([largest] * 100)
        archive._didModify = True  # type: ignore[attr-defined]
    with raises(InputError, where=str(path), expected=FORMAT):
        Golden.read(path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_neither_written_nor_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    golden = Golden({"logits": np.array([[0.0, value]], np.float32)}, {}, "", 1)
    with raises(NotFiniteError, what="logits"):
        golden.write(tmp_path / "golden.npz")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(Golden, "_not_finite", lambda _: [])  # as versions before wrote it
    golden.write(tmp_path / "golden.npz")
    monkeypatch.undo()
    with raises(InputError, where=str(tmp_path / "golden.npz"), expected=FORMAT):
        Golden.read(tmp_path / "golden.npz")
