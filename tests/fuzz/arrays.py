"""Google's .npz checkpoints and files of golden outputs: archives of arrays that lie, grow, or would run code."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np

from fuzz.cases import DAMAGED, FAILED, PASSED, USAGE, Case
from fuzz.checkpoints import outputs_of
from fuzz.damage import ODD_VALUES, choose, damaged, odd_json
from fuzz.special_files import replace
from vitdeploy.sources.read import read_checkpoint

if TYPE_CHECKING:
    from pathlib import Path

    Members = dict[str, bytes]

_SPECIAL_SHARE = 0.03
_NUMBERS = ("<f4", "<f2", "<f8", ">f4", "<i8", "<c8", "|b1")
_DTYPES = (*_NUMBERS, "|O", "|V2", "|V4", "<U3", "|S4", "<M8[s]", "[('a','<f4')]", "x", "|V0", "|S0")
_SHAPES = (
    "()", "(0,)", "(1,)", "(-1,)", "(10**9,)", "(1000000000,)", "(1000000, 1000000)", "(9223372036854775807,)",
    "(2, 3)", "(4294967296, 4294967296)", "(0, 99999999999)", "(1,)*64", "(1.0,)", "('a',)", "None", "[3]",
    "(True, 8)", "3", "(-1, -8)", "(18446744073709551616,)",
)  # fmt: skip


class Npz:
    """Google's checkpoints.

    Oracle: refused with 4; or the outputs are those of the undamaged file where neither an array nor its header was
    altered, and have the right shape otherwise.
    """

    def __init__(self, base: Path) -> None:
        self._content = (base / "google.npz").read_bytes()
        self._members = _members(self._content)
        (base.parent / "npz").mkdir(exist_ok=True)
        whole = base / "google.npz"
        self._expected = outputs_of(read_checkpoint(whole))

    def make(self, rng: np.random.Generator, folder: Path) -> Case:
        file = folder / "google.npz"
        note, content, same = odd_archive(rng, self._content, self._members)
        file.write_bytes(content)
        if rng.random() < _SPECIAL_SHARE:
            note, same = replace(rng, file)

        def check(outputs: dict[str, Any]) -> str | None:
            for name, value in self._expected.items():
                if outputs[name].shape != value.shape:
                    return f"{name} must be {tuple(value.shape)}, is {tuple(outputs[name].shape)}"
                if same and not bool((outputs[name] == value).all()):
                    return f"{name} is another, of an undamaged file"
            return None

        args = ("export", "--model", file.name, "--output", "out", "--json")
        return Case(note, args, check=check, call=lambda: outputs_of(read_checkpoint("google.npz")))


class GoldenFiles:
    """Golden outputs.

    Oracle: refused with 4, or with 2 where its header is of another model; outputs that were altered in their data fail
    with 1 or, if an altered bit counts for less than the tolerance, pass.
    """

    def __init__(self, base: Path) -> None:
        self._bundle = base / "bundle"
        self._content = (base / "golden.npz").read_bytes()
        self._members = _members(self._content)
        self._header = json.loads(self._members["header.npy"][128:])

    def make(self, rng: np.random.Generator, folder: Path) -> Case:
        file = folder / "golden.npz"
        allowed = frozenset({PASSED, FAILED, USAGE, DAMAGED})
        draw = rng.random()
        if draw < 0.4:
            note, text, _ = odd_json(rng, self._header)
            content = _archive(self._members | {"header.npy": _npy(np.frombuffer(text, np.uint8))})
        elif draw < 0.8:
            note, content, same = odd_archive(rng, self._content, self._members)
            allowed = frozenset({PASSED}) if same else allowed
        else:
            values = np.load(io.BytesIO(self._members["output/logits.npy"]))
            at = tuple(int(rng.integers(size)) for size in values.shape)
            values[at] = choose(rng, (np.nan, np.inf, -np.inf, 1e30, 1e38, 5.0))
            note, allowed = f"golden: {values[at]}", frozenset({FAILED, DAMAGED})
            content = _archive(self._members | {"output/logits.npy": _npy(values)})
        file.write_bytes(content)
        if rng.random() < _SPECIAL_SHARE:
            note, same = replace(rng, file)
            allowed = frozenset({PASSED}) if same and draw < 0 else frozenset({PASSED, FAILED, USAGE, DAMAGED})
        args = ("compare", str(self._bundle), "--backend", "onnxruntime", "--golden", file.name, "--json")
        return Case(note, args, allowed)


def odd_archive(rng: np.random.Generator, content: bytes, members: Members) -> tuple[str, bytes, bool]:
    """An archive of arrays, and whether each array in it is what it was."""
    draw = rng.random()
    if draw < 0.3:
        note, content = damaged(rng, content)
        return f"archive: {note}", content, False
    members = dict(members)
    name = choose(rng, sorted(members))
    if draw < 0.5:
        note, text = _odd_header(rng, members[name])
        return f"header: {note}", _archive(members | {name: text}), False
    zip_kinds = ("bomb", "deflated", "encrypted", "method")
    kind = choose(rng, ("missing", "extra", "objects", "damaged", "empty", "renamed", "fortran", *zip_kinds))
    if kind == "deflated":
        return "deflated", _archive(members, zipfile.ZIP_DEFLATED), False  # golden files are never deflated
    if kind == "extra":
        members[choose(rng, ("x.npy", "x", "../x.npy", "opt/target/x.npy", "é.npy", "", "x" * 5000))] = members[name]
    elif kind == "missing":
        del members[name]
    elif kind == "renamed":
        members[choose(rng, ("x.npy", "opt/" + name, "module/" + name, name.upper()))] = members.pop(name)
    elif kind == "objects":
        members[name] = _npy(np.array([{"a": 1}, None], object), objects=True)
    elif kind == "damaged":
        note, members[name] = damaged(rng, members[name], head=128)
        kind = f"member {note}"
    elif kind == "empty":
        members[name] = b""
    elif kind == "fortran":
        members[name] = members[name].replace(b"'fortran_order': False", b"'fortran_order': True ")
    elif kind == "bomb":
        members[name] = _header_of("<f4", f"({choose(rng, (10**5, 10**7, 3 * 10**7))},)") + bytes(4 * 10**7)
        return f"bomb: {name}", _archive(members, zipfile.ZIP_DEFLATED), False
    content = _archive(members)
    if kind in ("encrypted", "method"):  # fields of each entry of the central directory, APPNOTE.TXT 4.3.12
        data, at = bytearray(content), content.index(b"PK\1\2")
        data[at + (8 if kind == "encrypted" else 10)] = 1 if kind == "encrypted" else int(rng.integers(1, 100))
        content = bytes(data)
    return f"archive: {kind} {name}", content, False


def _odd_header(rng: np.random.Generator, member: bytes) -> tuple[str, bytes]:
    data = member[10 + struct.unpack("<H", member[8:10])[0] :]
    dtype, shape = choose(rng, _DTYPES), choose(rng, _SHAPES)
    if rng.random() < 0.2:
        value = choose(rng, ODD_VALUES)
        text = repr(value)[:60_000].encode("utf-8", "replace") if not isinstance(value, int) else b"1"
        return "no dictionary", b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text + data
    if rng.random() < 0.5:
        shape = "(8,)"
    version = choose(rng, (b"\1\0", b"\1\0", b"\2\0", b"\3\0", b"\0\0", b"\xff\xff"))
    return f"{dtype} {shape} {version!r}", _header_of(dtype, shape, version) + data


def _header_of(dtype: str, shape: str, version: bytes = b"\1\0") -> bytes:
    """The form of numpy.lib.format."""
    described = dtype if dtype.startswith("[") else repr(dtype)
    text = f"{{'descr': {described}, 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    return b"\x93NUMPY" + version + struct.pack("<H" if version == b"\1\0" else "<I", len(text)) + text


def _npy(array: np.ndarray[Any, Any], *, objects: bool = False) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array, allow_pickle=objects)
    return file.getvalue()


def _members(content: bytes) -> Members:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _archive(members: Members, method: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name or "."), content, method)
    return file.getvalue()
