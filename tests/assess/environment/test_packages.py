"""Extras and licenses, from the metadata of installed packages."""

from __future__ import annotations

import sys
from email.message import Message
from pathlib import Path
from typing import Any

import pytest
from command_line import run
from raising import raises

from vitdeploy.assess.environment.extras import PURPOSES, extras
from vitdeploy.assess.environment.licenses import NOT_STATED, license_of, licenses
from vitdeploy.errors import UnavailableError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[3]
VITDEPLOY = """Provides-Extra: one
Provides-Extra: both
Provides-Extra: dev
Requires-Dist: base-package>=1
Requires-Dist: one-package>=2; extra == "one"
Requires-Dist: elsewhere; sys_platform == "nowhere" and extra == "one"
Requires-Dist: vitdeploy[one]; extra == "both"
Requires-Dist: absent-package>=3; extra == "both"
Requires-Dist: tool; extra == "dev"
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of packages, which alone are installed."""
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    return tmp_path


def install(site: Path, name: str, version: str, fields: str = "") -> None:
    folder = site / f"{name.replace('-', '_')}-{version}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.4\nName: {name}\nVersion: {version}\n{fields}")


def test_every_extra_has_a_purpose() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert {*project["optional-dependencies"]} - {"dev", "docs"} == PURPOSES.keys()


def test_an_extra_lacks_what_is_absent_or_too_old(site: Path) -> None:
    assert extras() == ()
    install(site, "vitdeploy", "1", VITDEPLOY)
    install(site, "one-package", "1.5")
    one, both = extras()
    assert (one.name, one.installed, one.missing) == ("one", False, ("one-package>=2 (1.5 is installed)",))
    assert both.missing == ("one-package>=2 (1.5 is installed)", "absent-package>=3")
    assert both.install_line == "pip install 'vitdeploy[both]'"
    (site / "one_package-1.5.dist-info" / "METADATA").write_text("Name: one-package\nVersion: 2.1+cpu\n")
    assert [extra.installed for extra in extras()] == [True, False]
    assert extras()[0].to_dict() == {"name": "one", "purpose": "", "installed": True, "missing": []}


def test_one_onnxruntime_takes_the_place_of_the_other(site: Path) -> None:
    lines = [f'Provides-Extra: {name}\nRequires-Dist: {name}>=1.20; extra == "{name}"\n' for name in
             ("onnxruntime", "onnxruntime-gpu")]  # fmt: skip
    install(site, "vitdeploy", "1", "".join(lines))
    install(site, "onnxruntime-gpu", "1.22")
    (site / "onnxruntime_gpu-1.22.dist-info" / "top_level.txt").write_text("onnxruntime\n")
    assert [extra.installed for extra in extras()] == [True, True]
    (site / "onnxruntime_gpu-1.22.dist-info" / "METADATA").unlink()
    (site / "onnxruntime_gpu-1.22.dist-info").rename(site / "gone")
    install(site, "onnxruntime", "1.22")
    plain, gpu = extras()
    assert (plain.installed, gpu.installed) == (True, False)
    assert gpu.install_line.startswith("pip uninstall -y onnxruntime && pip install")


def test_licenses_are_those_of_all_that_is_required_and_installed(site: Path) -> None:
    with raises(UnavailableError, what="metadata"):
        licenses()
    install(site, "vitdeploy", "1", VITDEPLOY)
    install(site, "base-package", "1", "License-Expression: MIT\nRequires-Dist: Further.Package[more]\n")
    circle = 'Provides-Extra: more\nRequires-Dist: base-package[x]; extra == "more"\n'
    install(site, "Further-Package", "3", f"License: BSD\n{circle}")
    install(site, "tool", "1", "License: GPL\n")
    install(site, "unrelated", "1")
    found = [(item.package, item.version, item.license, item.direct) for item in licenses()]
    assert found == [("base-package", "1", "MIT", True), ("Further-Package", "3", "BSD", False)]
    assert licenses()[0].to_dict() == {"package": "base-package", "version": "1", "license": "MIT", "direct": True}


@pytest.mark.parametrize(
    ("fields", "license_"),
    [
        ({"License-Expression": "MIT OR Apache-2.0", "License": "other"}, "MIT OR Apache-2.0"),
        ({"License": "Apache 2.0", "Classifier": "License :: OSI Approved :: MIT License"}, "Apache 2.0"),
        ({"License": "UNKNOWN", "Classifier": "License :: OSI Approved :: MIT License"}, "MIT License"),
        ({"License": "A\ntext", "Classifier": "License :: Other/Proprietary License"}, "Other/Proprietary License"),
        ({"License": "x" * 200, "Classifier": "Topic :: Other"}, NOT_STATED),
        ({}, NOT_STATED),
    ],
)  # fmt: skip
def test_license_of(fields: dict[str, str], license_: str) -> None:
    metadata: Any = Message()
    for name, value in fields.items():
        metadata[name] = value
    assert license_of(metadata) == license_


def test_doctor_lists_licenses_where_they_are_asked_for() -> None:
    asked, plain = run("doctor", "--json", "--licenses"), run("doctor", "--json")
    assert (asked.code, plain.code) == (0, 0)
    assert {"numpy", "torch"} <= {item["package"] for item in asked.json["licenses"]}
    assert asked.json.keys() - plain.json.keys() == {"licenses"}
    assert {"machine", "backends", "gpus", "extras", "caches", "fast_precisions"} == plain.json.keys()
    assert any(item["folder"] for item in plain.json["caches"])
    text = run("doctor", "--licenses").out
    assert "AzureExecutionProvider " not in text
    assert "numpy" in text
