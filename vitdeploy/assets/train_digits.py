"""Train the embedded default checkpoint on handwritten digits, and write it with its held-out images.

    python -m vitdeploy.assets.train_digits               # the assets of the package; about five minutes of one core
    python -m vitdeploy.assets.train_digits --validate    # no files: the recipe's accuracy on training images set aside

Needs the extras `torch` and `dev` (scikit-learn brings the data). The recipe and its number of epochs are fixed below,
chosen on training images as --validate measures them; the held-out images are looked at once, when all is written.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import platform
import string
import time
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from vitdeploy.assess.metrics.accuracy import Accuracy
from vitdeploy.images.processor import ImageProcessor
from vitdeploy.models.checkpoint import architecture_of, load_model, save_model
from vitdeploy.models.config import ViTConfig
from vitdeploy.models.vit import VisionTransformer
from vitdeploy.specs import Task

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    Pixels = NDArray[np.uint8]
    Indices = NDArray[np.int64]

SIZE = 32  # pixels, down and across
HELD_OUT, VALIDATION = 450, 270  # images
LABELS = tuple("0123456789")
PROCESSOR = ImageProcessor.from_dict(
    {
        "image_processor_type": "ViTImageProcessor",
        "size": {"height": SIZE, "width": SIZE},
        "do_convert_rgb": True,  # the PNG files are gray
    }
)
CONFIG = ViTConfig(
    hidden_size=96,
    num_hidden_layers=5,
    num_attention_heads=3,
    intermediate_size=192,
    hidden_dropout_prob=0.05,
    initializer_range=0.1,  # about hidden_size ** -0.5; with the usual 0.02, such a narrow model starts slowly
    image_size=(SIZE, SIZE),
    patch_size=(4, 4),
    encoder_stride=4,
    labels=LABELS,
)
BATCH_SIZE = 32
PEAK_LEARNING_RATE = 1e-3
WARM_UP_EPOCHS = 5
WEIGHT_DECAY = 0.2
LABEL_SMOOTHING = 0.1


def digits() -> tuple[Pixels, Indices]:
    """All images, enlarged from 8x8 with 17 gray levels, and their labels: (N, 32, 32) and (N,)."""
    data = load_digits()
    levels = np.round(data.images * (255 / 16)).astype(np.uint8)
    large = [np.asarray(Image.fromarray(image).resize((SIZE, SIZE), Image.Resampling.BICUBIC)) for image in levels]
    return np.stack(large), data.target


def split(labels: Indices) -> tuple[Indices, Indices]:
    """Indices of the training images and of the held-out ones, stratified by class; always the same split."""
    train, held_out = train_test_split(np.arange(len(labels)), test_size=HELD_OUT, stratify=labels, random_state=0)
    return np.sort(train), np.sort(held_out)


def augment(images: Tensor) -> Tensor:
    """Rotate, scale, shear and shift every image slightly: (N, 1, H, W) -> (N, 1, H, W)."""
    count = len(images)
    angle, log_x, log_y, shear, shift_x, shift_y = (torch.rand(6, count) * 2 - 1) * torch.tensor(
        [[math.radians(15)], [0.15], [0.15], [0.15], [0.2], [0.2]]
    )
    cos, sin, scale_x, scale_y = angle.cos(), angle.sin(), log_x.exp(), log_y.exp()
    row_x = torch.stack((cos * scale_x, (shear * cos - sin) * scale_y, shift_x), dim=1)  # (N, 3)
    row_y = torch.stack((sin * scale_x, (shear * sin + cos) * scale_y, shift_y), dim=1)
    grid = F.affine_grid(torch.stack((row_x, row_y), dim=1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


def train(
    pixels: Pixels,
    labels: Indices,
    epochs: int,
    seed: int,
    *,
    config: ViTConfig = CONFIG,
    peak_learning_rate: float = PEAK_LEARNING_RATE,
    warm_up_epochs: int = WARM_UP_EPOCHS,
) -> VisionTransformer:
    """Train the model: AdamW with a warm-up and a cosine schedule, on augmented images normalized as by PROCESSOR."""
    torch.manual_seed(seed)
    torch.set_num_threads(1)  # the order of additions, and so the weights, must not depend on the number of cores
    torch.use_deterministic_algorithms(True)
    images, targets = torch.from_numpy(pixels)[:, None] / 255, torch.from_numpy(labels)
    model = VisionTransformer(config, attention="eager")  # on one core slightly faster than fused attention
    model.reset_parameters(seed)
    kernels = [parameter for parameter in model.parameters() if parameter.ndim in (2, 4)]
    others = [parameter for parameter in model.parameters() if parameter.ndim not in (2, 4)]  # biases, norms, tokens
    optimizer = torch.optim.AdamW(
        [{"params": kernels, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}],
        lr=peak_learning_rate,
    )
    steps = math.ceil(len(images) / BATCH_SIZE)
    total = epochs * steps
    warm_up = min(warm_up_epochs * steps, total - 1)

    def share_of_peak(step: int) -> float:
        if step < warm_up:
            return (step + 1) / warm_up
        return 0.5 + 0.5 * math.cos(math.pi * (step - warm_up) / (total - warm_up))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share_of_peak)
    started = time.monotonic()
    for epoch in range(epochs):
        losses = []
        for batch in torch.split(torch.randperm(len(images)), BATCH_SIZE):
            x = (augment(images[batch]) - 0.5) / 0.5
            logits = model(x.expand(-1, 3, -1, -1))["logits"]
            loss = F.cross_entropy(logits, targets[batch], label_smoothing=LABEL_SMOOTHING)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        print(f"epoch {epoch + 1}/{epochs}: loss {np.mean(losses):.3f}, {time.monotonic() - started:.0f} s", flush=True)
    return model.eval().requires_grad_(False)


def accuracy(model: VisionTransformer, batch: NDArray[np.float32], labels: Indices) -> Accuracy:
    """Top-1 accuracy on preprocessed images, (N, 3, 32, 32)."""
    best = model(torch.from_numpy(batch))["logits"].argmax(dim=1).numpy()
    return Accuracy(int((best == labels).sum()), len(labels))


def write_images(folder: Path, pixels: Pixels, labels: Indices, indices: Indices) -> list[Path]:
    """One gray PNG for each of `indices`, as <label>/<index>.png."""
    paths = [folder / LABELS[labels[index]] / f"{index:04}.png" for index in indices]
    for path, index in zip(paths, indices, strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[index]).save(path, optimize=True)
    return paths


def write_checkpoint(folder: Path, model: VisionTransformer) -> None:
    """A Hugging Face folder, without its model card."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"architectures": [architecture_of(model)], "dtype": "float32", **model.config.to_dict()}
    for name, content in (("config.json", config), ("preprocessor_config.json", PROCESSOR.to_dict())):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")
    save_model(model, folder / "model.safetensors")


def model_card(measured: Accuracy, weights: bytes, options: argparse.Namespace) -> str:
    """The README.md of the checkpoint."""
    low, high = measured.interval
    packages = (f"{name} {metadata.version(name)}" for name in ("torch", "numpy", "pillow", "scikit-learn"))
    template = string.Template((Path(__file__).parent / "digits_card.md").read_text(encoding="utf-8"))
    return template.substitute(
        accuracy=f"{measured.value:.4f}",
        percent=f"{measured.value:.2%}",
        interval=f"{low:.2%} to {high:.2%}",
        correct=measured.correct,
        total=measured.total,
        sha256=hashlib.sha256(weights).hexdigest(),
        options=f"--epochs {options.epochs} --seed {options.seed}",
        machine=machine(),
        versions=", ".join((f"Python {platform.python_version()}", *packages)),
    )


def machine() -> str:
    """Kind of this machine, as far as it can change the bits of a result."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    processor = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return " ".join(filter(None, (processor, platform.machine(), torch.backends.cpu.get_cpu_capability())))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument(
        "--seed", type=int, default=0, help="of weights, order, augmentation, dropout; not of the split"
    )
    parser.add_argument("--output", type=Path, default=Path(__file__).parent)
    parser.add_argument("--validate", action="store_true", help="hold back 270 training images, measure, write nothing")
    options = parser.parse_args()

    pixels, labels = digits()
    fit, held_out = split(labels)
    if options.validate:
        fit, validation = train_test_split(fit, test_size=VALIDATION, stratify=labels[fit], random_state=1)
        model = train(pixels[fit], labels[fit], options.epochs, options.seed)
        print(f"validation accuracy: {accuracy(model, PROCESSOR(list(pixels[validation])), labels[validation])}")
        return
    model = train(pixels[fit], labels[fit], options.epochs, options.seed)
    checkpoint = options.output / "vit-tiny-digits"
    write_checkpoint(checkpoint, model)
    paths = write_images(options.output / "held-out", pixels, labels, held_out)
    weights = checkpoint / "model.safetensors"
    # Measured are the written files, not the objects in memory.
    model = load_model(ViTConfig.from_pretrained(checkpoint), [weights], Task.CLASSIFICATION)
    measured = accuracy(model, ImageProcessor.from_pretrained(checkpoint)(paths), labels[held_out])
    (checkpoint / "README.md").write_text(model_card(measured, weights.read_bytes(), options), encoding="utf-8")
    print(f"held-out accuracy: {measured}")


if __name__ == "__main__":
    main()
