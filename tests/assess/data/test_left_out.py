"""Every command that reads a folder reports files that are not images: in its table, its JSON and its files."""

from __future__ import annotations

import html
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from command_line import run
from schemas import validated

import vitdeploy
from vitdeploy.assess.data.folder_listing import LeftOut, Reason
from vitdeploy.assets import default_checkpoint, held_out_images
from vitdeploy.bundle.bundle import Bundle

IMAGES = 6
LEFT_OUT = LeftOut(
    4, (Reason("hidden", 2), Reason("ending .heic (needs pillow-heif)", 1), Reason("ending .txt", 1)), ("9",)
)
TEXT = "iles left out: 4 (2 hidden, 1 ending .heic (needs pillow-heif), 1 ending .txt); folders without an image: 1 (9)"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three images each of two classes, and what photographers and operating systems leave beside them."""
    root = tmp_path_factory.mktemp("images")
    for label in "37":
        (root / label).mkdir()
        for image in sorted((held_out_images() / label).iterdir())[: IMAGES // 2]:
            shutil.copy(image, root / label)
    for name in ("3/._a.png", "7/.ipynb_checkpoints/a.png", "notes.txt", "9/photo.HEIC"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(b"no image")
    return root


def printed(*arguments: object) -> str:
    """The output of a command, which passes and writes nothing to stderr."""
    code, out, err = run(*arguments)
    assert (code in (0, None), err) == (True, "")
    return out


@pytest.mark.parametrize(
    "command",
    [
        ["evaluate", "--backend", "onnxruntime", "--data"],
        ["gate", "--data"],
        ["compare", "--images"],
        ["debug", "layers", "--images"],
        ["benchmark", "--backend", "onnxruntime", "--batch-sizes", 1, "--rounds", 1, "--runs", 1, "--images"],
    ],
    ids=lambda command: " ".join(map(str, command[:2])),
)
def test_table_json_page_and_summary(command: list[Any], digits: Bundle, folder: Path, tmp_path: Path) -> None:
    names = 2 if command[0] == "debug" else 1
    arguments = [*command[:names], digits.path, *command[names:], folder]
    page, summary = tmp_path / "a.html", tmp_path / "a.md"
    assert f"\nF{TEXT}\n" in printed(*arguments, "--html", page, "--markdown", summary)
    assert f"F{TEXT}." in html.unescape(page.read_text(encoding="utf-8"))
    assert f"f{TEXT}" in summary.read_text(encoding="utf-8")
    found = validated("compare" if command[0] == "debug" else command[0], printed(*arguments, "--json"))
    found = found.get("evaluation", found)
    assert LeftOut.from_dict(found["left_out"]) == LEFT_OUT


def test_bisect(digits: Bundle, folder: Path) -> None:
    result = vitdeploy.bisect(digits, images=folder, max_images=2, max_runs=2)
    assert (result.left_out, result.images) == (LEFT_OUT, 2)
    assert validated("compare", json.dumps(result.to_dict()))["left_out"] == LEFT_OUT.to_dict()


def test_sensitivity(digits: Bundle, folder: Path, tmp_path: Path) -> None:
    page, summary = tmp_path / "a.html", tmp_path / "a.md"
    options = ["--precision", "fp16", "--max-images", 1, "--html", page, "--markdown", summary]
    assert f"\nF{TEXT}\n" in printed("debug", "sensitivity", digits.path, "--images", folder, *options)
    assert f"F{TEXT}." in html.unescape(page.read_text(encoding="utf-8"))
    assert f"f{TEXT}" in summary.read_text(encoding="utf-8")


def test_synthetic_images_leave_nothing_out(digits: Bundle) -> None:
    assert "left out" not in printed("compare", digits.path)
    assert vitdeploy.compare(digits).to_dict()["left_out"] is None


def test_export_records_each_folder_in_the_manifest(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(folder / "3", other / "3", ignore=shutil.ignore_patterns(".*"))
    options = ["--images", folder, "--calibration-data", folder, "--accuracy-data", other, "--min-agreement", 0.5]
    output = tmp_path / "out"
    main_arguments = ["export", "--model", default_checkpoint(), "--to", "onnx", "--int8", "-o", output, *options]
    shown = printed(*main_arguments)
    (artifact,) = vitdeploy.Bundle.open(output).manifest.artifacts
    assert artifact.validation["left_out"] == {
        "images": LEFT_OUT.to_dict(),
        "calibration_data": LEFT_OUT.to_dict(),
        "accuracy_data": LeftOut().to_dict(),
    }
    for name in ("images", "calibration-data"):
        assert f"onnx-int8, --{name}: f{TEXT}\n" in shown
    assert "onnx-int8, --accuracy-data: files left out: none\n" in shown
    assert printed("inspect", output).count(f"f{TEXT}") == 2
