"""The documents: their commands, as a reader would paste them, and the images that they name."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import re
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import huggingface_hub.constants
import torch
import transformers
from command_line import Ran, run
from hub_server import Hub, hub_server
from PIL import Image
from two_towers import write_clip

from vitdeploy.specs import Task

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from conftest import WriteCheckpoint

HUB = "https://huggingface.co"
NOT_RUN = "<!-- not run by the tests"


def run_shell(code: str) -> str:
    """One command a line, but for those that a backslash continues; the output of the last one."""
    for command in commands(code):
        result = command_output(command)
        assert (result.code, result.err) == (0, ""), command
    return result.out


def run_console(code: str) -> None:
    """A line after `$` is a command, what follows its output or its error: the same but for numbers."""
    for command, _, expected in (entry.partition("\n") for entry in re.split(r"^\$ ", code, flags=re.MULTILINE)[1:]):
        result = command_output(command)
        assert _words(_as_printed(result.out + result.err)) == _words(expected), command
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
        result = result._replace(out="")
    return result


def run_python(code: str) -> None:
    result = subprocess.run([sys.executable, "-W", "error", "-c", code], check=False, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")


def _as_printed(text: str) -> str:
    """What a reader sees, whose Hub is the real one, and whose working directory is `/home/me`."""
    return text.replace(huggingface_hub.constants.ENDPOINT, HUB).replace(str(Path.cwd()), "/home/me")


def _words(text: str) -> list[str]:
    return re.sub(r"[0-9a-f]{40}|[0-9]+([.,][0-9]+)*|[─━┄-]+", " # ", text).split()


RUN = {"sh": run_shell, "console": run_console, "python": run_python}


class Block(NamedTuple):
    """A fenced block of code, and whether the document says that it is not run."""

    language: str
    code: str
    runs: bool


def commands(code: str) -> list[str]:
    return code.replace("\\\n", "").splitlines()


def section(document: Path, heading: str) -> str:
    """The text from a heading to the next one."""
    _, text = document.read_text(encoding="utf-8").split(f"\n## {heading}\n")
    return text.partition("\n## ")[0]


def blocks(text: str) -> list[Block]:
    fences = re.finditer(r"(?P<before>[^\n]*)\n *```(?P<language>\w+)\n(?P<code>.*?)\n *```", text, re.DOTALL)
    return [
        Block(fence["language"], textwrap.dedent(fence["code"]) + "\n", NOT_RUN not in fence["before"])
        for fence in fences
    ]


@contextlib.contextmanager
def documents_hub(write_checkpoint: WriteCheckpoint, others: Mapping[str, Path]) -> Iterator[Hub]:
    """A Hub with the models of the documents, which are one small model, and `others` by their names."""
    labels = "cat", "dog", *map(str, range(14))
    config: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
                              "intermediate_size": 48, "image_size": 224, "patch_size": 32,
                              "id2label": dict(enumerate(labels)),
                              "label2id": {label: number for number, label in enumerate(labels)}}  # fmt: skip
    folder = write_checkpoint(Task.CLASSIFICATION, config).folder
    transformers.ViTImageProcessorPil().save_pretrained(folder)
    names = ("google/vit-base-patch16-224", "google/vit-base-patch16-384", "my-team/gated-vit")
    clip = folder / "clip"
    write_clip(clip)
    with hub_server({**dict.fromkeys(names, folder), "openai/clip-vit-base-patch32": clip, **others}) as hub:
        hub.gated.add("my-team/gated-vit")
        hub.add_commit("microsoft/swin-tiny-patch4-window7-224", {"config.json": b'{"model_type": "swin"}'})
        yield hub


def add_checkpoint(folder: Path, hub: Hub) -> None:
    """my-model/checkpoint-500, a fine-tuned model of the documents, and no image processor."""
    name = "google/vit-base-patch16-224"
    target = folder / "my-model" / "checkpoint-500"
    target.mkdir(parents=True)
    for file in ("config.json", "model.safetensors"):
        (target / file).write_bytes(hub.files(name, str(hub.commit(name, "main")))[file])


def add_weights(folder: Path) -> None:
    """model_best.pth.tar, the output of a training by timm's train.py, and the names of its classes."""
    with torch.serialization.safe_globals([argparse.Namespace]):
        content = torch.load(Path(__file__).parents[1] / "golden" / "weights" / "timm.pth.tar")
    del content["state_dict_ema"]
    torch.save(content, folder / "model_best.pth.tar")
    (folder / "names.txt").write_text("cat\ndog\ncow\n", encoding="utf-8")


def add_images(folder: Path) -> None:
    """cat.jpg, a folder of `photos`, and a labelled data set, `validation`."""
    for name in ("photos", "validation/cat", "validation/dog", "gallery/cat", "gallery/dog"):
        (folder / name).mkdir(parents=True)
    names = ["photos/a.jpg", "photos/b.jpg", "cat.jpg", "validation/cat/a.jpg", "validation/dog/b.jpg",
             "gallery/cat/c.jpg", "gallery/dog/d.jpg"]  # fmt: skip
    from sklearn.datasets import load_sample_images  # here, because a GPU machine need not have it

    for name, pixels in zip(names, itertools.cycle(load_sample_images().images), strict=False):
        Image.fromarray(pixels).reduce(4).save(folder / name)  # `benchmark` decodes and resizes them a thousand times
