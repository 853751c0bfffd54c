"""Files and folders that are not checkpoints: each is recognized, and the error names the remedy."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import safetensors.torch
import torch
from bundles import tiny_model, write_checkpoint_of
from hub_server import hub_server
from raising import raises

from vitdeploy.cli import main
from vitdeploy.errors import CheckpointError, ImageError
from vitdeploy.images.open import open_image
from vitdeploy.sources.hub import resolve

STATE = {"weight": torch.ones(2)}
# As git-lfs writes it (git-lfs/docs/spec.md).
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"4d7a" * 16 + b"\nsize 346293852\n"
PEFT = Path(__file__).parents[1] / "golden" / "peft" / "plain"


def answer(model: Path | str, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that the command line prints, which exits with 4."""
    with pytest.raises(SystemExit) as exited:
        main(["export", "--model", str(model), "-o", "never-made"])
    lines = capsys.readouterr().err.splitlines()
    assert (exited.value.code, len(lines)) == (4, 1)
    with pytest.raises(CheckpointError):
        resolve(model)
    return lines[0]


def write_names(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"{}")
    return folder


# Files.


def write_onnx(path: Path) -> None:
    graph = onnx.helper.make_graph([], "empty", [], [])
    path.write_bytes(onnx.helper.make_model(graph).SerializeToString())


def write_torchscript(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:  # the entries of torch.jit.save
        for name in ("model/data.pkl", "model/constants.pkl", "model/code/__torch__.py"):
            archive.writestr(name, b"")


WRITERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "weights.pth": (lambda path: torch.save(STATE, path), "PyTorch weights"),
    "last.ckpt": (lambda path: torch.save({"state_dict": STATE}, path), "PyTorch weights"),
    "legacy.pt": (lambda path: torch.save(STATE, path, _use_new_zipfile_serialization=False), "PyTorch weights"),
    "pytorch_model.bin": (lambda path: torch.save(STATE, path), "PyTorch weights"),
    "model.safetensors": (lambda path: safetensors.torch.save_file(STATE, path), "safetensors weights"),
    "traced.pt": (write_torchscript, "TorchScript"),
    "model.onnx": (write_onnx, "ONNX"),
    "model.engine": (lambda path: path.write_bytes(b"ftrt" + bytes(60)), "TensorRT engine"),
    "model.plan": (lambda path: path.write_bytes(bytes(64)), "TensorRT engine"),
    "tf_model.h5": (lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(56)), "TensorFlow"),
    "flax_model.msgpack": (lambda path: path.write_bytes(b"\x81" + bytes(63)), "Flax"),
    "model.tflite": (lambda path: path.write_bytes(b"\x1c\0\0\0TFL3" + bytes(56)), "TensorFlow Lite"),
    "model.gguf": (lambda path: path.write_bytes(b"GGUF" + bytes(60)), "GGUF"),
}
_NO_MAGIC = ("model.onnx", "model.plan", "flax_model.msgpack")


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_is_no_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    write, kind = WRITERS[name]
    write(tmp_path / name)
    line = answer(tmp_path / name, capsys)
    assert kind in line
    assert str(tmp_path / name) in line


@pytest.mark.parametrize("name", [name for name in WRITERS if name not in _NO_MAGIC])
def test_a_file_is_known_by_its_content(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    """Whatever it is called."""
    write, kind = WRITERS[name]
    for other in ("download", "model.onnx", "x.pth", "x.engine"):
        write(tmp_path / other)
        assert kind in answer(tmp_path / other, capsys)


@pytest.mark.parametrize("suffix", ["pth", "ckpt", "onnx", "engine", "safetensors", "npz"])
def test_a_file_that_does_not_exist_is_no_hub_id(capsys: pytest.CaptureFixture[str], suffix: str) -> None:
    assert "no such file" in answer(f"my-vit.{suffix}", capsys)


def test_weights_in_a_checkpoint_lead_to_its_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_checkpoint_of(tiny_model(), tmp_path / "vit")
    assert answer(folder / "model.safetensors", capsys).endswith(str(folder))
    shutil.copytree(PEFT / "adapter", tmp_path / "lora")
    assert answer(tmp_path / "lora" / "adapter_model.safetensors", capsys).endswith(str(tmp_path / "lora"))


DAMAGED = (  # a zip archive of which a newer version is needed to open it
    b"PK\x01\x02" + bytes(2) + b"\xff" + bytes(39) + b"PK\x05\x06" + bytes(4) + b"\x01\0\x01\0" + b"\x2e" + bytes(9)
)


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04 no archive", DAMAGED])
def test_a_file_of_no_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes) -> None:
    (tmp_path / "notes").write_bytes(content)
    assert "no known kind" in answer(tmp_path / "notes", capsys)


def test_an_archive_of_arrays_under_another_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (tmp_path / "B_16").open("wb") as file:
        np.savez(file, cls=np.zeros(3))
    assert ".npz" in answer(tmp_path / "B_16", capsys)


# Git LFS pointers.


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "preprocessor_config.json"])
def test_a_pointer_of_git_lfs_in_a_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    folder = write_checkpoint_of(tiny_model(), tmp_path / "vit")
    (folder / name).write_bytes(POINTER)
    line = answer(folder, capsys)
    assert "git lfs pull" in line
    assert str(folder / name) in line


def test_pointers_of_other_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_checkpoint_of(tiny_model(), tmp_path / "vit")
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    safetensors.torch.save_file({"a": torch.ones(1)}, folder / "model-00001-of-00002.safetensors")
    (folder / "model-00002-of-00002.safetensors").write_bytes(POINTER)
    assert "model-00002-of-00002.safetensors is a Git LFS pointer" in answer(folder, capsys)

    (folder / "model.safetensors.index.json").write_bytes(POINTER)
    assert "index.json is a Git LFS pointer" in answer(folder, capsys)

    shutil.copytree(PEFT / "adapter", tmp_path / "lora")
    (tmp_path / "lora" / "adapter_model.safetensors").write_bytes(POINTER)
    assert "git lfs pull" in answer(tmp_path / "lora", capsys)

    for name in ("B_16.npz", "weights.pth"):
        (tmp_path / name).write_bytes(POINTER)
        assert "git lfs pull" in answer(tmp_path / name, capsys)

    (tmp_path / "cat.jpg").write_bytes(POINTER)
    with raises(ImageError, what=str(tmp_path / "cat.jpg"), found="a Git LFS pointer"):
        open_image(tmp_path / "cat.jpg")


# Folders. Each name's end is what the answer must have.

FOLDERS = {
    "a training run": (
        "checkpoint-1000/config.json checkpoint-500/config.json checkpoint-200/config.json "
        "checkpoint-1000/model.safetensors runs/events",
        "{}/checkpoint-1000",
    ),
    "a training run of an adapter": (
        "checkpoint-90/adapter_config.json checkpoint-100/adapter_config.json",
        "{}/checkpoint-100",
    ),
    "a training run with a configuration": ("config.json checkpoint-9/config.json", "{}/checkpoint-9"),
    "a training run of one checkpoint": ("checkpoint-9/config.json", "name its checkpoint, {}/checkpoint-9"),
    "a training run without configurations": (
        "config.json checkpoint-9/model.safetensors checkpoint-10/model.safetensors",
        "{}/checkpoint-10, after a copy of the trained model's config.json",
    ),
    "an exported model of the Hub": ("config.json onnx/model.onnx", "(onnx/model.onnx): it was exported already"),
    "parts of a model": ("config.json 1_Pooling/config.json tf_model.h5", "from_tf=True"),
    "a bundle without its weights": ("manifest.json config.json onnx/model.onnx", "vitdeploy bundle"),
    "OpenCLIP": ("open_clip_config.json open_clip_vocabulary.json", "OpenCLIP"),
    "OpenCLIP, weights alone": ("open_clip_model.safetensors", "OpenCLIP"),
    "TensorFlow": ("config.json tf_model.h5", "from_tf=True"),
    "TensorFlow, saved model": ("saved_model.pb variables/variables.index", "from_tf=True"),
    "Flax": ("config.json flax_model.msgpack", "from_flax=True"),
    "an exported model": ("model.onnx labels.txt", "exported already"),
    "an exported model with a configuration": ("config.json model.onnx", "exported already"),
    "an engine": ("model.plan config.pbtxt", "exported already"),
    "PyTorch Lightning": ("epoch=9.ckpt hparams.yaml", "save_pretrained"),
    "weights under another name": ("config.json weights.safetensors", "name it model.safetensors"),
    "the Hub cache": ("models--google--vit-base/snapshots/1a2b/config.json version.txt", "google/vit-base"),
    "a model's cache": ("snapshots/1a2b/config.json refs/main", "{}/snapshots/1a2b"),
    "a folder around": ("vit/config.json vit/model.safetensors", "{}/vit"),
    "several adapters": ("red/adapter_config.json blue/adapter_config.json", "{}/blue (or red)"),
    "DeepSpeed": ("config.json zero_to_fp32.py global_step9/mp_rank_00_model_states.pt", "zero_to_fp32.py"),
    "FSDP": ("config.json pytorch_model_fsdp_0/__0_0.distcp", "accelerate merge-weights"),
    "the adapters library": ("adapter_config.json pytorch_adapter.bin head_config.json", "merge_adapter"),
    "nothing": ("", "is empty"),
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_a_folder_without_a_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    names, what = FOLDERS[kind]
    folder = tmp_path / "folder"
    folder.mkdir()
    write_names(folder, *names.split())
    assert what.format(folder) in answer(folder, capsys)


def test_a_models_cache_is_named_by_its_id(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_names(tmp_path / "models--google--vit-base", "snapshots/1a2b/config.json", "refs/main")
    assert "the Hub id google/vit-base" in answer(folder, capsys)


def test_a_run_that_saved_its_model_is_a_checkpoint(tmp_path: Path) -> None:
    """Trainer.save_model writes it beside the checkpoint folders."""
    folder = write_checkpoint_of(tiny_model(), tmp_path / "run")
    write_names(folder, "checkpoint-500/config.json")
    assert resolve(folder).weights == (folder / "model.safetensors",)


@pytest.mark.parametrize("kind", ["OpenCLIP", "TensorFlow", "Flax", "an exported model", "a training run"])
def test_a_repository_without_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """On the Hub, by the list of its files."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    names, what = FOLDERS[kind]
    with (
        hub_server({"org/model": write_names(tmp_path / "repo", *names.split())}) as hub,
        pytest.raises(CheckpointError) as caught,
    ):
        resolve("org/model", endpoint=hub.url, cache_dir=tmp_path / "cache")
    assert what.format("org/model") in str(caught.value)
    assert str(caught.value).startswith("'org/model' ")
    assert not [name for name in hub.downloads if name != "config.json"]
