"""The commands of the documents run, against a Hub on loopback that serves a small model under the name used there."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import safetensors.torch
from bundles import CPU_BACKENDS
from documents import RUN, add_checkpoint, add_images, add_weights, blocks, documents_hub
from environments import ROOT
from families import ALIASES, HEADS, TIMM_GRAPHS
from hub_server import Hub, use_hub

from vitdeploy.models.checkpoint import task_of
from vitdeploy.sources.timm_layouts.layout import from_timm
from vitdeploy.specs import Task

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import WriteCheckpoint

DOCUMENTS = {
    path.relative_to(ROOT).as_posix(): [
        block for block in blocks(path.read_text(encoding="utf-8")) if block.runs and block.language in RUN
    ]
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
}


@pytest.fixture(scope="module")
def hub(write_checkpoint: WriteCheckpoint) -> Iterator[Hub]:
    with documents_hub(write_checkpoint, {}) as server:
        yield server


@pytest.mark.parametrize("document", [name for name, blocks in DOCUMENTS.items() if blocks])
def test_the_commands_of_a_document(document: str, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They run in the document's order, in a folder with images: a later one uses what an earlier one made."""
    monkeypatch.chdir(tmp_path)
    add_images(tmp_path)
    add_checkpoint(tmp_path, hub)
    add_weights(tmp_path)
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    monkeypatch.setenv("TQDM_DISABLE", "1")  # transformers' bar is on standard error
    use_hub(hub.url, tmp_path / "hub", monkeypatch)
    monkeypatch.setattr("vitdeploy.assess.benchmark.image_files._SYNTHETIC_SIZE", (48, 64))
    for block in DOCUMENTS[document]:
        RUN[block.language](block.code)


def test_the_two_commands_are_what_ci_runs() -> None:
    unrun = [block.code for block in blocks((ROOT / "README.md").read_text(encoding="utf-8")) if not block.runs]
    assert any("make demo" in code and "make test" in code for code in unrun)
    assert "exec make test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


COLUMNS = [Task.CLASSIFICATION, Task.FEATURES, Task.MASKED_IMAGE_MODELING]


def table_of_models() -> dict[tuple[str, str, Task], set[str]]:
    """The table of the documentation: (model_type, source, task) -> backends."""
    text = (ROOT / "docs" / "reference" / "models.md").read_text(encoding="utf-8")
    lines = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|") and "(`" in line]
    cells: dict[tuple[str, str, Task], set[str]] = {}
    for family, source, *backends in lines:
        model_type = family.partition("(`")[2].partition("`)")[0]
        for task, cell in zip(COLUMNS, backends, strict=True):
            if cell.strip():
                assert (model_type, source.strip(), task) not in cells
                cells[model_type, source.strip(), task] = {name.strip() for name in cell.split(",")}
    return cells


def test_each_cell_of_the_table_of_models_is_held_by_a_test() -> None:
    """The heads of `test_families.py` (as TorchScript: `test_tracing.py`) and `TIMM_GRAPHS` of `test_layouts.py`."""
    tested = {(head.family, "transformers", head.task) for head in HEADS}
    for folder in (ROOT / "tests" / "golden" / "timm" / name for name in TIMM_GRAPHS):
        weights = safetensors.torch.load_file(folder / "model.safetensors")
        config, _ = from_timm(json.loads((folder / "config.json").read_text(encoding="utf-8")), weights)
        tested.add((config["model_type"], "timm", task_of(config)))
    tested |= {("vit", ".npz", task) for task in (Task.CLASSIFICATION, Task.FEATURES)}
    aliases = {(head.family, "transformers", head.task): {"torch"} for head in ALIASES}
    assert table_of_models() == {key: set(CPU_BACKENDS) for key in tested} | aliases
