"""The jobs for GitHub Actions and GitLab: their own commands run, with the variables that the files give them."""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
import yaml
from environments import ROOT
from faults import copy_of, perturb_layer

import vitdeploy
from vitdeploy.assets import held_out_images
from vitdeploy.bundle.bundle import Bundle

GITHUB = {
    job: yaml.safe_load((ROOT / f".github/workflows/vitdeploy-{job}.yml").read_text(encoding="utf-8"))
    for job in ("gate", "baseline")
}
GITLAB = yaml.safe_load((ROOT / "ci/gitlab/vitdeploy-gate.yml").read_text(encoding="utf-8"))


def step(job: str, name: str) -> str:
    """The command of one step of the workflow."""
    (found,) = [each for each in GITHUB[job]["jobs"][job]["steps"] if each.get("name") == name]
    return str(found["run"])


def script(job: str) -> str:
    return "\n".join(GITLAB[job]["script"])


@pytest.fixture
def run(tmp_path: Path) -> Any:
    """Run a command as a runner does, where `vitdeploy` is installed: this interpreter's."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "vitdeploy").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m vitdeploy "$@"\n', encoding="utf-8")
    (programs / "vitdeploy").chmod(0o755)
    place = tmp_path / "place"
    place.mkdir()
    (place / "gate.toml").write_text("min_agreement = 0.99\n", encoding="utf-8")

    def of(command: str, **variables: object) -> subprocess.CompletedProcess[str]:
        environ = {
            **os.environ, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT),
            "GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md"), "DATA": str(held_out_images()), "RULES": "gate.toml",
            **{name: str(value) for name, value in variables.items()},
        }  # fmt: skip
        return subprocess.run(
            ["bash", "-e", "-c", command], cwd=place, env=environ, capture_output=True, text=True, check=False
        )

    return of


def test_both_give_the_commands_the_same_variables() -> None:
    names = {"BUNDLE", "DATA", "BASELINE", "RULES", "INSTALL"}
    assert set(GITLAB["vitdeploy-gate"]["variables"]) == names
    for name, access in (("gate", "read"), ("baseline", "write")):
        workflow = GITHUB[name]
        assert (set(workflow["env"]), workflow["permissions"]) == (names, {"contents": access})
        assert all("@v" in each["uses"] for each in workflow["jobs"][name]["steps"] if "uses" in each)
        # YAML 1.1 takes the key `on` for true
        assert set(workflow[True]["workflow_call"]["inputs"]) == {*map(str.lower, names), "artifact", "python-version"}
    assert GITLAB["vitdeploy-baseline"]["extends"] == "vitdeploy-gate"


@pytest.mark.parametrize("faulty", [False, True])
def test_they_pass_and_fail_with_the_gate(digits: Bundle, tmp_path: Path, run: Any, faulty: bool) -> None:
    baseline = tmp_path / "baseline.json"
    vitdeploy.gate(digits, data=held_out_images(), baseline=baseline, update=True)
    held = perturb_layer(copy_of(digits, tmp_path / "faulty"), layer=2) if faulty else digits
    for command in (step("gate", "Gate"), script("vitdeploy-gate")):
        found = run(command, BUNDLE=held.path, BASELINE=baseline)
        assert found.returncode == int(faulty), found.stdout + found.stderr
    summary = (tmp_path / "summary.md").read_text(encoding="utf-8")
    assert ("failed" if faulty else "passed") in summary.splitlines()[0]
    artifacts = GITLAB["vitdeploy-gate"]["artifacts"]
    suite = ET.parse(tmp_path / "place" / artifacts["reports"]["junit"]).getroot()[0]
    assert (suite.get("tests"), suite.get("failures")) == ("8", str(int(faulty)))
    assert all("<!doctype html>" in (tmp_path / "place" / name).read_text("utf-8") for name in artifacts["paths"])


def test_a_new_baseline_is_proposed_on_a_branch(digits: Bundle, tmp_path: Path, run: Any) -> None:
    def git(*arguments: object, folder: Path = tmp_path / "place") -> str:
        command = ["git", *map(str, arguments)]
        return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout

    git("init", "--bare", tmp_path / "origin")
    git("config", "receive.advertisePushOptions", "true", folder=tmp_path / "origin")
    git("init")
    git("remote", "add", "origin", tmp_path / "origin")
    git("add", "gate.toml")
    git("-c", "user.name=a", "-c", "user.email=a@localhost", "commit", "--message", "rules")
    held: dict[str, object] = {"BUNDLE": digits.path, "BASELINE": "ci/baseline.json", "REMOTE": tmp_path / "origin"}
    for command in (step("baseline", "Baseline"), script("vitdeploy-baseline")):
        found = run(command, **held)
        assert found.returncode == 0, found.stdout + found.stderr
        changed = git("diff", "--stat", "vitdeploy-baseline~1", "vitdeploy-baseline", "--", folder=tmp_path / "origin")
        assert "ci/baseline.json" in changed
        assert "1 file changed" in changed
        git("reset", "--hard", "HEAD~1")
    git("fetch", "origin", "vitdeploy-baseline")
    git("reset", "--hard", "FETCH_HEAD")
    found = run(step("baseline", "Baseline"), **held)
    assert found.returncode == 0, found.stderr
    assert "The baseline is as it was." in found.stdout
