"""Rules of a gate: what is read, and what is refused before anything runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from vitdeploy.assess.gate.rules import GateRules, Rules, read_rules
from vitdeploy.errors import InputError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

EVERY = """
min_accuracy = 98.5
max_drop = 1
max_size = "12.5 MB"

[artifacts."onnx-fp16"]
max_drop = 2.5
max_difference = 2e-2
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "gate.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_an_artifact_has_the_rules_of_every_one_but_for_its_own(tmp_path: Path) -> None:
    rules = read_rules(write(tmp_path, EVERY))
    assert rules.of("onnx-fp32") == Rules(min_accuracy=98.5, max_drop=1.0, max_size=12_500_000)
    assert rules.of("onnx-fp16") == Rules(98.5, 2.5, max_difference=0.02, max_size=12_500_000)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("min_acuracy = 98", "has 'min_acuracy'; did you mean min_accuracy?"),
        ("[artifact.x]", "has 'artifact'; did you mean artifacts?"),
        ("zzz = 1", "use min_accuracy, max_drop"),
        ("[artifacts.onnx-fp32]\nmax_sise = 1", "onnx-fp32 in .* did you mean max_size?"),
        ("artifacts = 3", "must be tables"),
        ("min_accuracy = 0.98", "min_accuracy of .* in percent, from 1 to 100, such as 98.5"),
        ("min_agreement = 101", "in percent"),
        ("max_drop = 0", "above 0"),
        ("max_drop = true", "got True"),
        ("max_difference = nan", "got nan"),
        ("max_latency_ratio = -1", "a ratio above 0"),
        ("latency_against = 'torch'", "such as \"torch:fp32\", got 'torch'"),
        (f"max_size = 1{'0' * 400}", "a number of bytes"),
        (f"max_size = 0x{'f' * 9000}", "got int that is too large to show"),
        (f"max_size = '{'9' * 400} MB'", "a number of bytes"),
        (f"max_size = '{'9' * 5000}'", "a number of bytes"),
        (f"max_latency_ratio = 1{'0' * 400}", "a ratio above 0"),
        ("max_difference = 1e400", "got inf"),
        ("max_size = '12 mb'", "such as \"12.5 MB\", got '12 mb'"),
    ],
)
def test_what_is_no_rule_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_rules(write(tmp_path, text))


def test_a_size_has_a_unit_or_is_in_bytes() -> None:
    for value in ("1500", "1500 bytes", "1.5 kB", 1500):
        assert Rules.from_dict({"max_size": value}, "the flags").max_size == 1500


def test_a_byte_order_mark_is_no_matter(tmp_path: Path) -> None:
    assert read_rules(write(tmp_path, "\ufeffmax_drop = 1")).every.max_drop == 1


@pytest.mark.parametrize("text", [f"max_size = 1{'0' * 5000}", f"x = {'[' * 50_000}"])
def test_numbers_and_nesting_without_end_are_one_line(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match=r"gate\.toml must be TOML: .*") as caught:
        read_rules(write(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_toml_or_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"must be TOML: .*line 1"):
        read_rules(write(tmp_path, "max_drop = = 1"))
    with pytest.raises(InputError, match=r"absent\.toml"):
        read_rules(tmp_path / "absent.toml")


def test_rules_of_an_artifact_that_is_not_there() -> None:
    with pytest.raises(UsageError, match=r"has 'onnx-fp61'; did you mean onnx-fp16\?"):
        GateRules(artifacts={"onnx-fp61": Rules()}).check_names(["reference", "onnx-fp16"])
