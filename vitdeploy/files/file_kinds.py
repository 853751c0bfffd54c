"""Recognize files and folders that are not checkpoints, and name the remedy."""

from __future__ import annotations

import os
import re
import struct
import zipfile
from collections.abc import Collection
from pathlib import Path

from vitdeploy.errors import typed_line
from vitdeploy.files.regular_file import open_regular

SETTINGS_FILE, NESTED_FILE = PROCESSOR_CONFIGS = ("preprocessor_config.json", "processor_config.json")

# Files in a repository's root that have its license: LICENSE, LICENSE.md, NOTICE.txt ...
_LICENSE = re.compile(r"(?:LICEN[CS]E|COPYING|NOTICE)(?:[_-][\w-]+)?(?:\.(?:md|txt|rst))?", re.IGNORECASE)
_POINTER = b"version https://git-lfs.github.com/spec/v1"  # git-lfs/docs/spec.md: the first line of every pointer
_MOST_POINTER_BYTES = 1024  # the same page: a pointer is smaller
_MOST_NAMES = 10_000  # bytes read for recognition

_TORCH, _SAFETENSORS, _TORCHSCRIPT, _ONNX = "PyTorch weights", "safetensors weights", "a TorchScript model", "ONNX"
_KERAS, _FLAX, _TF_LITE, _GGUF = "TensorFlow weights", "Flax weights", "a TensorFlow Lite model", "a GGUF model"
_ENGINE, _OPENVINO, _NPZ = "a TensorRT engine", "an OpenVINO model", "a NumPy archive"
_ENDINGS = {
    ".pth": _TORCH, ".pt": _TORCH, ".ckpt": _TORCH, ".bin": _TORCH, ".tar": _TORCH, ".pkl": _TORCH,
    ".safetensors": _SAFETENSORS, ".torchscript": _TORCHSCRIPT, ".onnx": _ONNX, ".engine": _ENGINE, ".plan": _ENGINE,
    ".trt": _ENGINE, ".xml": _OPENVINO, ".h5": _KERAS, ".keras": _KERAS, ".pb": _KERAS, ".msgpack": _FLAX,
    ".tflite": _TF_LITE, ".gguf": _GGUF, ".npz": _NPZ,
}  # fmt: skip
# An extension may lie; the first bytes do not. ".bin" and ".pkl" say little, and ONNX has no magic number.
_BEGINNINGS = (
    (0, b"\x89HDF\r\n\x1a\n", _KERAS),
    (0, b"GGUF", _GGUF),
    (4, b"TFL3", _TF_LITE),
    (0, b"ftrt", _ENGINE),
    (0, b"ptrt", _ENGINE),
    (0, b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", _TORCH),  # torch.serialization.MAGIC_NUMBER, pickled
    (8, b'{"', _SAFETENSORS),  # after the size of the header
)
_EXPORTED = "it was exported already; name the checkpoint that it was made from"
_SAVE = (
    "name their architecture too, --weights FILE --arch vit_base_patch16_224; or save the model as a folder with its "
    "configuration: save_pretrained(FOLDER) in transformers, timm.models.save_for_hf(model, FOLDER) in timm"
)
_CONVERT = (
    "convert it with transformers 4: AutoModel...from_pretrained(FOLDER, {option}=True).save_pretrained(NEW_FOLDER)"
)
_ANSWERS = {
    _TORCH: f"weights alone do not say which model they are of; {_SAVE}",
    _SAFETENSORS: f"weights alone do not say which model they are of; {_SAVE}",
    _TORCHSCRIPT: _EXPORTED,
    _ONNX: _EXPORTED,
    _ENGINE: _EXPORTED,
    _OPENVINO: _EXPORTED,
    _TF_LITE: _EXPORTED,
    _GGUF: "it is in the format of ggml; name the checkpoint that it was made from",
    _KERAS: _CONVERT.format(option="from_tf"),
    _FLAX: _CONVERT.format(option="from_flax"),
    _NPZ: "Google's checkpoints end in .npz; rename the file if it is one",
}


def is_model_file_name(name: str) -> bool:
    """True if a name has a model file's extension, so that it is not a Hub id."""
    return Path(name).suffix.lower() in _ENDINGS


def is_lfs_pointer(path: Path) -> bool:
    """True for a Git LFS pointer, a few lines in place of content that was not fetched."""
    try:
        if not path.is_file() or path.stat().st_size > _MOST_POINTER_BYTES:
            return False
        with path.open("rb") as file:
            return file.read(len(_POINTER)) == _POINTER
    except (OSError, ValueError):  # ValueError: a null byte in the name
        return False


def lfs_advice(path: Path) -> str:
    """The error for a Git LFS pointer."""
    return (
        f"{path} is a Git LFS pointer, its content was not downloaded; run git lfs pull in that repository, "
        f"or: hf download"
    )


def file_kind(path: Path) -> str:
    """Kind of a file, by its first bytes or else its extension; empty if unknown; OSError if it cannot be read."""
    with open_regular(path) as file:  # a pipe would never end
        start = file.read(16)
    if start[:2] == b"PK":
        return _zip_kind(path)
    for offset, magic, kind in _BEGINNINGS:
        if start[offset : offset + len(magic)] == magic:
            return kind
    return _ENDINGS.get(path.suffix.lower(), "")


def _zip_kind(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, NotImplementedError, OSError, OverflowError, ValueError, struct.error):  # a damaged one
        names = []
    last = {name.rpartition("/")[2] for name in names}
    if "constants.pkl" in last:
        return _TORCHSCRIPT
    if "data.pkl" in last:
        return _TORCH
    if names and all(name.endswith(".npy") for name in names):
        return _NPZ
    return _ENDINGS.get(path.suffix.lower(), "")


def file_advice(path: Path) -> str:
    """The error for a file named as a model; OSError if it cannot be read."""
    if is_lfs_pointer(path):
        return lfs_advice(path)
    kind = file_kind(path)
    if not kind:
        return f"{path} is a file of no known kind; name a folder with config.json and weights, or a Google .npz file"
    siblings = {sibling.name for sibling in path.parent.iterdir()}
    if kind in (_TORCH, _SAFETENSORS) and "config.json" in siblings:
        return f"{path} is a file of {kind}; name the folder that holds it and config.json: {path.parent}"
    if kind in (_TORCH, _SAFETENSORS) and "adapter_config.json" in siblings:
        return f"{path} is the file of an adapter; name the folder that holds it: {path.parent}"
    bundle = next((parent for parent in path.parents if (parent / "manifest.json").is_file()), None)
    if bundle is not None:
        return f"{path} is part of a bundle; name the bundle: {typed_line('export', bundle)}"
    noun = f"a file of {kind}" if kind in (_TORCH, _SAFETENSORS, _KERAS, _FLAX) else f"{kind}"
    if kind == _ONNX:
        noun = "an ONNX model"
    return f"{path} is {noun}, no checkpoint: {_ANSWERS[kind]}"


def is_license_name(name: str) -> bool:
    """True for the name of a license file."""
    return _LICENSE.fullmatch(name) is not None


def folder_names(folder: Path) -> list[str]:
    """Files in a folder, up to three levels deep, as relative paths with forward slashes."""
    names: list[str] = []
    for root, folders, files in os.walk(folder):
        below = Path(root).relative_to(folder)
        if len(below.parts) == 3:
            folders.clear()
        names += [(below / name).as_posix() for name in files]
        if len(names) > _MOST_NAMES:
            break
    return names


def names_advice(source: str, names: Collection[str]) -> str | None:
    """The error for a folder or repository without a complete checkpoint; None if its kind is unknown.

    Args:
        source: Path, or quoted Hub id.
        names: Files, as relative paths.
    """
    plain = source.strip("'")
    if not names:
        return f"{source} is empty; name a folder with config.json and weights"
    top = {name for name in names if "/" not in name}
    caches = sorted({name.partition("/")[0] for name in names if re.match(r"models--[^/]+/", name)})
    if caches:
        return f"{source} is a Hub cache; name one of its models by its id, such as {_hub_id(caches[0])}"
    snapshots = sorted({name.split("/")[1] for name in names if re.match(r"snapshots/[^/]+/", name)})
    if snapshots and "config.json" not in top:
        cached = Path(plain).name
        model_id = f"the Hub id {_hub_id(cached)} or " if cached.startswith("models--") else ""
        return f"{source} is a model's part of the Hub cache; name {model_id}{plain}/snapshots/{snapshots[-1]}"
    if any(name.startswith("open_clip_") for name in top):
        return (
            f"{source} has no complete OpenCLIP model: open_clip_config.json, and open_clip_model.safetensors or "
            f"open_clip_pytorch_model.bin"
        )
    below = sorted({name.rpartition("/")[0] for name in names if re.fullmatch(r".+/(adapter_)?config\.json", name)})
    steps = sorted({name.partition("/")[0] for name in names if re.match(r"checkpoint-\d+/", name)})
    if steps:
        newest = max(steps, key=lambda name: int(name.partition("-")[2]))
        which = f"one of its {len(steps)} checkpoints, the newest is" if len(steps) > 1 else "its checkpoint,"
        without = "" if newest in below else ", after a copy of the trained model's config.json into it, which it lacks"
        return f"{source} is the folder of a training run; name {which} {plain}/{newest}{without}"
    if "zero_to_fp32.py" in top:
        return f"{source} has DeepSpeed's partitioned weights; join them with its zero_to_fp32.py --safe_serialization"
    if any(name.endswith(".distcp") for name in names):
        return f"{source} has FSDP's sharded weights; join them: accelerate merge-weights {plain} {plain}"
    if {"manifest.json", "config.json"} <= top:
        return f"{source} is a vitdeploy bundle without its model.safetensors; name the checkpoint it was made from"
    if below and not top & {"config.json", "adapter_config.json"}:
        others = f" (or {', '.join(below[1:4])})" if below[1:] else ""
        return f"{source} has no checkpoint itself; name the folder in it that has: {plain}/{below[0]}{others}"
    return _foreign_advice(source, sorted(top), names)


def _foreign_advice(source: str, top: list[str], names: Collection[str]) -> str | None:
    """The error for a folder with another library's files."""
    for name in top:
        if re.fullmatch(r"tf_model.*\.h5|saved_model\.pb|.+\.ckpt\.index|model\.ckpt.*", name):
            return f"{source} has TensorFlow weights alone ({name}): {_ANSWERS[_KERAS]}"
        if re.fullmatch(r"flax_model.*\.msgpack", name):
            return f"{source} has Flax weights alone ({name}): {_ANSWERS[_FLAX]}"
    for name in (*top, *sorted(set(names) - set(top))):
        kind = _ENDINGS.get(Path(name).suffix.lower())
        if kind in (_ONNX, _ENGINE, _TF_LITE, _GGUF, _OPENVINO, _TORCHSCRIPT):
            return f"{source} has no checkpoint, only an exported model ({name}): {_ANSWERS[kind]}"
    for name in top:
        kind = _ENDINGS.get(Path(name).suffix.lower())
        if kind in (_TORCH, _SAFETENSORS) and name not in ("training_args.bin", "optimizer.pt", "scheduler.pt"):
            if "config.json" in top:
                standard = "model.safetensors" if kind == _SAFETENSORS else "pytorch_model.bin"
                return f"{source} has no weights under a name of transformers; if {name} holds them, name it {standard}"
            return f"{source} has no config.json beside {name}: {_ANSWERS[kind]}"
    return None


def _hub_id(folder: str) -> str:
    """'models--google--vit-base' in a cache is 'google/vit-base'."""
    return folder.removeprefix("models--").replace("--", "/")
