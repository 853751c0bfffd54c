"""The rooms of the package are as CONTRIBUTING.md and the design have them, and its diffs are those that it takes."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from environments import ROOT

import vitdeploy

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
MOST_MODULES, MOST_LINES = 13, 400
MANY_MODULES = {"vitdeploy/cli": "one file a command"}
PACKAGES = [
    init.parent
    for folder in ("vitdeploy", "exporters", "runtimes")
    for init in sorted((ROOT / folder).rglob("__init__.py"))
    if "exporters" not in init.relative_to(ROOT).parts[1:] and "runtimes" not in init.relative_to(ROOT).parts[1:]
]
MODULES = [module for package in PACKAGES for module in sorted(package.glob("*.py"))]
# Libraries that it wraps, or that a model server or a plug-in has; their import names.
WRAPPED = {"PIL", "click", "cuda", "huggingface_hub", "jinja2", "matplotlib", "numpy", "onnx", "onnx_ir", "onnxruntime",
           "onnxscript", "openvino", "peft", "pyarrow", "pytest", "ray", "rich", "safetensors", "tensorrt",
           "tensorrt_rtx", "timm", "torch", "transformers", "triton"}  # fmt: skip


def docstring(module: Path) -> str:
    return ast.get_docstring(ast.parse(module.read_text(encoding="utf-8"))) or ""


def sentence(path: Path) -> str:
    module = path / "__init__.py" if path.is_dir() else path
    return docstring(module).partition("\n")[0]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def layers() -> list[list[str]]:
    """Layers of the package, and of `assess`, from the top to the bottom of the import contracts."""
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    return [contract["layers"] for contract in tools["importlinter"]["contracts"][:2]]


def room_rows() -> list[str]:
    """Rows for the rooms, from the top to the bottom."""
    first, assess = layers()
    names = [name.strip() for layer in first for name in layer.split("|")]
    inner = [f"assess/{name.strip()}" for layer in assess for name in layer.split("|")]
    names[names.index("assess") + 1 : names.index("assess") + 1] = inner
    rows = []
    for name in names:
        path = ROOT / "vitdeploy" / name
        path = path if path.is_dir() else path.with_suffix(".py")
        rows.append(f"| `{path.relative_to(ROOT / 'vitdeploy').as_posix()}` | {sentence(path)} |")
    return rows


def test_the_order_of_the_rooms_is_that_of_the_contract() -> None:
    order = " → ".join(layers()[0]).replace(" | ", ", ")
    assert f"\n    {order}\n" in TEXT
    assert f"\n{order}\n" in (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def test_the_table_of_rooms_says_what_the_rooms_say() -> None:
    assert "\n".join(["| room | |", "|---|---|", *room_rows()]) in TEXT


def test_a_room_says_its_purpose_in_one_sentence_and_has_few_modules() -> None:
    purposes = {name_of(package): docstring(package / "__init__.py") for package in PACKAGES}
    assert [room for room, text in purposes.items() if not re.fullmatch(r"[A-Z](?:[^\n.]|\.\S)*\.", text)] == []
    sizes = {name_of(package): sum(module.parent == package for module in MODULES) - 1 for package in PACKAGES}
    assert {room for room, modules in sizes.items() if modules > MOST_MODULES} == MANY_MODULES.keys()


def test_a_module_is_short() -> None:
    lines = {name_of(module): len(module.read_text(encoding="utf-8").splitlines()) for module in MODULES}
    assert [name for name, count in lines.items() if count >= MOST_LINES] == []


def test_no_module_hides_a_library_or_a_public_name() -> None:
    """Where Python runs from inside a folder, its modules are found before all others."""
    names = {path: path.stem for path in MODULES if not path.stem.startswith("__")} | {
        path: path.name for path in PACKAGES
    }
    assert [name_of(path) for path, name in names.items() if name in WRAPPED | sys.stdlib_module_names] == []
    assert not set(vitdeploy.__all__) & {name for path, name in names.items() if path.parent == ROOT / "vitdeploy"}


def test_the_tests_lie_as_the_package_does() -> None:
    apart = {"support", "fuzz", "golden", "data"}
    folders = {path.parent.relative_to(ROOT / "tests") for path in (ROOT / "tests").rglob("test_*.py")}
    rooms = {path.relative_to(ROOT / "vitdeploy") for path in PACKAGES if "vitdeploy" in path.parts}
    rooms |= {path.relative_to(ROOT) for path in PACKAGES}
    assert {folder for folder in folders if folder.parts[:1] and folder.parts[0] not in apart} <= rooms


def documented_diff(title: str) -> str:
    section = TEXT.split(f"## {title}\n")[1].split("\n## ")[0]
    return section.split("```diff\n")[1].split("```")[0]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of what a change to the package touches."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    left_out = shutil.ignore_patterns("__pycache__", "golden", "fuzz", "held-out")
    for name in ("docs", "exporters", "runtimes", "tests", "vitdeploy"):
        shutil.copytree(ROOT / name, tmp_path / name, symlinks=True, ignore=left_out)
    return tmp_path


def call(tree: Path, *command: str, text: str = "") -> str:
    """Run a command in the copy, with its package; what it prints."""
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    process = subprocess.run(
        command, cwd=tree, env=environment, input=text, text=True, capture_output=True, check=False
    )
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


def test_the_backend_that_is_shown_passes_the_contract(tree: Path) -> None:
    call(tree, "git", "apply", "-C1", text=documented_diff("Adding a backend"))
    call(tree, sys.executable, "-m", "ruff", "check", "--no-cache", "runtimes")
    tests = (
        "tests/runtimes/test_contract.py",
        "-k",
        "under_contract or (onnx-reference and not FEATURES and not MASKED)",
    )
    told = call(tree, sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests)
    passed = re.search(r"(\d+) passed", told)
    assert passed is not None
    assert int(passed[1]) > 50
    assert "skipped" not in told


def test_the_family_that_is_shown_is_here_by_that_change_alone(tree: Path) -> None:
    code = (
        "from vitdeploy.models.families.table import FAMILIES; print([name for name in FAMILIES if 'siglip' in name])"
    )
    assert call(tree, sys.executable, "-c", code) == "['siglip_vision_model', 'siglip']\n"
    call(tree, "git", "apply", "-C1", "--reverse", text=documented_diff("Adding a family"))
    assert call(tree, sys.executable, "-c", code) == "[]\n"
    paths = [path for room in ("models", "images") for path in (tree / "vitdeploy" / room).rglob("*.py")]
    texts = [path.read_text(encoding="utf-8") for path in (*paths, tree / "tests" / "support" / "families.py")]
    assert not [text for text in texts if re.search(r"Siglip|siglip_vision_model|\b_siglip\b", text)]
