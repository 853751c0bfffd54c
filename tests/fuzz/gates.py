"""Inputs of gate and evaluate beside images: rules, baselines, and resume logs."""

from __future__ import annotations

import contextlib
import json
import re
import sys
from typing import TYPE_CHECKING, Any

from fuzz.cases import DAMAGED, FAILED, PASSED, UNAVAILABLE, USAGE, Case
from fuzz.damage import ODD_VALUES, choose, damaged, odd_json
from fuzz.special_files import replace
from vitdeploy.cli import main

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy as np

_SPECIAL_SHARE = 0.04
_RULES = {
    "min_accuracy": "1.5%",
    "max_drop": "60%",
    "min_agreement": "50%",
    "min_cosine": 0.5,
    "max_difference": 1e-2,
    "max_size": "12.5 MB",
    "artifacts": {"onnx-fp32": {"max_difference": 1e-3}},
}


class RulesFiles:
    """TOML files of rules.

    Oracle: what TOML's own reader refuses is refused with 4; else a rule that is none is refused with 2, and one that
    is holds (0), does not hold (1) or could not be checked (3).
    """

    def __init__(self, base: Path) -> None:
        self._base = base

    def make(self, rng: np.random.Generator, folder: Path) -> Case:
        file = folder / "rules.toml"
        note, text = self._rules(rng)
        file.write_bytes(text)
        is_toml = _is_read(lambda: tomllib.loads(text.decode("utf-8-sig")))
        allowed = frozenset({PASSED, FAILED, USAGE, UNAVAILABLE} if is_toml else {DAMAGED})
        if rng.random() < _SPECIAL_SHARE:
            note, same = replace(rng, file)
            if not same:  # an empty file has no rules, and /dev/null is none
                allowed = frozenset({PASSED if note.endswith("empty") else DAMAGED})
        return Case(note, _gate(self._base, "--rules", file.name), allowed)

    @staticmethod
    def _rules(rng: np.random.Generator) -> tuple[str, bytes]:
        rules: dict[str, Any] = {name: value for name, value in _RULES.items() if rng.random() < 0.3}
        key = choose(rng, (*_RULES, "latency_against", "min_neighbour_agreement", "x", "", "artifacts", "é"))
        texts = ("1 MB", "-1 MB", "1e9999 MB", "99%", "nan%", "torch:fp32", "x:y")
        rules[key] = value = choose(rng, (*ODD_VALUES, *texts, 100, 99.9, 1e-9))
        if rng.random() < 0.2:
            rules["artifacts"] = {choose(rng, ("onnx-fp32", "reference", "x", "")): {key: value}}
        note = f"rule: {key} {repr(value)[:40] if not isinstance(value, int) else 'integer'}"
        text = _toml(rules)
        if rng.random() < 0.3:
            note, text = damaged(rng, text)
            note = f"text: {note}"
        elif rng.random() < 0.05:
            kind = choose(rng, ("deep", "bom", "utf-16", "dates", "dotted"))
            note = f"text: {kind}"
            text = {
                "deep": b"a = " + b"[" * 100_000, "bom": b"\xef\xbb\xbf" + text,
                "utf-16": text.decode(errors="replace").encode("utf-16"),
                "dates": b"min_accuracy = 1979-05-27", "dotted": b"a." * 5000 + b"b = 1",
            }[kind]  # fmt: skip
        return note, text


def _toml(rules: dict[str, Any]) -> bytes:
    """Near enough to TOML that most of it is read."""
    lines, tables = [], []
    for key, value in rules.items():
        if isinstance(value, dict) and key == "artifacts":
            for name, table in value.items():
                tables.append(f"[artifacts.{json.dumps(name)}]")
                if isinstance(table, dict):
                    tables += [f"{json.dumps(inner)} = {_toml_value(one)}" for inner, one in table.items()]
        else:
            lines.append(f"{json.dumps(key)} = {_toml_value(value)}")
    return "\n".join([*lines, *tables]).encode("utf-8", "surrogatepass")


def _toml_value(value: Any) -> str:
    if isinstance(value, float):
        return repr(value)  # nan and inf are TOML's words, too
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {_toml_value(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml_value, value)) + "]"
    return json.dumps(value)


def _is_read(read: Callable[[], object]) -> bool:
    with contextlib.suppress(ValueError, RecursionError):  # a text that is no UTF-8 is a ValueError too
        read()
        return True
    return False


def _gate(base: Path, *options: str) -> tuple[str, ...]:
    data = ("--data", str(base / "data"), "--backend", "onnxruntime")
    return ("gate", str(base / "bundle"), *data, *options, "--json")


class Baselines:
    """Baselines.

    Oracle: refused with 4; or it holds (0), does not (1), or lacks a backend, so that a check is skipped (3).
    """

    def __init__(self, base: Path) -> None:
        self._base = base
        self._content = (base / "baseline.json").read_bytes()

    def make(self, rng: np.random.Generator, folder: Path) -> Case:
        file = folder / "baseline.json"
        if rng.random() < 0.2:
            note, text = damaged(rng, self._content)
        else:
            note, text, _ = odd_json(rng, json.loads(self._content))
        file.write_bytes(text)
        allowed = frozenset({PASSED, FAILED, UNAVAILABLE, DAMAGED} if _is_read(lambda: json.loads(text)) else {DAMAGED})
        if rng.random() < _SPECIAL_SHARE:
            note, same = replace(rng, file)
            allowed = allowed if same else frozenset({DAMAGED})
        return Case(note, _gate(self._base, "--baseline", file.name, "--max-drop", "50%"), allowed)


class ResumeFiles:
    """Work files of evaluate --resume.

    Oracle: refused with 4, or where it cannot be written with 3; or the result is that of an evaluation without it,
    since a line that was altered is not believed, whether its checksum was left, taken from another line or dropped.
    """

    def __init__(self, base: Path) -> None:
        self._base, self._content = base, (base / "resume").read_bytes()
        matches = [re.fullmatch(rb"(.*?)( [0-9a-f]{64})?", line) for line in self._content.splitlines()]
        self._lines = [(json.loads(match[1]), match[2] or b"") for match in matches if match is not None]
        self._expected = json.loads(_stdout((*self._args(), "--json")))["results"]

    def _args(self) -> tuple[str, ...]:
        data = str(self._base / "data")
        return ("evaluate", str(self._base / "bundle"), "--data", data, "--backend", "onnxruntime", "--batch-size", "2")

    def make(self, rng: np.random.Generator, folder: Path) -> Case:
        file = folder / "work"
        draw = rng.random()
        if draw < 0.4:
            note, content = damaged(rng, self._content)
        else:
            lines = [json.dumps(line).encode() + checksum for line, checksum in self._lines]
            at = int(rng.integers(len(lines)))
            if draw < 0.9:
                note, text, _ = odd_json(rng, self._lines[at][0])
                lines[at] = text + choose(rng, (self._lines[at][1], self._lines[-1][1], b""))
            else:
                note = choose(rng, ("swapped", "twice", "gone"))
                changed = {"swapped": lines[::-1], "twice": [*lines, lines[at]], "gone": lines[:at] + lines[at + 1 :]}
                lines = changed[note]
            note = f"line {at}: {note}"
            content = b"".join(line.replace(b"\n", b" ") + b"\n" for line in lines)
        file.write_bytes(content)
        if rng.random() < _SPECIAL_SHARE:
            note, _ = replace(rng, file)

        def check(out: str) -> str | None:
            results = json.loads(out)["results"]
            if [one["top1"] for one in results] != [one["top1"] for one in self._expected]:
                return "the accuracy is another than without the file"
            return None

        args = (*self._args(), "--resume", file.name, "--json")
        return Case(note, args, frozenset({PASSED, UNAVAILABLE, DAMAGED}), check)


def _stdout(args: tuple[str, ...]) -> str:
    import io

    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
        main(list(args))
    return out.getvalue()
