"""The hashed content is opened, even if another process replaces files or writes to them."""

from __future__ import annotations

import collections
import contextlib
import hashlib
import itertools
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
from bundles import export_all, sign_again, tiny_model, write_checkpoint_of
from PIL import Image

import vitdeploy
from vitdeploy.assess.debug.layers import compare_layers
from vitdeploy.assess.inspection.inspection import artifact_named, inspect_artifact
from vitdeploy.bundle.bundle import Bundle
from vitdeploy.bundle.retry import MOST_TRIES
from vitdeploy.bundle.staging import commit
from vitdeploy.cli import main
from vitdeploy.errors import BundleChangedError, BundleError
from vitdeploy.files import opened
from vitdeploy.files.atomic import staged_folder
from vitdeploy.files.opened import FileChangedError, OpenedFile, VerifiedFile
from vitdeploy.runtimes import open_runtime
from vitdeploy.serving.model_repository.repository import write_triton_model

Pair = tuple[Bundle, Bundle]
Swap = Callable[[Path, Path], None]
FORMAT = {"torch": "onnx", "torchscript": "torchscript", "onnxruntime": "onnx", "openvino": "onnx"}
SECONDS = 1.0
PIXELS = np.random.default_rng(0).standard_normal((1, 3, 32, 32), np.float32)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Two models of one architecture, each as ONNX and TorchScript."""
    made = []
    for factor in (1.0, -1.0):
        folder = tmp_path_factory.mktemp("model")
        model = tiny_model()
        for parameter in model.head.parameters():
            parameter.mul_(factor)
        checkpoint = write_checkpoint_of(model, folder / "checkpoint")
        made.append(export_all(checkpoint, formats=("onnx", "torchscript"), output=folder / "bundle"))
    return made[0], made[1]


@pytest.fixture
def copy(pair: Pair, tmp_path: Path) -> Bundle:
    return Bundle.open(shutil.copytree(pair[0].path, tmp_path / "bundle"))


def file_of(bundle: Bundle, backend: str) -> str:
    """The file that holds the weights that a backend runs."""
    return "model.safetensors" if backend == "torch" else bundle.artifact(FORMAT[backend], "fp32").files[0].path


def logits(path: Path, backend: str) -> np.ndarray:
    with vitdeploy.load(path, backend=backend) as predictor:
        return predictor.runtime.run({"pixel_values": PIXELS})["logits"]


@pytest.fixture
def swap_once_hashed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Swap:
    """Give a file's name to a copy of another as soon as it was hashed for the first time."""

    def prepare(target: Path, foreign: Path) -> None:
        waiting = [shutil.copyfile(foreign, tmp_path / "foreign")]

        def digest(file: BinaryIO, name: str) -> Any:
            found = hashlib.new(name, file.read())
            if waiting and os.path.samestat(os.fstat(file.fileno()), target.stat()):
                waiting.pop().replace(target)
            return found

        monkeypatch.setattr(hashlib, "file_digest", digest, raising=False)

    return prepare


@pytest.mark.parametrize("backend", FORMAT)
def test_a_file_that_is_swapped_once_it_was_hashed(
    pair: Pair, copy: Bundle, swap_once_hashed: Swap, backend: str
) -> None:
    wanted, name = logits(pair[0].path, backend), file_of(copy, backend)
    swap_once_hashed(copy.path / name, pair[1].path / name)
    np.testing.assert_array_equal(logits(copy.path, backend), wanted)
    assert (copy.path / name).read_bytes() == (pair[1].path / name).read_bytes()  # it was swapped


def test_a_model_repository_gets_the_file_that_was_hashed(
    pair: Pair, copy: Bundle, swap_once_hashed: Swap, tmp_path: Path
) -> None:
    name = file_of(copy, "onnxruntime")
    swap_once_hashed(copy.path / name, pair[1].path / name)
    model = write_triton_model(copy.path, tmp_path / "models", artifact="onnx-fp32")
    assert (model.path / "1" / "model.onnx").read_bytes() == (pair[0].path / name).read_bytes()


@pytest.mark.parametrize("artifact", ["onnx-fp32", "torchscript-fp32"])
def test_the_graph_that_is_shown_is_of_the_file_that_was_hashed(
    pair: Pair, copy: Bundle, swap_once_hashed: Swap, tmp_path: Path, artifact: str
) -> None:
    chosen = artifact_named(copy, artifact)
    (tmp_path / "no graph").write_bytes(b"no graph")
    swap_once_hashed(copy.path / chosen.files[0].path, tmp_path / "no graph")
    assert inspect_artifact(copy, chosen).graph == inspect_artifact(pair[0], chosen).graph


def test_a_handle_leads_to_the_file_that_was_hashed(copy: Bundle, tmp_path: Path) -> None:
    records, path = copy.artifact("onnx", "fp32").files, copy.path / "onnx" / "model.onnx"
    content = path.read_bytes()
    (tmp_path / "other").write_bytes(b"other")
    with copy.opened(records) as (file,):
        (tmp_path / "other").replace(path)
        assert Path(file.handle).read_bytes() == content
        assert file.named(f"cannot load {file.handle}!") == f"cannot load {path}!"
        followed = file.handle.replace("self", str(os.getpid()))  # as libraries resolve paths
        assert file.named(f"{followed}: no {followed.rpartition('/')[0]}/w.bin") == f"{path}: no {path.parent}/w.bin"


@pytest.mark.parametrize("backend", FORMAT)
def test_a_system_without_paths_of_descriptors(
    pair: Pair, copy: Bundle, swap_once_hashed: Swap, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    """The name is given to libraries, and what it leads to is checked afterwards."""
    monkeypatch.setattr(opened, "descriptor_path", lambda _: None)
    np.testing.assert_array_equal(logits(copy.path, backend), logits(pair[0].path, backend))
    name = file_of(copy, backend)
    swap_once_hashed(copy.path / name, pair[1].path / name)
    with pytest.raises(BundleError):
        vitdeploy.load(copy.path, backend=backend)


def test_a_file_that_is_written_to_while_it_is_open(copy: Bundle) -> None:
    path = copy.path / "onnx" / "model.onnx"
    content = path.read_bytes()
    with contextlib.ExitStack() as stack:
        stack.enter_context(copy.opened(copy.artifact("onnx", "fp32").files))
        path.write_bytes(b"other")
        path.write_bytes(content)  # as it was
        with pytest.raises(BundleChangedError):
            stack.close()


@pytest.mark.parametrize("backend", ["torch", "torchscript"])
def test_a_loaded_model_stays_as_it_is_whatever_is_written_into_its_file(
    pair: Pair, copy: Bundle, backend: str
) -> None:
    path = copy.path / file_of(copy, backend)
    with vitdeploy.load(copy.path, backend=backend) as predictor:
        with path.open("r+b") as file:
            file.seek(path.stat().st_size // 4)
            file.write(b"\x3f" * (path.stat().st_size - file.tell()))
        found = predictor.runtime.run({"pixel_values": PIXELS})["logits"]
    np.testing.assert_array_equal(found, logits(pair[0].path, backend))


def test_a_failure_that_comes_of_a_file_that_is_written_to(copy: Bundle) -> None:

    def fail() -> None:
        with copy.opened(copy.artifact("onnx", "fp32").files) as (file,):
            file.path.write_bytes(b"no model")
            raise BundleError("no model")

    with pytest.raises(BundleChangedError):
        fail()


def test_a_name_that_leads_elsewhere_and_back(copy: Bundle, tmp_path: Path) -> None:
    path = copy.path / "onnx" / "model.onnx"
    with contextlib.ExitStack() as stack:
        (file,) = stack.enter_context(copy.opened_artifact(copy.artifact("onnx", "fp32"), by_name=True))
        assert file == OpenedFile(path, str(path))
        path.rename(tmp_path / "aside")
        path.write_bytes(b"other")
        (tmp_path / "aside").replace(path)
        with pytest.raises(BundleChangedError):
            stack.close()


def test_another_link_to_a_file_is_no_change(copy: Bundle, tmp_path: Path) -> None:
    """An export gives the artifacts that it keeps a second name."""
    with copy.opened(copy.artifact("onnx", "fp32").files):
        (tmp_path / "again").hardlink_to(copy.path / "onnx" / "model.onnx")


def test_messages_name_the_file(copy: Bundle) -> None:
    """Not the descriptor, whatever a library says."""
    onnx = "onnx/model.onnx"
    for name, backend in ((onnx, "onnxruntime"), (onnx, "openvino"), ("torchscript/model_fp32.pt", "torchscript")):
        (copy.path / name).write_bytes(b"\x12\x03abc")
        with pytest.raises(BundleError) as caught:
            open_runtime(sign_again(copy), backend)
        assert str(copy.path / name) in str(caught.value)
        assert "/proc/" not in str(caught.value)


# The other process: it gives the names of a bundle's files to those of another one and back, or writes them in place.
SWAPPER = """
import os, pathlib, sys, time
how, seconds, name, *folders = sys.argv[1:]
target, *sources = (pathlib.Path(folder, name) for folder in folders)
contents = [source.read_bytes() for source in sources]
new = target.with_name("new")
print("ready", flush=True)
while True:
    for content, pause in zip(contents, (float(seconds), 0.003)):
        if how == "replaced":
            new.write_bytes(content)
            os.replace(new, target)
        else:
            with target.open("r+b") as file:
                file.write(content)
                file.truncate()
        time.sleep(pause)
"""
# It commits two artifacts of one model in turn, as exports do.
COMMITTER = """
import pathlib, shutil, sys
from vitdeploy.files.atomic import staged_folder
from vitdeploy.bundle.bundle import Bundle
from vitdeploy.bundle.retry import MOST_TRIES
from vitdeploy.bundle.staging import commit
target, *sources = map(pathlib.Path, sys.argv[1:])
print("ready", flush=True)
while True:
    for source in sources:
        with staged_folder(target) as staging:
            shutil.copytree(source, staging, dirs_exist_ok=True)
            commit(staging, target, Bundle.open(source).manifest)
"""


@contextlib.contextmanager
def beside(program: str, *arguments: object) -> Iterator[None]:
    """Run a program in another process during the block."""
    command = [sys.executable, "-c", program, *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield
            assert process.poll() is None, "it ended by itself"
        finally:
            process.kill()


def turns(fewest: int) -> Iterator[int]:
    """Numbers for `SECONDS`, and longer where a machine is slow."""
    until = time.monotonic() + SECONDS
    for turn in itertools.count():
        if turn >= fewest and time.monotonic() >= until:
            return
        yield turn


@pytest.mark.parametrize(("how", "pause_s"), [("replaced", 0.004), ("written to", 0.06)])
@pytest.mark.parametrize("backend", ["torchscript", "onnxruntime", "openvino"])
def test_no_foreign_model_is_opened_beside_a_process_that_swaps_files(
    pair: Pair, copy: Bundle, backend: str, how: str, pause_s: float
) -> None:
    wanted, name = logits(pair[0].path, backend), file_of(copy, backend)
    seen: collections.Counter[str] = collections.Counter()
    with beside(SWAPPER, how, pause_s, name, copy.path, *(each.path for each in pair)):
        for _ in turns(3):
            try:
                same = np.array_equal(logits(copy.path, backend), wanted)
            except BundleError:
                seen["refused"] += 1
            else:
                seen["right" if same else "foreign"] += 1
    assert seen["foreign"] == 0, seen


@pytest.fixture(scope="module")
def generations(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """One model, exported twice, to other bytes."""
    folder = tmp_path_factory.mktemp("generations")
    checkpoint = write_checkpoint_of(tiny_model(), folder / "checkpoint")
    first, second = (
        vitdeploy.export(checkpoint, output=folder / f"opset-{opset}", graph=vitdeploy.GraphOptions(opset=opset))
        for opset in (18, 20)
    )
    assert first.manifest.artifacts[0].files != second.manifest.artifacts[0].files
    return first, second


def test_no_load_is_told_that_a_file_was_altered_beside_exports(generations: Pair, tmp_path: Path) -> None:
    path = shutil.copytree(generations[0].path, tmp_path / "bundle")
    wanted = logits(generations[0].path, "onnxruntime")
    with beside(COMMITTER, path, *(each.path for each in reversed(generations))):
        for _ in turns(5):
            np.testing.assert_allclose(logits(path, "onnxruntime"), wanted, atol=1e-5)  # of another opset, too


READERS: dict[str, Callable[[Path, Path], object]] = {
    "load": lambda path, _: vitdeploy.load(path).close(),
    "open_runtime": lambda path, _: open_runtime(Bundle.open(path), "onnxruntime").close(),
    "verify": lambda path, _: command("verify", path),
    "inspect": lambda path, _: command("inspect", path),
    "compare": lambda path, data: vitdeploy.compare(path, images=data),
    "compare layers": lambda path, data: compare_layers(path, images=data),
    "evaluate": lambda path, data: vitdeploy.evaluate(path, data=data, backends=["onnxruntime"]),
    "gate": lambda path, data: vitdeploy.gate(path, data=data),
    "benchmark": lambda path, _: vitdeploy.benchmark(path, backends=["onnxruntime"], batch_sizes=[1], rounds=1, runs=1),
    "triton": lambda path, data: write_triton_model(path, data.parent / "models"),
}


def command(*arguments: object) -> None:
    with pytest.raises(SystemExit) as exited:
        main(list(map(str, arguments)))
    assert exited.value.code in (0, None)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "images"
    for index, label in enumerate(("cat", "dog", "newt")):
        (folder / label).mkdir(parents=True)
        Image.new("RGB", (32, 32), (80 * index, 40, 90)).save(folder / label / "0.png")
    return folder


@pytest.mark.parametrize("reader", READERS)
def test_a_bundle_that_is_replaced_once_its_manifest_was_read_is_read_again(
    generations: Pair, tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, reader: str
) -> None:
    path = shutil.copytree(generations[0].path, tmp_path / "bundle")
    waiting, read = [generations[1]], Bundle.open.__func__  # type: ignore[attr-defined]

    def read_and_replaced(cls: type[Bundle], /, folder: Any, **options: Any) -> Bundle:
        bundle: Bundle = read(cls, folder, **options)
        if waiting and bundle.path == path:
            replace(path, waiting.pop())
        return bundle

    monkeypatch.setattr(Bundle, "open", classmethod(read_and_replaced))
    READERS[reader](path, data)
    assert not waiting
    assert read(Bundle, path).manifest == generations[1].manifest


def test_a_bundle_that_is_replaced_again_and_again_is_told_so(
    generations: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = shutil.copytree(generations[0].path, tmp_path / "bundle")
    turns, read = itertools.cycle(reversed(generations)), Bundle.open.__func__  # type: ignore[attr-defined]
    times = 0

    def read_and_replaced(cls: type[Bundle], /, folder: Any, **options: Any) -> Bundle:
        nonlocal times
        bundle: Bundle = read(cls, folder, **options)
        if not replacing:
            times += 1
            replacing.append(True)
            replace(path, next(turns))
            replacing.clear()
        return bundle

    replacing: list[bool] = []
    monkeypatch.setattr(Bundle, "open", classmethod(read_and_replaced))
    with pytest.raises(BundleChangedError):
        vitdeploy.load(path)
    assert MOST_TRIES <= times <= 3 * MOST_TRIES


def test_a_runtime_of_a_bundle_that_was_replaced_by_another_model(pair: Pair, copy: Bundle) -> None:
    shutil.rmtree(copy.path)
    shutil.copytree(pair[1].path, copy.path)
    with pytest.raises(BundleChangedError):
        open_runtime(copy, "onnxruntime")


def replace(path: Path, source: Bundle) -> None:
    """As an export does."""
    with staged_folder(path) as staging:
        shutil.copytree(source.path, staging, dirs_exist_ok=True)
        commit(staging, path, source.manifest)


def verified(path: Path) -> VerifiedFile:
    content = path.read_bytes()
    return VerifiedFile(path, len(content), hashlib.sha256(content).hexdigest())


def test_a_write_that_hides_its_time_and_restores_the_content_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    file = verified(path)
    with contextlib.closing(file):
        before = path.stat()
        path.write_bytes(b"another")
        path.write_bytes(b"content")
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        with pytest.raises(FileChangedError):
            file.check()
