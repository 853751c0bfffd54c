"""Odd files of weights: safetensors, torch's, and the index of shards."""

from __future__ import annotations

import collections
import io
import json
import pickle
import struct
import warnings
import zipfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fuzz.cases import Case
from fuzz.damage import choose, damaged, odd_json
from fuzz.special_files import copy_tree, replace, rewrite
from vitdeploy.sources.read import Checkpoint, read_checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable

_SPECIAL_SHARE = 0.03
_INTEGERS = ("I64", "I32", "I16", "I8", "U8", "BOOL")
_DTYPES = ("F64", "F32", "F16", "BF16", *_INTEGERS, "F8_E4M3", "F8_E5M2", "F4", "C64", "X", "", 1, None)
_SIZES = (-1, 0, 1, 2, 3, 24, 10**6, 10**9, 2**31, 2**32, 2**53, 2**63, 2**64, 1.5, "1", None, True)


def odd_safetensors(rng: np.random.Generator, content: bytes) -> tuple[str, bytes]:
    """A file whose header says something else than what follows; the form is that of the format's README.

    Eight bytes of the header's length, a JSON object of dtype, shape and data_offsets by name, and the data.
    """
    (length,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    name = choose(rng, [key for key in header if key != "__metadata__"])
    entry = header[name]
    of_tensors = ("extra", "missing", "renamed", "metadata", "data", "overlap")
    kind = choose(rng, ("dtype", "shape", "offsets", "length", "json", *of_tensors))
    if kind == "dtype":
        entry["dtype"] = choose(rng, _DTYPES)
    elif kind == "shape":
        entry["shape"] = [choose(rng, _SIZES) for _ in range(int(rng.integers(0, 9)))]
    elif kind == "offsets":
        entry["data_offsets"][int(rng.integers(2))] = choose(rng, _SIZES)
    elif kind == "extra":
        header["x" * int(rng.integers(1, 300))] = {"dtype": "F32", "shape": [0], "data_offsets": [len(data), len(data)]}
    elif kind == "missing":
        del header[name]
    elif kind == "renamed":
        names = ("module." + name, "_orig_mod." + name, "", "\ud800", "a\0", "loss_fct.weight")
        header[choose(rng, names)] = header.pop(name)
    elif kind == "metadata":
        values: tuple[Any, ...] = (None, [], {"format": "tf"}, {"format": 1}, {"a": {}}, "x", {"a": "b" * 10**6})
        header["__metadata__"] = choose(rng, values)
    elif kind == "overlap":
        header[name + "2"] = entry
    elif kind == "data":
        note, data = damaged(rng, data)
        kind = f"data {note}"
    text = json.dumps(header).encode()
    if kind == "json":
        note, text, _ = odd_json(rng, header)
        kind = f"json {note}"
    size = len(text)
    if kind == "length":
        size = choose(rng, (0, 1, 7, size - 1, size + 1, 10**8, 2**31, 2**63 - 1, 2**64 - 1))
    return f"safetensors {kind}", struct.pack("<Q", size) + text + data


def read_plainly(content: bytes) -> dict[str, np.ndarray[Any, Any]]:
    """The tensors of a safetensors file that is right, in float32, by the format's README alone."""
    (length,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    found = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        start, end = entry["data_offsets"]
        if entry["dtype"] == "BF16":
            values = (np.frombuffer(data[start:end], "<u2").astype(np.uint32) << 16).view(np.float32)
        else:
            values = np.frombuffer(data[start:end], {"F64": "<f8", "F32": "<f4", "F16": "<f2"}[entry["dtype"]])
        found[name] = values.reshape(entry["shape"]).astype(np.float32)
    return found


class Safetensors:
    """model.safetensors.

    Oracle: refused with 4; or every weight of the model is, bit for bit, that of a plain reading of the file.
    """

    def __init__(self, base: Path) -> None:
        self._checkpoint = base / "checkpoint"
        self._content = (self._checkpoint / "model.safetensors").read_bytes()

    def make(self, rng: np.random.Generator, folder: Path) -> Case:
        file = copy_tree(self._checkpoint, folder / "checkpoint") / "model.safetensors"
        make = odd_safetensors if rng.random() < 0.7 else partial(damaged, head=4096)
        note, content = make(rng, self._content)
        rewrite(file, content)
        if rng.random() < _SPECIAL_SHARE:
            note, _ = replace(rng, file)

        def check(checkpoint: Checkpoint) -> str | None:
            with np.errstate(all="ignore"):
                return _differs(checkpoint, read_plainly(file.read_bytes()))

        return Case(note, _EXPORT, check=check, call=lambda: read_checkpoint("checkpoint"))


def _differs(checkpoint: Checkpoint, wanted: dict[str, np.ndarray[Any, Any]]) -> str | None:
    """True if the model's weights differ from these, under any names."""
    contents = collections.Counter(array.tobytes() for array in wanted.values())
    for name, tensor in checkpoint.model.state_dict().items():
        if not contents[tensor.numpy().tobytes()]:
            return f"{name} is not what the file has"
    return None


_EXPORT = ("export", "--model", "checkpoint", "--output", "out", "--json")


class _Writes:
    """Unpickled, it would write a file."""

    def __init__(self, call: Callable[..., Any], *args: Any) -> None:
        self._call = call, args

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self._call


class TorchFiles:
    """pytorch_model.bin.

    Oracle: refused with 4, or the model has the weights of the undamaged file, but for one that was damaged in its
    data; and nothing in the file was run.
    """

    def __init__(self, base: Path) -> None:
        self._folder = base / "checkpoint"
        self._content = (base / "pytorch_model.bin").read_bytes()
        self._tensors: dict[str, Any] = torch.load(base / "pytorch_model.bin", weights_only=True)

    def make(self, rng: np.random.Generator, folder: Path) -> Case:
        checkpoint = copy_tree(self._folder, folder / "checkpoint")
        (checkpoint / "model.safetensors").unlink()
        file, ran = checkpoint / "pytorch_model.bin", folder / "ran"
        draw = rng.random()
        if draw < 0.35:
            note, content = damaged(rng, self._content, head=2000)
        elif draw < 0.55:
            note, content = self._odd_zip(rng)
        elif draw < 0.8:
            note, content = self._odd_tensor(rng)
        else:
            note, content = self._odd_pickle(rng, ran)
        file.write_bytes(content)
        if rng.random() < _SPECIAL_SHARE:
            note, _ = replace(rng, file)

        def call() -> Checkpoint:
            try:
                return read_checkpoint("checkpoint")
            finally:
                assert not ran.exists(), "code in the file was run"

        return Case(note, _EXPORT, call=call)

    def _odd_zip(self, rng: np.random.Generator) -> tuple[str, bytes]:
        """The members of the archive damaged one by one, with right checksums."""
        file = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(self._content)) as old, zipfile.ZipFile(file, "w") as new:
            chosen = choose(rng, old.namelist()) if rng.random() < 0.5 else old.namelist()[0]
            kind = choose(rng, ("damaged", "missing", "renamed", "deflated", "twice", "bomb"))
            for info in old.infolist():
                content, name = old.read(info), info.filename
                if name == chosen:
                    if kind == "missing":
                        continue
                    if kind == "damaged":
                        _, content = damaged(rng, content)
                    if kind == "renamed":
                        name = choose(rng, ("../../x", "x", "archive/data.pkl", "archive/version", "/x"))
                    if kind == "bomb":
                        content = bytes(50_000_000)
                if name in new.namelist():
                    continue
                squeezed = name == chosen and kind in ("deflated", "bomb")
                new.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED if squeezed else zipfile.ZIP_STORED)
            if kind == "twice":
                new.writestr(zipfile.ZipInfo("more"), b"x" * 100)
        return f"zip: {kind} {chosen}", file.getvalue()

    def _odd_tensor(self, rng: np.random.Generator) -> tuple[str, bytes]:
        tensors = dict(self._tensors)
        name = choose(rng, sorted(tensors))
        old = tensors[name]
        kinds: dict[str, Callable[[], Any]] = {
            "sparse": lambda: old.to_sparse(),
            "csr": lambda: old.reshape(1, -1).to_sparse_csr(),
            "meta": lambda: old.to("meta"),
            "expanded": lambda: torch.zeros(1).expand(choose(rng, (10**6, 10**9, 10**12))),
            "expanded to fit": lambda: torch.zeros(1).expand(old.shape),
            "quantized": lambda: torch.quantize_per_tensor(old, 0.1, 0, torch.qint8),
            "complex": lambda: old.to(torch.complex64),
            "bool": lambda: old.bool(),
            "int": lambda: old.long(),
            "float8": lambda: old.to(torch.float8_e4m3fn),
            "scalar": lambda: torch.tensor(1.0),
            "empty": lambda: torch.empty(0),
            "nan": lambda: old * float("nan"),
            "transposed": lambda: old.clone().T if old.ndim == 2 else old.clone(),
            "strided": lambda: torch.as_strided(torch.zeros(8), (10**5, 10**5), (0, 0)),
            "nested": lambda: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]),
            "parameter": lambda: torch.nn.Parameter(old.clone()),
            "conjugate": lambda: old.to(torch.complex64).conj(),
            "requires grad": lambda: old.clone().requires_grad_(),
            "many axes": lambda: torch.zeros([1] * 60),
            "large": lambda: torch.zeros(10**6),
        }
        kind = choose(rng, sorted(kinds))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch, that it is about to change or drop some of these
            tensors[name] = kinds[kind]()
        return f"tensor: {kind}", _saved(tensors)

    def _odd_pickle(self, rng: np.random.Generator, ran: Path) -> tuple[str, bytes]:
        tensors: Any = dict(self._tensors)
        kinds: dict[str, Callable[[], Any]] = {
            "list": lambda: list(tensors.values()),
            "state_dict": lambda: {"state_dict": tensors},
            "model": lambda: {"model": tensors, "epoch": 3},
            "ordered": lambda: collections.OrderedDict(tensors),
            "number": lambda: tensors | {"a": 1},
            "none": lambda: None,
            "integer keys": lambda: dict(enumerate(tensors.values())),
            "code": lambda: tensors | {"a": _Writes(Path.write_text, ran, "x")},
            "open": lambda: tensors | {"a": _Writes(open, str(ran), "w")},
            "eval": lambda: _Writes(eval, f"open({str(ran)!r}, 'w')"),
            "module": lambda: torch.nn.Linear(2, 2),
            "bytes": lambda: tensors | {"a": bytearray(10)},
            "set": lambda: {"a"},
            "size": lambda: tensors | {"a": torch.Size([1, 2])},
            "dtype": lambda: tensors | {"a": torch.float32},
            "names": lambda: {name + "\ud800": value for name, value in tensors.items()},
            "long names": lambda: {name + "x" * 10**5: value for name, value in tensors.items()},
        }
        kind = choose(rng, sorted(kinds))
        content = kinds[kind]()
        draw = rng.random()
        if draw < 0.2:
            return f"pickle: plain {kind}", pickle.dumps(content, protocol=int(rng.integers(0, 6)))
        if draw < 0.3:
            note, damaged_pickle = damaged(rng, pickle.dumps(content))
            return f"pickle: {note}", damaged_pickle
        return f"pickle: {kind}", _saved(content, legacy=draw < 0.5)


def _saved(content: Any, *, legacy: bool = False) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    return file.getvalue()


class Shards:
    """model.safetensors.index.json.

    Oracle: refused with 4, or the model has every weight of the undamaged shards.
    """

    def __init__(self, base: Path) -> None:
        self._checkpoint, self._shards = base / "checkpoint", base / "shards"
        self._index = json.loads((self._shards / "model.safetensors.index.json").read_bytes())
        self._wanted = read_plainly((self._checkpoint / "model.safetensors").read_bytes())

    def make(self, rng: np.random.Generator, folder: Path) -> Case:
        checkpoint = copy_tree(self._checkpoint, folder / "checkpoint")
        (checkpoint / "model.safetensors").unlink()
        copy_tree(self._shards, folder / "shards")
        for path in (folder / "shards").iterdir():
            path.rename(checkpoint / path.name)
        index = checkpoint / "model.safetensors.index.json"
        draw = rng.random()
        if draw < 0.15:
            note, _ = replace(rng, choose(rng, sorted(checkpoint.glob("model*"))))
        elif draw < 0.5:
            weight_map = dict(self._index["weight_map"])
            name = choose(rng, sorted(weight_map))
            shards = tuple(f"model-0000{number}-of-00002.safetensors" for number in (1, 2, 3))
            paths = ("../checkpoint/config.json", "/dev/zero", "", ".", "..", "config.json", "/etc/passwd")
            other = choose(rng, (*shards, *paths, "x\0y", "\ud800", "a" * 300))
            weight_map[choose(rng, (name, "x"))] = other
            note = f"map: {name} in {other!r:.30}"
            rewrite(index, json.dumps({"weight_map": weight_map}).encode())
        else:
            note, text, _ = odd_json(rng, self._index)
            rewrite(index, text)
        return Case(
            note, _EXPORT, check=lambda found: _differs(found, self._wanted), call=lambda: read_checkpoint("checkpoint")
        )
