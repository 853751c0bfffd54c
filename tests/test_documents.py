"""The commands of the documents run, against a Hub on loopback that serves a small model under the name used there."""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import safetensors.torch
import transformers
from bundles import CPU_BACKENDS
from command_line import Ran, run
from environments import ROOT
from families import HEADS
from hub_server import hub_server, use_hub
from PIL import Image
from sklearn.datasets import load_sample_images

from vitdeploy.models.checkpoint import task_of
from vitdeploy.sources.layouts.timm_layout import from_timm
from vitdeploy.specs import Task

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import WriteCheckpoint

NOT_RUN = "<!-- not run by the tests:"


def run_shell(code: str) -> None:
    """One command a line, but for those that a backslash continues."""
    for command in code.replace("\\\n", "").splitlines():
        result = command_output(command)
        assert (result.code, result.err) == (0, ""), command


def run_console(code: str) -> None:
    """A line after `$` is a command, what follows its output or its error: the same but for numbers."""
    for command, _, expected in (entry.partition("\n") for entry in re.split(r"^\$ ", code, flags=re.MULTILINE)[1:]):
        result = command_output(command)
        assert _words(result.out + result.err) == _words(expected), command
        assert (result.code != 0) == ("Error: " in expected), command


def command_output(command: str) -> Ran:
    """Run a command, of vitdeploy in this process unless it needs a shell."""
    command, _, file = command.partition(" > ")
    program, *arguments = shlex.split(command, comments=True)
    if program == "vitdeploy" and not {"|", "&&", "||"}.intersection(arguments):
        result = run(*arguments)
    else:
        done = subprocess.run(["sh", "-eu", "-c", command], check=False, capture_output=True, text=True)
        result = Ran(done.returncode, done.stdout, done.stderr)
    if file:
        Path(file).write_text(result.out, encoding="utf-8")
    return result


def run_python(code: str) -> None:
    result = subprocess.run([sys.executable, "-W", "error", "-c", code], check=False, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")


def _words(text: str) -> list[str]:
    return re.sub(r"[0-9]+([.,][0-9]+)*|[─━┄-]+", " # ", text).split()


RUN = {"sh": run_shell, "console": run_console, "python": run_python}


class Block(NamedTuple):
    """A fenced block of code, and whether the document says that it is not run."""

    language: str
    code: str
    runs: bool


def blocks(document: Path) -> list[Block]:
    text = document.read_text(encoding="utf-8")
    fences = re.finditer(r"(?P<before>[^\n]*)\n *```(?P<language>\w+)\n(?P<code>.*?)\n *```", text, re.DOTALL)
    return [
        Block(fence["language"], textwrap.dedent(fence["code"]) + "\n", NOT_RUN not in fence["before"])
        for fence in fences
    ]


DOCUMENTS = {
    path.relative_to(ROOT).as_posix(): [block for block in blocks(path) if block.runs and block.language in RUN]
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
}


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory, write_checkpoint: WriteCheckpoint) -> Iterator[str]:
    """The address of a Hub that has the documents' models."""
    labels = "cat", "dog", *map(str, range(14))
    config: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
                              "intermediate_size": 48, "image_size": 224, "patch_size": 32,
                              "id2label": dict(enumerate(labels)),
                              "label2id": {label: number for number, label in enumerate(labels)}}  # fmt: skip
    checkpoint = write_checkpoint(Task.CLASSIFICATION, config)
    transformers.ViTImageProcessorPil().save_pretrained(checkpoint.folder)
    names = ("google/vit-base-patch16-224", "google/vit-base-patch16-384")
    with hub_server(dict.fromkeys(names, checkpoint.folder)) as server:
        yield server.url


def add_images(folder: Path) -> None:
    """cat.jpg, a folder of `photos`, and a labelled data set, `validation`."""
    for name in ("photos", "validation/cat", "validation/dog"):
        (folder / name).mkdir(parents=True)
    names = ["photos/a.jpg", "photos/b.jpg", "cat.jpg", "validation/cat/a.jpg", "validation/dog/b.jpg"]
    for name, pixels in zip(names, itertools.cycle(load_sample_images().images), strict=False):
        Image.fromarray(pixels).reduce(4).save(folder / name)  # `benchmark` decodes and resizes them a thousand times


@pytest.mark.parametrize("document", [name for name, blocks in DOCUMENTS.items() if blocks])
def test_the_commands_of_a_document(document: str, hub: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They run in the document's order, in a folder with images: a later one uses what an earlier one made."""
    monkeypatch.chdir(tmp_path)
    add_images(tmp_path)
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    use_hub(hub, tmp_path / "hub", monkeypatch)
    monkeypatch.setattr("vitdeploy.assess.benchmark.benchmark._SYNTHETIC_SIZE", (48, 64))
    for block in DOCUMENTS[document]:
        RUN[block.language](block.code)


def test_the_two_commands_are_what_ci_runs() -> None:
    unrun = [block.code for block in blocks(ROOT / "README.md") if not block.runs]
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
    """What `test_families.py` and `test_layouts.py` run on every backend, and nothing else."""
    tested = {(head.family, "transformers", head.task) for head in HEADS}
    for folder in (ROOT / "tests" / "golden" / "timm").glob("*/config.json"):
        weights = safetensors.torch.load_file(folder.with_name("model.safetensors"))
        config, _ = from_timm(json.loads(folder.read_text(encoding="utf-8")), weights)
        tested.add((config["model_type"], "timm", task_of(config)))
    tested |= {("vit", ".npz", task) for task in (Task.CLASSIFICATION, Task.FEATURES)}
    assert table_of_models() == {key: set(CPU_BACKENDS) for key in tested}
