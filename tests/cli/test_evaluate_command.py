"""`vitdeploy evaluate` on the embedded model: its figures, its exit codes, and its end by kill -9."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import run
from schemas import validated

import vitdeploy
from vitdeploy.assets import held_out_images
from vitdeploy.bundle.bundle import Bundle
from vitdeploy.runtimes import BACKENDS, Backend
from vitdeploy.runtimes.onnxrt.runtime import OnnxRuntime

IMAGES = 450
CORRECT = 446  # as the README says


def test_table_and_json_of_the_embedded_model(digits: Bundle, tmp_path: Path) -> None:
    arguments = (digits.path, "--data", held_out_images(), "--per-class", "--confusion")
    page, summary = tmp_path / "page.html", tmp_path / "summary.md"
    code, out, err = run("evaluate", *arguments, "--html", page, "--markdown", summary)
    assert (code, err, out.count(f"{CORRECT} of {IMAGES}")) == (0, "", 2)
    for text in ("labels matched by name\n", "100.00%", "Top-1 accuracy of each class", "taken for"):
        assert text in out
    assert summary.read_text(encoding="utf-8").count(f"{CORRECT} of {IMAGES}") == 2
    assert page.read_text(encoding="utf-8").count("<img ") == IMAGES - CORRECT
    code, out, _ = run("evaluate", *arguments, "--json")
    validation = validated("evaluate", out)
    assert (code, validation["status"], validation["images"]) == (0, "passed", IMAGES)
    reference, onnx = validation["results"]
    assert reference["top1"]["correct"] == onnx["top1"]["correct"] == CORRECT
    assert sum(row["correct"] for row in onnx["per_class"].values()) == CORRECT
    assert sum(row["images"] for row in onnx["confused"]) == IMAGES - CORRECT
    assert onnx["agreement"]["correct"] == IMAGES
    assert 0 < onnx["calibration"]["ece"] < 0.1


def test_a_skipped_backend_exits_with_3(digits: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BACKENDS, "torch", Backend("not_there:X", (), "torch", "torch"))
    code, out, _ = run("evaluate", digits.path, "--data", held_out_images(), "--limit", 10)
    assert code == 3
    assert "skipped: the torch backend needs a package that is not installed" in out
    assert run("evaluate", digits.path, "--data", held_out_images(), "--limit", 10, "--backend", "onnxruntime")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--data", "absent"), 4, "absent"),
        (("--data", ".", "--backend", "tensorflow"), 2, "'tensorflow'"),
        (("--data", ".", "--batch-size", "0"), 2, "Invalid value for '--batch-size'"),
        ((), 2, "Missing option '--data'"),
    ],
)
def test_refusals(digits: Bundle, arguments: tuple[str, ...], code: int, message: str) -> None:
    found, out, err = run("evaluate", digits.path, *arguments)
    assert (found, out) == (code, "")
    assert message in err


def test_killed_in_the_middle_it_goes_on_and_computes_nothing_twice(
    digits: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"data": held_out_images(), "backends": ["onnxruntime"], "batch_size": 1}
    work = tmp_path / "work"
    command = [sys.executable, "-m", "vitdeploy", "evaluate", str(digits.path), "--data", str(held_out_images()),
               "--backend", "onnxruntime", "--batch-size", "1", "--resume", str(work)]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=Path(vitdeploy.__file__).parent.parent)
    deadline = time.monotonic() + 60
    while not work.exists() or work.read_bytes().count(b"\n") < 50:
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    kept = work.read_bytes().rpartition(b"\n")[0] + b"\n"
    finished = kept.count(b"\n") - 1  # a header, then a line a batch
    assert 49 <= finished < IMAGES

    runs: list[int] = []
    original = OnnxRuntime._run

    def counted(self: OnnxRuntime, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        runs.append(len(feeds["pixel_values"]))
        return original(self, feeds)

    monkeypatch.setattr(OnnxRuntime, "_run", counted)
    resumed = vitdeploy.evaluate(digits, resume=work, **options)
    assert len(runs) == IMAGES - finished
    assert work.read_bytes().startswith(kept)
    whole = vitdeploy.evaluate(digits, **options)
    assert resumed.to_dict() == whole.to_dict()
    for name in ("classes", "scores"):
        np.testing.assert_array_equal(getattr(resumed.results[0], name), getattr(whole.results[0], name))


@pytest.mark.skipif(sys.platform != "linux", reason="only there may a file's name be any bytes")
def test_a_name_that_is_no_text(digits: Bundle, tmp_path: Path) -> None:
    folder = tmp_path / "data" / "7"
    folder.mkdir(parents=True)
    for index, image in enumerate(sorted((held_out_images() / "7").iterdir())[:2]):
        shutil.copy(image, folder / os.fsdecode(b"caf\xe9%d.png" % index))
    work = tmp_path / "work"
    assert run("evaluate", digits.path, "--data", tmp_path / "data", "--limit", 1, "--resume", work)[0] == 0
    baseline = tmp_path / "baseline.json"
    held = (digits.path, "--data", tmp_path / "data", "--baseline", baseline, "--update")
    assert run("gate", *held)[0] == 0
