"""The README's own commands run, against a Hub on loopback that serves a small model under the name used there."""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import safetensors.torch
import transformers
from bundles import CPU_BACKENDS
from command_line import run
from environments import ROOT
from families import HEADS
from hub_server import hub_server
from PIL import Image
from sklearn.datasets import load_sample_images

from vitdeploy.models.checkpoint import task_of
from vitdeploy.sources.layouts.timm_layout import from_timm
from vitdeploy.specs import Task

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import WriteCheckpoint

NOT_RUN = "<!-- not run by the tests:"


class Block(NamedTuple):
    """A fenced block of code, and whether the README says that it is not run."""

    language: str
    code: str
    runs: bool


def blocks() -> list[Block]:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.finditer(r"(?P<before>[^\n]*)\n```(?P<language>\w+)\n(?P<code>.*?)```", text, re.DOTALL)
    return [Block(match["language"], match["code"], not match["before"].startswith(NOT_RUN)) for match in found]


@pytest.fixture(scope="module")
def workplace(
    tmp_path_factory: pytest.TempPathFactory, write_checkpoint: WriteCheckpoint
) -> Iterator[tuple[Path, dict[str, str]]]:
    """A folder with the README's images, and an environment in which its model can be downloaded."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "photos").mkdir()
    for label in ("cat", "dog"):
        (folder / "validation" / label).mkdir(parents=True)
    names = ["photos/a.jpg", "photos/b.jpg", "cat.jpg", "validation/cat/a.jpg", "validation/dog/b.jpg"]
    for name, pixels in zip(names, itertools.cycle(load_sample_images().images), strict=False):
        Image.fromarray(pixels).reduce(4).save(folder / name)  # `benchmark` decodes and resizes them a thousand times
    labels = dict(enumerate(["cat", "dog", *map(str, range(14))]))
    config: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
                              "intermediate_size": 48, "image_size": 224, "patch_size": 32,
                              "id2label": labels, "label2id": {labels[index]: index for index in labels}}  # fmt: skip
    checkpoint = write_checkpoint(Task.CLASSIFICATION, config)
    transformers.ViTImageProcessorPil().save_pretrained(checkpoint.folder)
    names = ("google/vit-base-patch16-224", "google/vit-base-patch16-384")
    with hub_server(dict.fromkeys(names, checkpoint.folder)) as hub:
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        yield folder, {"PATH": path, "HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "hub"), "HF_HUB_OFFLINE": "0"}


BLOCKS = [block for block in blocks() if block.runs]


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.code.split("\n")[0])
def test_block(
    block: Block,
    workplace: tuple[Path, dict[str, str]],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Blocks run in the README's order, in one folder: a later one uses what an earlier one made.

    Python and `verify` run in processes of their own, the other commands in this one.
    """
    folder, variables = workplace
    monkeypatch.chdir(folder)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", variables["HF_ENDPOINT"])
    template = variables["HF_ENDPOINT"] + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder / "hub" / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("vitdeploy.assess.benchmark.benchmark._SYNTHETIC_SIZE", (48, 64))
    if block.language == "python":
        subprocess.run([sys.executable, "-W", "error", "-c", block.code], check=True)
    for line in block.code.splitlines() if block.language == "sh" else []:
        command, _, file = line.partition(" > ")
        program, *arguments = shlex.split(command)
        if arguments[0] == "verify":
            subprocess.run([program, *arguments], check=True)
            continue
        found = run(*arguments)
        assert (program, found.code, found.err) == ("vitdeploy", 0, "")
        if file:
            Path(file).write_text(found.out, encoding="utf-8")
    assert capfd.readouterr().err == ""


def test_the_two_commands_are_what_ci_runs() -> None:
    unrun = [block.code for block in blocks() if not block.runs]
    assert "make test" in unrun[0]
    assert "make demo" in unrun[0]
    assert "exec make test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


COLUMNS = [Task.CLASSIFICATION, Task.FEATURES, Task.MASKED_IMAGE_MODELING]


def table_of_models() -> dict[tuple[str, str, Task], set[str]]:
    """The README's table: (model_type, source, task) -> backends."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
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
    """What `test_families.py` and `test_layouts.py` run on every backend, and nothing else."""
    tested = {(head.family, "transformers", head.task) for head in HEADS}
    for folder in (ROOT / "tests" / "golden" / "timm").glob("*/config.json"):
        weights = safetensors.torch.load_file(folder.with_name("model.safetensors"))
        config, _ = from_timm(json.loads(folder.read_text(encoding="utf-8")), weights)
        tested.add((config["model_type"], "timm", task_of(config)))
    tested |= {("vit", ".npz", task) for task in (Task.CLASSIFICATION, Task.FEATURES)}
    assert table_of_models() == {key: set(CPU_BACKENDS) for key in tested}
