"""Damage that any file may have, and values that no JSON key expects."""

from __future__ import annotations

import copy
import json
import struct
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np

T = TypeVar("T")

_EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**63 - 1, 2**64 - 1)


def _nested(depth: int) -> list[Any]:
    nested: list[Any] = []
    for _ in range(depth):
        nested = [nested]
    return nested


ODD_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 3, 7, 1000, 10**6, 10**9, 2**31, 2**63, 2**64, -(2**63), 10**30, 10**400,
    -(10**400),
    0.0, -0.0, 0.5, 1.5, -0.5, 1e-320, 1e38, 1e300, -1e308, float("nan"), float("inf"), float("-inf"),
    "", " ", "0", "1", "x", "null", "gelu", "cat", "../../etc/passwd", "/dev/zero", "\ud800", "a\0b", "a\nb\x1b[31m",
    "é" * 50,
    "x" * 100_000, [], [0], [1, 2], [-1, -1], [10**9] * 2, [10**30] * 2, [1, 2, 3], [0.5] * 3, [0] * 3, [1e300] * 3,
    [float("nan")] * 3, [None], ["x"], [[1]], [0] * 10_000, {}, {"a": 1}, {"0": "x"}, {"height": 10**9, "width": 10**9},
    {"height": -1, "width": 0}, {"shortest_edge": 10**9}, {"height": 1.5, "width": None}, _nested(3), _nested(60),
)  # fmt: skip


def choose(rng: np.random.Generator, items: Sequence[T]) -> T:
    """One of them, as it is: numpy's own choice would make arrays of them."""
    return items[int(rng.integers(len(items)))]


def damaged(rng: np.random.Generator, content: bytes, *, head: int = 0) -> tuple[str, bytes]:
    """A file after one to three accidents; of every other one it hits the first `head` bytes, where headers are."""
    notes = []
    for _ in range(int(rng.integers(1, 4))):
        note, content = _accident(rng, content, head if head and rng.random() < 0.5 else len(content))
        notes.append(note)
    return ", ".join(notes), content


def _accident(rng: np.random.Generator, content: bytes, within: int) -> tuple[str, bytes]:
    if not content:
        return "empty", content
    data = bytearray(content)
    at = int(rng.integers(max(1, min(within, len(data)))))
    length = int(rng.integers(1, 1 + min(64, len(data))))
    kind = choose(rng, ("cut", "bits", "bytes", "number", "zeros", "removed", "twice", "inserted", "emptied"))
    if kind == "cut":
        del data[at:]
    elif kind == "bits":
        for _ in range(int(rng.integers(1, 9))):
            data[int(rng.integers(min(max(within, 1), len(data))))] ^= 1 << int(rng.integers(8))
    elif kind == "bytes":
        data[at : at + length] = rng.bytes(length)
    elif kind == "number":
        form = choose(rng, ("<B", "<H", ">H", "<I", ">I", "<Q", ">Q"))
        packed = struct.pack(form, choose(rng, _EXTREMES) & (1 << 8 * struct.calcsize(form)) - 1)
        data[at : at + len(packed)] = packed
    elif kind == "zeros":
        data[at : at + length] = bytes(length)
    elif kind == "removed":
        del data[at : at + length]
    elif kind == "twice":
        data[at:at] = data[at : at + length]
    elif kind == "inserted":
        data[at:at] = rng.bytes(length)
    elif rng.random() < 0.1:
        data.clear()
    return f"{kind} at {at}", bytes(data)


def paths_of(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The keys and indices that lead to each value below the top."""
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from paths_of(value, (*path, key))


def odd_json(
    rng: np.random.Generator, data: dict[str, Any], *, more_keys: Sequence[str] = ()
) -> tuple[str, bytes, str | None]:
    """A JSON object with one or two odd values, or damaged as a file.

    Returns:
        How it was made, its text, and the top key of the only value that was changed; None where it is more than one.
    """
    if rng.random() < 0.2:
        note, text = _damaged_text(rng, json.dumps(data, indent=2).encode())
        return note, text, None
    data, keys, notes = copy.deepcopy(data), set(), []
    for _ in range(1 if rng.random() < 0.8 else 2):
        note, key = _odd_value(rng, data, more_keys)
        notes.append(note)
        keys.add(key)
    text = _dumped(data)
    if len(keys) == 1 and rng.random() < 0.1:  # the last of two counts, for Python and in the specification of none
        (key,) = keys
        twice = f"{{{json.dumps(key)}: {_dumped(choose(rng, ODD_VALUES)).decode('utf-8', 'surrogatepass')}, "
        text = text.replace(b"{", twice.encode("utf-8", "surrogatepass"), 1)
        notes.append("twice")
    return ", ".join(notes), text, next(iter(keys)) if len(keys) == 1 else None


def _odd_value(rng: np.random.Generator, data: dict[str, Any], more_keys: Sequence[str]) -> tuple[str, str]:
    """Change one value in place."""
    if more_keys and rng.random() < 0.3:
        key = choose(rng, more_keys)
        value = choose(rng, ODD_VALUES)
        data[key] = value
        return f"value: {key} {_short(value)}", key
    paths = list(paths_of(data))
    if not paths:
        data["a"] = None
        return "value: a None", "a"
    path = choose(rng, paths)
    parent = data
    for key in path[:-1]:
        parent = parent[key]
    where = ".".join(map(str, path))
    if rng.random() < 0.15:
        del parent[path[-1]]
        return f"missing: {where}", str(path[0])
    value = copy.deepcopy(choose(rng, ODD_VALUES))
    parent[path[-1]] = value
    return f"value: {where} {_short(value)}", str(path[0])


def _dumped(data: Any) -> bytes:
    """JSON with Python's NaN and Infinity, which others write too, and integers of any length."""
    return json.dumps(data, indent=1).encode("utf-8", "surrogatepass")


def _short(value: Any) -> str:
    text = repr(value) if not isinstance(value, int) or abs(value) < 10**40 else "10**400"
    return text if len(text) <= 40 else f"{text[:40]}..."


def _damaged_text(rng: np.random.Generator, text: bytes) -> tuple[str, bytes]:
    kind = choose(
        rng, ("file", "file", "utf-16", "bom", "deep", "digits", "empty", "list", "nul", "two", "latin", "big")
    )
    if kind == "file":
        note, text = damaged(rng, text)
        return f"file: {note}", text
    return f"text: {kind}", {
        "utf-16": text.decode().encode("utf-16"),
        "bom": b"\xef\xbb\xbf" + text,
        "deep": b'{"a": ' * 100_000,
        "digits": b'{"hidden_size": ' + b"9" * 10_000 + b"}",
        "empty": b"",
        "list": choose(rng, (b"[]", b"null", b"1", b'"x"', b"[{}]", b"true")),
        "nul": text + b"\0" * 10,
        "two": text + text,
        "latin": b'{"\xe9": 1,' + text[1:],
        "big": b"[" + b"0," * 500_000 + b"0]",
    }[kind]
