"""The TorchScript backend's own: what it opens, what it refuses, and its option."""

from __future__ import annotations

import json
import re
import shutil
import warnings
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bundles import FLOAT32_TOLERANCE, make_feeds, reference, sign_again, tiny_model, worst_difference, write_bundle
from raising import raises

import vitdeploy
from vitdeploy.bundle.bundle import Bundle
from vitdeploy.errors import BundleError, DeviceError
from vitdeploy.runtimes import open_runtime
from vitdeploy.runtimes.torchscript import TorchScriptRuntime
from vitdeploy.specs import Precision, TensorSpec

# Of the output's scale: the unit roundoff of float16 is 4.9e-4 and of bfloat16 3.9e-3, a few of them in a row.
TOLERANCES = {Precision.FP32: FLOAT32_TOLERANCE, Precision.FP16: 1e-2, Precision.BF16: 8e-2}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_bundle(tmp_path_factory.mktemp("written"), formats=["torchscript"])


@pytest.fixture
def bundle(written: Bundle, tmp_path: Path) -> Bundle:
    return Bundle.open(shutil.copytree(written.path.parent, tmp_path / "copy") / written.path.name)


def test_every_precision_of_one_bundle(bundle: Bundle) -> None:
    model = tiny_model()
    for precision in ("fp16", "bf16"):
        bundle = vitdeploy.export(
            bundle.path.parent / "checkpoint", to="torchscript", precision=precision, output=bundle.path
        )
    names = [artifact.name for artifact in bundle.manifest.artifacts]
    assert names == ["torchscript-bf16", "torchscript-fp16", "torchscript-fp32"]
    bundle.verify()
    comparison = vitdeploy.compare(bundle)
    assert [(result.artifact, result.status) for result in comparison.results] == [(name, "passed") for name in names]
    arrays = make_feeds(model, 3)
    for precision, tolerance in TOLERANCES.items():
        with open_runtime(bundle, "torchscript", precision=precision) as runtime:
            assert worst_difference(runtime.run(arrays), reference(model, arrays)) <= tolerance


def test_the_threads_are_told(bundle: Bundle) -> None:
    with open_runtime(bundle, "torchscript") as runtime:
        assert runtime.threads is not None
        assert runtime.details["threads"] == runtime.threads.count == torch.get_num_threads()
        assert runtime.details["threads_reason"] == runtime.threads.reason


@pytest.mark.parametrize("optimized_execution", [False, True])
def test_both_ways_of_execution_in_several_threads(bundle: Bundle, optimized_execution: bool) -> None:
    model = tiny_model()
    with open_runtime(bundle, "torchscript", {"optimized_execution": optimized_execution}) as runtime:
        assert runtime.details["optimized_execution"] is optimized_execution
        calls = [make_feeds(model, 1 + seed % 4, seed) for seed in range(12)]
        with ThreadPoolExecutor(3) as pool:
            found = list(pool.map(runtime.run, calls))
    for arrays, outputs in zip(calls, found, strict=True):
        assert worst_difference(outputs, reference(model, arrays)) <= FLOAT32_TOLERANCE


def test_the_setting_is_as_it_was_after_a_run(bundle: Bundle) -> None:
    before = torch._C._get_graph_executor_optimize()
    with open_runtime(bundle, "torchscript") as runtime:
        runtime.run(make_feeds(tiny_model(), 1))
    assert torch._C._get_graph_executor_optimize() is before


def save(module: Any, path: Path, extra: dict[str, str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.trace(module, torch.ones(2, 3)), path, _extra_files=extra)  # type: ignore[no-untyped-call]


def damage_version(path: Path) -> None:
    """Give the member that states the format's version a byte that is no text, as torch's message then is none."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), b"\x80" if name.endswith("/version") else content)


NO_ARTIFACTS: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_bytes(b"not a zip file"),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "weights": lambda path: torch.save({"weight": torch.ones(2)}, path),
    "version": damage_version,
    "foreign": lambda path: save(torch.nn.Identity(), path, {}),
    "half": lambda path: save(torch.nn.Identity(), path, {"signature.json": "{"}),
    "outputs missing": lambda path: save(torch.nn.Identity(), path, {"signature.json": '{"inputs": []}'}),
    "list": lambda path: save(torch.nn.Identity(), path, {"signature.json": "[]"}),
    "inputs twice": lambda path: save(
        torch.nn.Identity(), path, {"signature.json": '{"inputs": [], "inputs": [], "outputs": []}'}
    ),
    "no tensors": lambda path: save(
        torch.nn.Identity(), path, {"signature.json": '{"inputs": [], "outputs": [{"name": 1}]}'}
    ),
}


@pytest.mark.parametrize("write", NO_ARTIFACTS.values(), ids=NO_ARTIFACTS)
def test_a_file_that_is_no_artifact_is_a_bundle_error_of_one_line(
    bundle: Bundle, write: Callable[[Path], object]
) -> None:
    """Although the manifest vouches for it."""
    path = bundle.path / bundle.manifest.artifacts[0].files[0].path
    write(path)
    with raises(BundleError, where=str(path)):
        open_runtime(sign_again(bundle), "torchscript")


def test_a_file_is_not_opened_before_its_checksum_is_verified(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[object] = []
    monkeypatch.setattr(torch.jit, "load", lambda *args, **_: opened.append(args))
    path = bundle.path / bundle.manifest.artifacts[0].files[0].path
    path.write_bytes(path.read_bytes() + b"\0")
    with raises(BundleError) as caught:
        open_runtime(bundle, "torchscript")
    assert path.name in str(caught.value)
    assert not opened


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with raises(BundleError, where=str(tmp_path / "model.pt"), expected="a TorchScript file"):
        TorchScriptRuntime(tmp_path / "model.pt")


def test_another_signature_than_the_manifests_is_a_bundle_error(bundle: Bundle) -> None:
    path = bundle.path / bundle.manifest.artifacts[0].files[0].path
    signature = {"inputs": [{"name": "x", "dtype": "float32", "shape": ["n", 3]}], "outputs": []}
    save(torch.nn.Identity(), path, {"signature.json": json.dumps(signature)})
    with raises(BundleError, what="inputs and outputs", found=((TensorSpec("x", "float32", ("n", 3)),), ())):
        open_runtime(sign_again(bundle), "torchscript")


def test_an_engine_failure_is_a_device_error_that_says_why(tmp_path: Path) -> None:
    """Not with the first line, which is the same for all failures."""
    signature = {
        "inputs": [{"name": "x", "dtype": "float32", "shape": ["batch", 4]}],
        "outputs": [{"name": "y", "dtype": "float32", "shape": ["batch", 3]}],
    }
    save(torch.nn.Linear(3, 3), tmp_path / "model.pt", {"signature.json": json.dumps(signature)})
    with (
        TorchScriptRuntime(tmp_path / "model.pt") as runtime,
        raises(DeviceError, what="torch", found=re.compile(r"shapes.*\(2x4 and 3x3\)")),
    ):
        runtime.run({"x": np.ones((2, 4), np.float32)})


def test_a_text_longer_than_its_pickle_is_not_made_room_for(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's reader of pickles takes 4 GB for it before it finds out."""
    path = bundle.path / bundle.manifest.artifacts[0].files[0].path
    with zipfile.ZipFile(path) as archive:
        members = {member.filename: archive.read(member) for member in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, b"\x80\x02X\xf0\xff\xff\xff" if name.endswith("constants.pkl") else content)
    opened: list[object] = []
    monkeypatch.setattr(torch.jit, "load", lambda *args, **_: opened.append(args))
    with raises(BundleError, where=str(path)):
        open_runtime(sign_again(bundle), "torchscript")
    assert opened == []
