"""The jobs for GitHub Actions and GitLab: their own commands run, with the variables that the files give them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import command_line
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


# `vitdeploy` for a shell: it hands its arguments to the process of the tests, which has imported torch.
PROGRAM = """#!{python}
import json, os, socket, sys
address = "127.0.0.1", int(os.environ["PORT"])
with socket.create_connection(address) as connection, connection.makefile("rw") as stream:
    print(json.dumps([os.getcwd(), sys.argv[1:]]), file=stream, flush=True)
    code, out, err = json.load(stream)
print(out, end="")
print(err, end="", file=sys.stderr)
sys.exit(code)
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run a command, which calls `vitdeploy` once, as a runner does."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "vitdeploy").write_text(PROGRAM.format(python=sys.executable), encoding="utf-8")
    (programs / "vitdeploy").chmod(0o755)
    place = tmp_path / "place"
    place.mkdir()
    (place / "gate.toml").write_text("min_agreement = 0.99\n", encoding="utf-8")
    monkeypatch.chdir(place)

    def of(command: str, **variables: object) -> subprocess.CompletedProcess[str]:
        line = ["bash", "-e", "-c", command]
        with socket.create_server(("127.0.0.1", 0)) as server:
            environ = {
                **os.environ, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "RULES": "gate.toml",
                "GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md"), "DATA": str(held_out_images()),
                "PORT": str(server.getsockname()[1]), **{name: str(value) for name, value in variables.items()},
            }  # fmt: skip
            server.settimeout(60)
            pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
            with subprocess.Popen(line, cwd=place, env=environ, **pipes) as process:
                connection, _ = server.accept()
                with connection, connection.makefile("rw") as stream:
                    folder, arguments = json.loads(stream.readline())
                    assert folder == str(place)
                    json.dump(command_line.run(*arguments), stream)
                out, err = process.communicate()
        return subprocess.CompletedProcess(line, process.returncode, out, err)

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
