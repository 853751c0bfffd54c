"""Files that would take far more memory than their size, and tensors that are not plain arrays."""

from __future__ import annotations

import collections
import io
import json
import re
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from families import TINY
from limited import ERRORS_OF, GIB, MIB, READ_CHECKPOINT, run_limited
from raising import raises
from torch import Tensor

from vitdeploy.errors import CheckpointError
from vitdeploy.images.processor import ImageProcessor
from vitdeploy.models.weights import read_weights
from vitdeploy.specs import Task

# Of a process that has imported torch and read a small checkpoint: 240 MiB, with a margin for other versions.
SMALL_PEAK = 600 * MIB


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "pytorch_model.bin"


ODD: dict[str, Callable[[Tensor], Tensor]] = {
    "sparse": torch.Tensor.to_sparse,
    "sparse_csr": torch.Tensor.to_sparse_csr,
    "meta": lambda x: x.to("meta"),
    "nested": lambda x: torch.nested.nested_tensor([x[0], x[1, :2]]),
    "quantized": lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8),
    "quantized by channel": lambda x: torch.quantize_per_channel(x, x.sum(0), 0 * x[0], 0, torch.qint8),
}


@pytest.mark.parametrize("kind", ODD)
def test_tensors_that_are_no_plain_arrays_are_refused(path: Path, kind: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        odd = ODD[kind](torch.eye(3))
    torch.save({"weight": torch.ones(2), "odd": odd}, path)
    with raises(CheckpointError, what="odd", where=path, found=re.compile(rf"^a {kind.split('_')[0].split()[0]}")):
        read_weights([path])


@pytest.mark.parametrize(
    "make",
    [
        lambda x: x.t(),
        lambda x: x[:, 1:],
        lambda x: x[1:2].expand(3, 3),
        torch._neg_view,
        lambda x: x.to(torch.complex64).conj(),
        lambda x: x[:0],
        lambda x: x[0, 0],
        torch.nn.Parameter,
    ],
)
def test_views_are_read_as_the_values_that_they_show(path: Path, make: Callable[[Tensor], Tensor]) -> None:
    odd = make(torch.arange(9.0).reshape(3, 3))
    torch.save({"odd": odd}, path)
    got = read_weights([path])["odd"]
    torch.testing.assert_close(got, odd.detach(), rtol=0, atol=0)
    assert got.untyped_storage().nbytes() == got.numel() * got.element_size()  # no more than its own values


def test_tied_weights_have_memory_of_their_own(path: Path) -> None:
    tied = torch.ones(3)
    torch.save({"a": tied, "b": tied}, path)
    read = read_weights([path])
    assert read["a"].data_ptr() != read["b"].data_ptr()


TENSORS = {
    "expanded": {"classifier.weight": torch.zeros(1).expand(46341, 46341)},
    "overlapping": {"classifier.weight": torch.as_strided(torch.zeros(90_000), (40_000, 50_000), (1, 1))},
    "unknown": {"of.no.model": torch.zeros(1).expand(46341, 46341)},
}


def compressed(path: Path, state: dict[str, Tensor]) -> None:
    """A record of 1 GiB in a file of 5 MB."""
    torch.save({**state, "classifier.weight": torch.zeros(2**10)}, path)
    with zipfile.ZipFile(path) as stored:
        records = {record.filename: stored.read(record) for record in stored.infolist()}
    largest = max(records, key=lambda name: len(records[name]))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, content in records.items():
            with archive.open(name, "w") as file:
                for _ in range(2**8 if name == largest else 0):
                    file.write(bytes(4 * MIB))
                file.write(content)


class Sparse(io.FileIO):
    """Leaves holes in the place of zeros."""

    def write(self, content: Any, /) -> int:
        content = bytes(content)
        if len(content) < MIB or content != bytes(len(content)):
            return super().write(content)
        self.seek(len(content), 1)
        return len(content)


def sparse(path: Path, state: dict[str, Tensor]) -> None:
    """A tensor of 1 GiB in a file of a few kilobytes on the disk, as zip file."""
    torch.save({**state, "of.no.model": torch.zeros(917)}, path)
    with zipfile.ZipFile(path) as stored:
        records = {record.filename: stored.read(record) for record in stored.infolist()}
    hole = next(name for name in records if records[name] == bytes(4 * 917))
    index = next(name for name in records if name.endswith("data.pkl"))
    length = b"M" + struct.pack("<H", 917)
    assert records[index].count(length) == 2
    records[index] = records[index].replace(length, b"J" + struct.pack("<i", 2**28))
    with Sparse(path, "w") as file, zipfile.ZipFile(file, "w") as archive:
        for name, content in records.items():
            with archive.open(name, "w") as record:
                for _ in range(2**8 if name == hole else 0):
                    record.write(bytes(4 * MIB))
                if name != hole:
                    record.write(content)


def sparse_legacy(path: Path, state: dict[str, Tensor]) -> None:
    """The same as a file of before torch 1.6."""
    torch.save({"of.no.model": torch.zeros(917)}, path, _use_new_zipfile_serialization=False)
    length = b"M" + struct.pack("<H", 917)
    content = path.read_bytes().replace(length, b"J" + struct.pack("<i", 2**28))
    end = content.rindex(struct.pack("<q", 917))
    path.write_bytes(content[:end] + struct.pack("<q", 2**28))
    with path.open("r+b") as file:
        file.truncate(end + 8 + 4 * 2**28)


FILES = {"compressed": compressed, "sparse": sparse, "sparse_legacy": sparse_legacy}


@pytest.mark.parametrize("bomb", [*TENSORS, *FILES])
def test_a_small_torch_file_takes_little_memory(tmp_path: Path, write_checkpoint: Any, bomb: str) -> None:
    checkpoint = write_checkpoint(Task.CLASSIFICATION, TINY)
    (tmp_path / "config.json").write_bytes((checkpoint.folder / "config.json").read_bytes())
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(ImageProcessor().to_dict()))
    path, state = tmp_path / "pytorch_model.bin", checkpoint.peer.state_dict()
    if bomb in TENSORS:
        torch.save({**state, **TENSORS[bomb]}, path)
    else:
        FILES[bomb](path, state)
    done = run_limited(READ_CHECKPOINT, tmp_path)
    assert (done.code, done.errors.split()[0]) == (4, "CheckpointError"), done.errors
    assert done.peak_bytes < SMALL_PEAK


def test_a_small_legacy_file_does_not_claim_tensors_of_gigabytes(path: Path) -> None:
    torch.save({"weight": torch.ones(17)}, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    assert content.count(b"K\x11") == 2  # 17: the storage's length, and the tensor's
    path.write_bytes(content.replace(b"K\x11", b"J" + struct.pack("<i", 2_000_000_000)))
    code = f"import torch; from vitdeploy.models.weights import read_weights; from pathlib import Path{ERRORS_OF}"
    for spare in (0, 512 * MIB):
        done = run_limited(f"{code}read_weights([Path(sys.argv[1])])", path, address_space=64 * GIB, spare=spare)
        assert (done.code, done.errors.split()[0]) == (4, "CheckpointError"), done.errors
        assert "8,000,000,000" in done.errors


def test_a_legacy_file_that_is_cut_off_is_told_in_words(path: Path) -> None:
    torch.save({"a": torch.ones(1000), "b": torch.ones(8)}, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    lengths = struct.pack("<q", 1000), struct.pack("<q", 1001)
    for damaged in (content[:-100], content[:-1], content[:100], content.replace(*lengths)):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError) as refused:
            read_weights([path])
        assert "%" not in str(refused.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.bool])
def test_legacy_files_are_read(path: Path, dtype: torch.dtype) -> None:
    model = torch.nn.Linear(3, 2).to(torch.float64)
    shared = torch.arange(12).reshape(3, 4).to(dtype)
    state = {**model.state_dict(), "whole": shared, "view": shared.t()[1:], "parameter": model.weight}
    torch.save(collections.OrderedDict(state), path, _use_new_zipfile_serialization=False)
    read = read_weights([path])
    assert read.keys() == state.keys()
    for name, tensor in state.items():
        torch.testing.assert_close(read[name], tensor.detach(), rtol=0, atol=0)


def test_a_header_that_would_take_much_memory_is_refused(tmp_path: Path) -> None:
    path, most = tmp_path / "model.safetensors", 32 * MIB
    content = json.dumps({"t": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}).encode()
    for length in (most, most + 8):
        path.write_bytes(struct.pack("<Q", length) + content.ljust(length))
        if length == most:
            assert read_weights([path]).keys() == {"t"}
    with raises(CheckpointError, where=path, expected=most):
        read_weights([path])


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_too_many_tensors_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr("vitdeploy.models.weights._MOST_TENSORS", 2)
    path = tmp_path / name
    state: Any = {f"t{index}": torch.ones(1) for index in range(3)}
    if name == "model.safetensors":
        header = {
            key: {"dtype": "F32", "shape": [1], "data_offsets": [4 * i, 4 * i + 4]} for i, key in enumerate(state)
        }
        content = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(content)) + content + bytes(12))
    else:
        torch.save(state, path)
    with raises(CheckpointError, where=path, found=3):
        read_weights([path])
