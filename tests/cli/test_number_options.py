"""Every numeric option has a range; invalid numbers are refused before any file is read."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from command_line import run
from raising import raises

import vitdeploy
from vitdeploy.assess.debug.layers import compare_layers
from vitdeploy.assess.gate.rules import Rules
from vitdeploy.cli import COMMANDS
from vitdeploy.errors import UsageError

# Options that take a name, a path or another text. An option that is new is a number until it stands here.
TEXTS = {
    "accuracy_data", "against", "arch", "artifact", "artifacts", "backends", "baseline", "cache_dir",
    "calibration_cache", "calibration_data", "class_embeddings", "compute_capability", "data", "device", "gallery",
    "golden", "host", "html", "images", "junit", "keep", "keep_fp32", "keep_fp32_from", "labels", "latency_against",
    "markdown", "message", "model", "name", "names", "output", "outputs", "precision", "private_key", "processor",
    "public_key", "random_weights", "repository", "resume", "revision", "rules", "save_golden", "settings",
    "timing_cache", "token", "triton", "weights", "weights_entry",
}  # fmt: skip
SIGNED = {"image_mean"}
NONSENSE = ("nan", "inf", "-inf", "1e400", "9" * 400, "-9", "", " ", "many", "0x10", "1\0")
NEEDED: dict[str, list[str]] = {
    "export": ["--int8", "--calibration-data", "absent", "--random-weights", "vit-tiny-patch16-32"],
    "gate": ["absent", "--data", "absent"],
    "evaluate": ["absent", "--data", "absent"],
    "predict": ["absent", "absent.png"],
    "triton": ["absent", "absent"],
    "tune": ["absent", "--data", "absent", "--min-agreement", "0.9"],
}
TO_ENGINE = ["--to", "tensorrt-rtx"]


def options() -> Iterator[tuple[str, click.Option]]:
    for command, (target, _) in COMMANDS.items():
        module, name = target.split(":")
        found = getattr(importlib.import_module(module), name)
        for each in found.commands.values() if isinstance(found, click.Group) else [found]:
            for param in each.params:
                if isinstance(param, click.Option) and not param.is_flag and not isinstance(param.type, click.Choice):
                    yield command if each is found else f"{command} {each.name}", param


NUMBERS = [(command, param) for command, param in options() if param.name not in TEXTS]


def test_there_are_numbers_and_no_text_is_unknown() -> None:
    assert {"tolerance", "max_drop", "seed", "top_k", "batch_sizes", "rounds"} <= {param.name for _, param in NUMBERS}
    assert {param.name for _, param in options()} >= TEXTS


@pytest.mark.parametrize("value", NONSENSE, ids=lambda value: f"{value!r:.12}")
@pytest.mark.parametrize(("command", "param"), NUMBERS, ids=lambda item: item if isinstance(item, str) else item.name)
def test_nonsense_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, param: click.Option, value: str
) -> None:
    if param.name in SIGNED and value == "-9":
        pytest.skip("a mean may be below 0")
    monkeypatch.chdir(tmp_path)
    done = run(*command.split(), *NEEDED.get(command, ["absent"]), f"{param.opts[0]}={value}")
    assert (done.code, done.out) == (2, ""), done.err
    assert param.opts[0] in done.err
    assert str(param.name) in param.opts[0] or str(param.name) not in done.err
    assert len(done.err.splitlines()[-1]) < 800
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "rule",
    ["min_accuracy", "min_agreement", "min_neighbour_agreement", "max_drop", "min_cosine", "max_difference",
     "max_layer_difference"],
)  # fmt: skip
def test_a_percentage_has_one_form(rule: str) -> None:
    limits: Any = ("0.7%", "0.007", 0.007)
    assert {getattr(Rules(**{rule: limit}), rule) for limit in limits} == {0.007}


@pytest.mark.parametrize("tolerance", [float("nan"), float("inf"), 10**400, -1e-9, "1e-4", True])
@pytest.mark.parametrize("call", [vitdeploy.compare, compare_layers, vitdeploy.bisect])
def test_the_functions_take_the_same_tolerances(call: Callable[..., Any], tolerance: Any, tmp_path: Path) -> None:
    with raises(UsageError, what="tolerance"):
        call(tmp_path / "absent", tolerance=tolerance)


def test_a_click_whose_types_are_not_generic_will_do() -> None:
    """Of before 8.4, which `pyproject.toml` admits."""
    code = """
import click
class ParamType(click.ParamType):
    __class_getitem__ = None
click.ParamType = ParamType
import vitdeploy.cli.benchmark, vitdeploy.cli.compare
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
