"""People's first five minutes: from what they have to a first prediction, with what the page says and nothing else.

A clone is in `cli/test_demo.py`, an installed wheel in `test_packaging.py`, a model on the Hub in `test_documents.py`.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
import transformers
from command_line import run
from documents import add_images, blocks, commands, documents_hub, run_shell, section
from engine_machines import gpu_marks, why_not
from environments import ROOT
from families import TINY
from hub_server import use_hub
from npz_files import NPZ_CONFIG, write_npz
from processors import write_processor

from vitdeploy.specs import Task

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import WriteCheckpoint

GOLDEN = ROOT / "tests" / "golden"
DOCS = ROOT / "docs"
YOUR_MODEL = section(DOCS / "quickstart.md", "Your model")
MODELS = dict(re.findall(r"^\| (.+?) \| `--model (\S+)`", YOUR_MODEL, re.MULTILINE))
ON_THE_HUB, ANY_MODEL = "google/vit-base-patch16-224", blocks(YOUR_MODEL)[0].code
TIMM = next(model for model in MODELS.values() if model.startswith("timm/"))


@pytest.fixture(scope="module")
def hub(write_checkpoint: WriteCheckpoint) -> Iterator[str]:
    with documents_hub(write_checkpoint, {TIMM: GOLDEN / "timm" / "vit_2"}) as server:
        yield server.url


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with an image to try."""
    monkeypatch.chdir(tmp_path)
    add_images(tmp_path)
    return tmp_path


def best_label(printed: str, image: str) -> str:
    """The label in `predict`'s first line for an image."""
    (label,) = re.findall(rf"^{re.escape(image)}  +(\S.*?)  +[01]\.[0-9]+$", printed, re.MULTILINE)
    return str(label)


def train(write_checkpoint: WriteCheckpoint, folder: Path) -> str:
    """Write what `Trainer` leaves in a checkpoint, and return what transformers' model says of cat.jpg."""
    config = TINY | {"image_size": 224, "patch_size": 32}
    model = write_checkpoint(Task.CLASSIFICATION, config, processor=False).peer
    resize = transformers.ViTImageProcessorPil()
    model.save_pretrained(folder)
    resize.save_pretrained(folder)
    optimizer = torch.optim.AdamW(model.parameters())
    torch.save(optimizer.state_dict(), folder / "optimizer.pt")
    torch.save(torch.optim.lr_scheduler.StepLR(optimizer, 1).state_dict(), folder / "scheduler.pt")
    torch.save({"cpu": torch.get_rng_state()}, folder / "rng_state.pth")
    torch.save({"output_dir": str(folder.parent)}, folder / "training_args.bin")
    (folder / "trainer_state.json").write_text('{"global_step": 500}')
    pixels = resize([transformers.image_utils.load_image("cat.jpg")], return_tensors="pt")
    return str(model.config.id2label[int(model(**pixels).logits.argmax())])


def test_the_page_has_the_models_that_are_tried() -> None:
    assert {ON_THE_HUB, TIMM, "./my-model/checkpoint-500", "./adapter", "ViT-B_16.npz"} == set(MODELS.values())
    assert f"--model {ON_THE_HUB} " in ANY_MODEL


def first_prediction(model: str) -> str:
    return best_label(run_shell(ANY_MODEL.replace(f"--model {ON_THE_HUB} ", f"--model {model} ")), "cat.jpg")


def test_a_timm_name(hub: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_hub(hub, folder / "hub", monkeypatch)
    config = json.loads((GOLDEN / "timm" / "vit_2" / "config.json").read_text())
    assert first_prediction(TIMM).removeprefix("class ") in config["label_names"]


def test_the_folder_of_a_fine_tuned_model(write_checkpoint: WriteCheckpoint, folder: Path) -> None:
    want = train(write_checkpoint, folder / "my-model" / "checkpoint-500")
    assert first_prediction("./my-model/checkpoint-500") == want


def test_an_adapter(folder: Path) -> None:
    for name in ("adapter", "base"):
        shutil.copytree(GOLDEN / "peft" / "plain" / name, folder / name)
    write_processor(folder / "base", (8, 8))
    assert first_prediction("./adapter") in json.loads((folder / "base" / "config.json").read_text())["label2id"]


def test_googles_weights(write_checkpoint: WriteCheckpoint, folder: Path) -> None:
    write_npz(folder / "ViT-B_16.npz", write_checkpoint(Task.CLASSIFICATION, TINY | NPZ_CONFIG).peer)
    assert first_prediction("ViT-B_16.npz").startswith("LABEL_")


@pytest.fixture(scope="module")
def engine(hub: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the page has made on the machine without a GPU, ready to be copied."""
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx has no wheel for this platform")
    folder = tmp_path_factory.mktemp("build-machine")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        use_hub(hub, folder / "hub", patch)
        run_shell(TO_THE_GPU[0].code)
    return folder / "vit-engine"


TO_THE_GPU = blocks(section(DOCS / "guides" / "engines.md", "From the build machine to the GPU machine"))
ON_THE_GPU = [line for block in TO_THE_GPU[1:3] for line in commands(block.code)]


@pytest.mark.skipif(why_not("tensorrt-rtx") is None, reason="a GPU is here")
@pytest.mark.parametrize("command", ON_THE_GPU)
def test_a_gpu_box_without_its_gpu(engine: Path, folder: Path, command: str) -> None:
    """The engine arrives whole, and each command says that there is no GPU; none takes another backend."""
    shutil.copytree(engine, folder / "vit-engine")
    result = run(*command.split()[1:])
    assert result.code == (0 if command == "vitdeploy doctor" else 3), result.err


@pytest.mark.parametrize("commands", [pytest.param(ON_THE_GPU, marks=gpu_marks("tensorrt-rtx"))], ids=["tensorrt-rtx"])
def test_a_gpu_box(engine: Path, folder: Path, commands: list[str]) -> None:
    shutil.copytree(engine, folder / "vit-engine")
    for command in commands:
        printed = run_shell(command)
        if " predict " in command:
            assert best_label(printed, "cat.jpg")
