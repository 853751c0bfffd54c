"""`vitdeploy gate` and its pytest plugin on the embedded model: three planted faults, exit codes, baselines."""

from __future__ import annotations

import collections
import functools
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import run
from faults import copy_of, perturb_layer, shift_labels, swap_normalization
from raising import raises
from schemas import validated

import vitdeploy
from vitdeploy.assess.gate.gate import gate
from vitdeploy.assess.gate.rules import GateRules, Rules
from vitdeploy.assets import default_checkpoint, held_out_images
from vitdeploy.bundle.bundle import Bundle
from vitdeploy.errors import InputError
from vitdeploy.files.opened import VerifiedFile
from vitdeploy.runtimes import open_recorded
from vitdeploy.runtimes.base import Runtime


@pytest.fixture(scope="module")
def baseline(digits: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("ci") / "baseline.json"
    result = vitdeploy.gate(digits, data=held_out_images(), baseline=file, update=True)
    assert (result.status, result.updated) == ("passed", True)
    return file


def test_the_bundle_of_the_baseline_passes(digits: Bundle, baseline: Path, tmp_path: Path) -> None:
    rules = tmp_path / "gate.toml"
    rules.write_text('min_accuracy = 0.98\n[artifacts."onnx-fp32"]\nmin_agreement = "99.5%"\n', encoding="utf-8")
    arguments = (digits.path, "--data", held_out_images(), "--baseline", baseline, "--rules", rules)
    page = tmp_path / "gate.html"
    code, out, err = run("gate", *arguments, "--max-size", "2 MB", "--html", page, "--json")
    validation = validated("gate", out)
    assert page.read_text(encoding="utf-8").count("onnxruntime fp32</th>") >= 6
    assert (code, err, validation["status"], validation["changes"]) == (0, "", "passed", [])
    assert [(check["rule"], check["subject"]) for check in validation["checks"]] == [
        ("same_labels", "bundle"),
        ("same_processor", "bundle"),
        ("finite", "torch fp32"),
        ("min_accuracy", "torch fp32"),
        ("max_drop", "torch fp32"),
        ("finite", "onnxruntime fp32"),
        ("min_accuracy", "onnxruntime fp32"),
        ("max_drop", "onnxruntime fp32"),
        ("min_agreement", "onnxruntime fp32"),
        ("max_difference", "onnxruntime fp32"),
        ("max_size", "onnxruntime fp32"),
    ]


def test_everything_is_opened_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference and each artifact for predictions, outputs, vectors and layers; a file is hashed as often."""
    checkpoint = default_checkpoint()
    for precision in ("fp32", "fp16"):
        bundle = vitdeploy.export(checkpoint, precision=precision, output=tmp_path / "out")
    opened: list[tuple[str, str]] = []
    hashed: list[str] = []
    real, verified = open_recorded, VerifiedFile

    def counted(bundle: Bundle, backend: str, *options: Any, precision: str = "fp32", **more: Any) -> Runtime:
        opened.append((backend, precision))
        return real(bundle, backend, *options, precision=precision, **more)

    def hashing(path: Path, *args: Any, **options: Any) -> VerifiedFile:
        hashed.append(path.name)
        return verified(path, *args, **options)

    for module in ("open_runtimes", "targets"):
        monkeypatch.setattr(f"vitdeploy.assess.runs.{module}.open_recorded", counted)
    monkeypatch.setattr("vitdeploy.bundle.bundle.VerifiedFile", hashing)
    result = gate(bundle, data=held_out_images(), rules=GateRules(Rules(min_cosine=0.9)))
    rules = ["finite", "min_cosine", "max_difference"]
    assert [check.rule for check in result.checks] == ["finite", *rules, "max_layer_difference", *rules]
    assert result.status == "passed"
    assert sorted(opened) == [("onnxruntime", "fp16"), ("onnxruntime", "fp32"), ("torch", "fp32")]
    assert collections.Counter(hashed) == {
        "config.json": 1, "preprocessor_config.json": 1, "model.safetensors": 1, "model.onnx": 1,
        "model_fp16.onnx": 2,  # once more for the copy of its graph that is cut at the layers
    }  # fmt: skip


@pytest.mark.parametrize(
    ("plant", "failed"),
    [
        (functools.partial(perturb_layer, layer=2), {"max_difference onnxruntime fp32"}),
        (shift_labels, {"same_labels bundle", "max_drop torch fp32", "max_drop onnxruntime fp32"}),
        (swap_normalization, {"same_processor bundle", "max_drop torch fp32", "max_drop onnxruntime fp32"}),
    ],
)
def test_a_planted_fault_is_caught(
    digits: Bundle, baseline: Path, tmp_path: Path, plant: Callable[[Bundle], Bundle], failed: set[str]
) -> None:
    faulty = plant(copy_of(digits, tmp_path / "faulty"))
    code, out, _ = run("gate", faulty.path, "--data", held_out_images(), "--baseline", baseline, "--json")
    validation = validated("gate", out)
    assert (code, validation["status"]) == (1, "failed")
    assert {
        f"{check['rule']} {check['subject']}" for check in validation["checks"] if check["status"] == "failed"
    } == failed


def test_a_planted_fault_is_caught_in_half_precision(digits: Bundle, tmp_path: Path) -> None:
    """It stays below what the logits of a sound fp16 model may differ by."""
    bundle = vitdeploy.export(default_checkpoint(), precision="fp16", output=copy_of(digits, tmp_path / "copy").path)
    held = ("--data", held_out_images(), "--backend", "onnxruntime:fp16", "--json")
    assert run("gate", bundle.path, *held)[0] == 0
    for layer in (1, 4):
        faulty = perturb_layer(copy_of(bundle, tmp_path / str(layer)), layer, precision="fp16")
        code, out, _ = run("gate", faulty.path, *held)
        (check,) = [check for check in validated("gate", out)["checks"] if check["rule"] == "max_layer_difference"]
        assert (code, check["status"]) == (1, "failed")
        assert check["message"].endswith(f"layers.{layer} is the first that diverges")


def test_what_is_refused_before_anything_runs(digits: Bundle, baseline: Path, tmp_path: Path) -> None:
    held = (digits.path, "--data", held_out_images(), "--baseline")
    code, out, err = run("gate", *held, baseline, "--max-drop", "0.1%")
    assert (code, out) == (2, "")
    assert all(part in err for part in ("--max-drop", "torch fp32", "4636", "450", "1.12 points"))
    code, _, err = run("gate", *held, tmp_path / "absent.json")
    assert (code, "absent.json" in err, "--update" in err) == (4, True, True)
    assert run("gate", *held, baseline, "--min-accuracy", "98")[0] == 2
    few = tmp_path / "few"
    for label in "01":
        shutil.copytree(held_out_images() / label, few / label)
    code, _, err = run("gate", digits.path, "--data", few, "--baseline", baseline)
    assert (code, str(baseline) in err, err.count("\n")) == (4, True, 1)


def test_other_images_of_the_same_number_are_refused(digits: Bundle, baseline: Path, tmp_path: Path) -> None:
    data = json.loads(baseline.read_text(encoding="utf-8"))
    data["data"]["sha256"] = "0" * 64
    other = tmp_path / "baseline.json"
    other.write_text(json.dumps(data), encoding="utf-8")
    with raises(InputError, what="data", where=str(other)):
        vitdeploy.gate(digits, data=held_out_images(), baseline=other, backends=["onnxruntime"])


def test_update_writes_nothing_where_a_check_does_not_pass(digits: Bundle, baseline: Path, tmp_path: Path) -> None:
    copy = tmp_path / "baseline.json"
    shutil.copy(baseline, copy)
    faulty = perturb_layer(copy_of(digits, tmp_path / "faulty"), layer=2)
    result = vitdeploy.gate(faulty, data=held_out_images(), baseline=copy, update=True)
    assert (result.status, result.updated, copy.read_bytes()) == ("failed", False, baseline.read_bytes())
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_baseline_that_names_other_images_is_refused(digits: Bundle, baseline: Path, tmp_path: Path) -> None:
    content = json.loads(baseline.read_bytes())
    for row in content["backends"].values():
        row["wrong"] = [f"nope/{index}.png" for index in range(len(row["wrong"]) + 1)]
        row["correct"] = content["data"]["images"] - len(row["wrong"])
    altered = tmp_path / "baseline.json"
    altered.write_text(json.dumps(content), encoding="utf-8")
    code, _, err = run("gate", digits.path, "--data", held_out_images(), "--baseline", altered)
    assert (code, err.count("\n"), "'nope/0.png'" in err) == (4, 1, True)


def pytest_run(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-p", "vitdeploy.pytest_plugin", "-p", "no:cacheprovider", "-v"]
    command += ["--rootdir", folder, folder, *arguments]  # type: ignore[list-item]
    return subprocess.run([*map(str, command)], cwd=folder, capture_output=True, text=True, check=False)


def test_the_plugin_holds_the_gate_an_item_a_check(digits: Bundle, baseline: Path, tmp_path: Path) -> None:
    suite = tmp_path / "suite"
    suite.mkdir()
    (suite / "test_own.py").write_text("def test_own(): pass\n", encoding="utf-8")
    faulty = perturb_layer(copy_of(digits, tmp_path / "faulty"), layer=2)
    held = ("--vitdeploy-bundle", faulty.path, "--vitdeploy-data", held_out_images())
    done = pytest_run(suite, *held, "--vitdeploy-baseline", baseline)
    assert "vitdeploy: files left out: none" in done.stdout
    assert done.returncode == 1, done.stdout
    assert "7 passed" in done.stdout  # six checks and the suite's own test
    for text in ("1 failed", "failed: ", "logits: max relative difference"):
        assert text in done.stdout
    plain = pytest_run(suite)
    assert (plain.returncode, "left out" in plain.stdout) == (0, False)
    done = pytest_run(suite, *held[:2])
    assert (done.returncode, "must both be given" in done.stderr) == (4, True)


def test_the_plugin_imports_nothing_until_it_is_used() -> None:
    code = "import json, sys, vitdeploy.pytest_plugin; print(json.dumps(sorted(sys.modules)))"
    found: Any = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(json.loads(found.stdout))
    assert not {name.partition(".")[0] for name in loaded} & {"numpy", "PIL", "torch", "click", "onnxruntime"}
    assert {name for name in loaded if name.startswith("vitdeploy.")} == {
        "vitdeploy.pytest_plugin",
        "vitdeploy.system",
        "vitdeploy.system.telemetry",
    }
