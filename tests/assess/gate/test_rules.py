"""Rules of a gate: parsing, and refusals before anything runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from raising import raises

from vitdeploy.assess.gate.rules import GateRules, Rules, read_rules
from vitdeploy.errors import InputError, UsageError

EVERY = """
min_accuracy = "98.5%"
max_drop = 0.01
max_size = "12.5 MB"

[artifacts."onnx-fp16"]
max_drop = "2.5%"
max_difference = 2e-2
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "gate.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_an_artifact_has_the_rules_of_every_one_but_for_its_own(tmp_path: Path) -> None:
    rules = read_rules(write(tmp_path, EVERY))
    assert rules.of("onnx-fp32") == Rules(min_accuracy=0.985, max_drop=0.01, max_size=12_500_000)
    assert rules.of("onnx-fp16") == Rules(0.985, 0.025, max_difference=0.02, max_size=12_500_000)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        *((f"min_accuracy = {value}", "min_accuracy") for value in ("98", '"0"', "101", "true")),
        *((f"min_agreement = {value}", "min_agreement") for value in ("99", "101", "-1")),
        *((f"max_drop = {value}", "max_drop") for value in ("0", "true", "0.5", "1", '"100%"', '"1%%"', "100", "nan")),
        *((f"min_cosine = {value}", "min_cosine") for value in ("1", "99", '"100%"')),
        *((f"max_difference = {value}", "max_difference") for value in ("nan", "1e400", '"inf%"')),
        *((f"max_latency_ratio = {value}", "max_latency_ratio") for value in ("-1", '"80%"', f"1{'0' * 400}")),
        ("latency_against = 'torch'", "latency_against"),
        *(
            (f"max_size = {value}", "max_size")
            for value in (
                f"1{'0' * 400}",
                f"0x{'f' * 9000}",
                f"'{'9' * 400} MB'",
                f"'{'9' * 5000}'",
                "'12 mb'",
                "'12%'",
            )
        ),
    ],
)
def test_a_rule_out_of_its_range_is_refused(tmp_path: Path, text: str, name: str) -> None:
    file = write(tmp_path, text)
    with raises(UsageError, what=name, where=str(file)):
        read_rules(file)


@pytest.mark.parametrize(
    ("text", "key", "hint"),
    [
        ("min_acuracy = 98", "min_acuracy", "did you mean min_accuracy?"),
        ("[artifact.x]", "artifact", "did you mean artifacts?"),
        ("zzz = 1", "zzz", re.compile("^use min_accuracy, max_drop")),
        ("[artifacts.onnx-fp32]\nmax_sise = 1", "max_sise", "did you mean max_size?"),
        ("artifacts = 3", "artifacts", None),
    ],
)
def test_a_key_that_is_none_is_refused(tmp_path: Path, text: str, key: str, hint: Any) -> None:
    with raises(UsageError, what=key, where=re.compile(r"gate\.toml$"), hint=hint):
        read_rules(write(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "hint"), [("min_agreement = 99", "write 99% or 0.99"), ("max_drop = 0.5", "write 0.5% or 50%")]
)
def test_a_number_that_counted_percent_is_refused_with_both_forms(tmp_path: Path, text: str, hint: str) -> None:
    with raises(UsageError, hint=hint):
        read_rules(write(tmp_path, text))


def test_a_size_has_a_unit_or_is_in_bytes() -> None:
    sizes: Any = ("1500", "1500 bytes", "1.5 kB", 1500)
    assert {Rules(max_size=value).max_size for value in sizes} == {1500}


def test_a_byte_order_mark_is_no_matter(tmp_path: Path) -> None:
    assert read_rules(write(tmp_path, "\ufeffmax_drop = 0.01")).every.max_drop == 0.01


@pytest.mark.parametrize("text", ["max_drop = = 1", f"max_size = 1{'0' * 5000}", f"x = {'[' * 50_000}"])
def test_a_file_that_is_no_toml_is_one_line(tmp_path: Path, text: str) -> None:
    with raises(InputError, where=str(tmp_path / "gate.toml"), expected="TOML"):
        read_rules(write(tmp_path, text))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with raises(InputError, where=str(tmp_path / "absent.toml")):
        read_rules(tmp_path / "absent.toml")


def test_rules_of_an_artifact_that_is_not_there() -> None:
    with raises(UsageError, what="onnx-fp61", hint="did you mean onnx-fp16?"):
        GateRules(artifacts={"onnx-fp61": Rules()}).check_names(["reference", "onnx-fp16"])
