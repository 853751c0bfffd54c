"""The embedded checkpoint is what its card says, and its held-out images are none that it was trained on."""

from __future__ import annotations

import collections
import hashlib
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray
from PIL import Image

from vitdeploy.assess.data.dataset import open_data
from vitdeploy.assess.data.folder_listing import list_images
from vitdeploy.assess.metrics.accuracy import Accuracy
from vitdeploy.assets import default_checkpoint, held_out_images, train_digits

LABELS = tuple("0123456789")


@pytest.fixture(scope="module")
def files() -> list[tuple[Path, int]]:
    data = open_data(held_out_images(), LABELS)
    return [(held_out_images() / name, int(target)) for name, target in zip(data.names, data.targets, strict=True)]


@pytest.fixture(scope="module")
def card() -> str:
    return (default_checkpoint() / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def accuracy(files: list[tuple[Path, int]]) -> Accuracy:
    """Measured with transformers alone: its processor, its model."""
    processor = transformers.ViTImageProcessorPil.from_pretrained(default_checkpoint())
    model = transformers.ViTForImageClassification.from_pretrained(default_checkpoint()).eval()
    pixel_values = processor([Image.open(path) for path, _ in files], return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        best = model(pixel_values).logits.argmax(dim=1).tolist()
    return Accuracy(sum(index == label for index, (_, label) in zip(best, files, strict=True)), len(files))


def pixels_of(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        assert (image.mode, image.size, image.format) == ("L", (32, 32), "PNG")
        return np.asarray(image)


def size_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_sizes() -> None:
    assert size_bytes(default_checkpoint()) < 2_000_000
    assert size_bytes(held_out_images()) < 400_000


def test_transformers_loads_every_weight() -> None:
    model, info = transformers.ViTForImageClassification.from_pretrained(default_checkpoint(), output_loading_info=True)
    assert not any(info.values()), info
    assert [model.config.id2label[index] for index in range(10)] == list(LABELS)
    assert model.config.label2id == {label: index for index, label in enumerate(LABELS)}
    assert model.config.architectures == ["ViTForImageClassification"]


def test_processor_leaves_a_held_out_image_as_it_is(files: list[tuple[Path, int]]) -> None:
    path = files[0][0]
    processor = transformers.ViTImageProcessorPil.from_pretrained(default_checkpoint())
    got = processor(Image.open(path), return_tensors="np")["pixel_values"]
    expected = np.broadcast_to((pixels_of(path).astype(np.float32) / 255 - 0.5) / 0.5, (1, 3, 32, 32))
    np.testing.assert_allclose(got, expected, atol=1e-6)


def data_of(card: str) -> dict[str, Any]:
    """The card's header, as the Hub reads it."""
    return huggingface_hub.ModelCard(card).data.to_dict()  # type: ignore[no-untyped-call,no-any-return]


def test_accuracy_is_what_was_promised(accuracy: Accuracy) -> None:
    assert accuracy.total == 450
    assert accuracy.value >= 0.97


def test_card_states_the_measured_accuracy(accuracy: Accuracy, card: str) -> None:
    low, high = accuracy.interval
    sentence = (
        f"**Held-out accuracy: {accuracy.value:.2%}** "
        f"(95 % Wilson interval {low:.2%} to {high:.2%}, {accuracy.correct} of {accuracy.total} images)"
    )
    assert sentence in card
    (result,) = data_of(card)["model-index"][0]["results"]
    assert result["metrics"] == [{"type": "accuracy", "value": round(accuracy.value, 4)}]


def test_card_names_licences_source_and_weights(card: str) -> None:
    assert data_of(card)["license"] == "apache-2.0"
    for expected in (
        "CC BY 4.0",
        "10.24432/C50P49",
        "Alpaydin",
        "Kaynak",
        "load_digits",
        "vitdeploy.assets.train_digits",
    ):
        assert expected in card
    weights = (default_checkpoint() / "model.safetensors").read_bytes()
    assert hashlib.sha256(weights).hexdigest() in card
    parameters = sum(np.prod(shape, dtype=int) for shape in shapes(default_checkpoint() / "model.safetensors"))
    assert f"{parameters:,} parameters" in card


def shapes(path: Path) -> list[tuple[int, ...]]:
    from safetensors import safe_open

    with safe_open(path, framework="np") as file:
        return [tuple(file.get_slice(name).get_shape()) for name in file.keys()]  # noqa: SIM118  (not a dict)


def test_held_out_images_are_the_split_of_the_script(files: list[tuple[Path, int]]) -> None:
    pixels, labels = train_digits.digits()
    train, held_out = train_digits.split(labels)
    assert (len(train), len(held_out)) == (1347, 450)
    assert sorted([*train, *held_out]) == list(range(1797))
    assert sorted(int(path.stem) for path, _ in files) == held_out.tolist()
    for path, label in files:
        index = int(path.stem)
        assert labels[index] == label
        np.testing.assert_array_equal(pixels_of(path), pixels[index], err_msg=str(path))


def test_held_out_images_have_every_class_in_its_share(files: list[tuple[Path, int]]) -> None:
    _, labels = train_digits.digits()
    counts = collections.Counter(label for _, label in files)
    for label, total in collections.Counter(labels.tolist()).items():
        assert abs(counts[label] - total * 450 / 1797) < 1


def test_no_training_image_is_held_out(files: list[tuple[Path, int]]) -> None:
    pixels, labels = train_digits.digits()
    train, _ = train_digits.split(labels)
    seen = {pixels[index].tobytes() for index in train}
    held_out = {pixels_of(path).tobytes() for path, _ in files}
    assert len(held_out) == 450
    assert not seen & held_out


def test_augmented_images_keep_their_range() -> None:
    torch.manual_seed(0)
    images = train_digits.augment(torch.ones(8, 1, 32, 32))
    assert images.shape == (8, 1, 32, 32)
    assert images.min() >= 0
    assert images.max() <= 1 + 1e-5


def test_script_writes_the_assets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One epoch instead of all: everything but the weights and the card is what is in the package."""
    monkeypatch.setattr(sys, "argv", ["train_digits", "--epochs", "1", "--output", str(tmp_path)])
    train_digits.main()
    assert re.search(r"^epoch 1/1: loss \d", capsys.readouterr().out, re.MULTILINE)
    checkpoint = tmp_path / default_checkpoint().name
    assert {path.name for path in checkpoint.iterdir()} == {path.name for path in default_checkpoint().iterdir()}
    for name in ("config.json", "preprocessor_config.json"):
        assert (checkpoint / name).read_bytes() == (default_checkpoint() / name).read_bytes()
    written = {path.relative_to(tmp_path / "held-out"): path for path in list_images(tmp_path / "held-out").files}
    for path in list_images(held_out_images()).files:
        np.testing.assert_array_equal(pixels_of(written.pop(path.relative_to(held_out_images()))), pixels_of(path))
    assert not written


def test_assets_import_neither_torch_nor_numpy() -> None:
    code = "import sys, vitdeploy.assets; sys.exit(not {'torch', 'numpy'}.isdisjoint(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
