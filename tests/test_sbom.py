"""The software bill of materials: valid CycloneDX, with the pinned packages and nothing of the developers'."""

from __future__ import annotations

import json
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from environments import ROOT, environment, run
from packaging.utils import canonicalize_name

import vitdeploy

if TYPE_CHECKING:
    from pathlib import Path

VALIDATE = """
import sys
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
sys.exit(JsonStrictValidator(SchemaVersion.V1_6).validate_str(open(sys.argv[1]).read()) is not None)
"""


def make_sbom(target: Path) -> dict[str, Any]:
    """The recipe of `make sbom`, in the environments that are there."""
    made = [f"--old-file=.venvs/{name}/.done" for name in ("sbom", "production")]
    subprocess.run(["make", "--silent", "sbom", f"SBOM={target}", *made], cwd=ROOT, check=True)
    content: dict[str, Any] = json.loads(target.read_bytes())
    return content


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_it_lists_what_the_wheel_installs(tmp_path: Path) -> None:
    python, _ = environment("sbom"), environment("production")
    sbom = make_sbom(tmp_path / "first.json")
    run(python, "-c", VALIDATE, tmp_path / "first.json")
    root = sbom["metadata"]["component"]
    assert (root["name"], root["version"], root["type"]) == ("vitdeploy", vitdeploy.__version__, "library")
    listed = {canonicalize_name(item["name"]): item["version"] for item in sbom["components"]}
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()[1:])
    pinned = {canonicalize_name(name): version for name, version in pins.items()}
    assert listed == {name: pinned[name] for name in listed}
    assert listed.keys() >= {"numpy", "pillow", "click", "rich", "packaging", "onnxruntime"}
    assert not listed.keys() & {"torch", "pytest", "ruff", "pip"}
    refs = {root["bom-ref"], *(item["bom-ref"] for item in sbom["components"])}
    (own,) = [item for item in sbom["dependencies"] if item["ref"] == root["bom-ref"]]
    assert {ref.partition("==")[0] for ref in own["dependsOn"]} >= {"numpy", "pillow", "click", "rich", "packaging"}
    assert all({item["ref"], *item.get("dependsOn", ())} <= refs for item in sbom["dependencies"])
    make_sbom(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "first.json").read_bytes()
