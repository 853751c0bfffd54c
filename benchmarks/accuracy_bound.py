"""int8 of a ViT-S with outliers: as it is usually made, and within an accuracy bound.

A ViT-S (12 layers of 384 channels) is trained on handwritten digits, in minutes, and four channels of each activation
that a LayerNormalization or the values of an attention give are scaled by 30, the weights behind them by 1/30: it
computes what it did. What is compared is the best class of each of the 450 held-out images with the reference's.
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from common import parser, record
from quantize_peers import onnxruntime as quantize_as_onnxruntime

import vitdeploy
from vitdeploy.assets import held_out_images, train_digits

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from outliers import with_outliers

FACTOR = 30
MIN_AGREEMENT = 0.99
CONFIG = dataclasses.replace(
    train_digits.CONFIG,
    hidden_size=384,
    num_hidden_layers=12,
    num_attention_heads=6,
    intermediate_size=1536,
    patch_size=(8, 8),
    encoder_stride=8,
    initializer_range=0.02,
)
NAIVE: dict[str, Any] = {"calibration": "minmax", "smooth_quant": "off"}
BOUND: dict[str, Any] = {"min_agreement": MIN_AGREEMENT}
WAYS: dict[str, dict[str, Any]] = {
    "int8, minmax, no smoothing": NAIVE,
    "int8": {},
    f"int8, min_agreement {MIN_AGREEMENT}": BOUND,
    f"int8, minmax, no smoothing, min_agreement {MIN_AGREEMENT}": NAIVE | BOUND,
}
PEER_IMAGES = 64  # onnxruntime's calibrator holds every activation of all of them


def main() -> None:
    arguments_parser = parser(__doc__)
    arguments_parser.add_argument("--epochs", type=int, default=6, help="of training")
    arguments = arguments_parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        record(arguments, measure(Path(folder), arguments.epochs))


def measure(folder: Path, epochs: int) -> dict[str, Any]:
    pixels, labels = train_digits.digits()
    fit, held_out = train_digits.split(labels)
    model = train_digits.train(
        pixels[fit], labels[fit], epochs, seed=0, config=CONFIG, peak_learning_rate=3e-4, warm_up_epochs=2
    )
    train_digits.write_checkpoint(folder / "plain", model)
    accuracy = train_digits.accuracy(model, train_digits.PROCESSOR(list(pixels[held_out])), labels[held_out])
    checkpoint = with_outliers(folder / "plain", folder / "checkpoint", FACTOR)
    found = {"onnxruntime quantize_static, its defaults": _peer(checkpoint, folder / "peer")}
    for name, options in WAYS.items():
        found[name] = _ours(checkpoint, folder / name, options)
    return {"epochs": epochs, "accuracy": accuracy.to_dict(), "ways": found}


def _peer(checkpoint: Path, folder: Path) -> dict[str, Any]:
    bundle = vitdeploy.export(checkpoint, output=folder)
    with vitdeploy.load(folder) as predictor:
        images = predictor.processor(sorted(held_out_images().rglob("*.png")))
        expected = predictor.runtime.run({"pixel_values": images})["logits"]
    model, quantized = bundle.path / "onnx" / "model.onnx", folder / "quantized.onnx"
    start = time.perf_counter()
    every = len(images) // PEER_IMAGES
    quantize_as_onnxruntime(model, list(images[::every, None]), quantized)
    seconds = time.perf_counter() - start
    session = ort.InferenceSession(quantized, providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"pixel_values": images})
    agreement = float((np.argmax(logits, axis=1) == np.argmax(expected, axis=1)).mean())
    return {"agreement": agreement, "float32_layers": [], "layers": None, "runs": 0, "seconds": seconds}


def _ours(checkpoint: Path, folder: Path, options: dict[str, Any]) -> dict[str, Any]:
    start = time.perf_counter()
    bundle = vitdeploy.export(
        checkpoint,
        precision="int8",
        calibration_data=held_out_images(),
        calibration_cache=False,
        tolerance=10,  # the bound, or nothing, is to decide
        output=folder,
        **options,
    )
    artifact = bundle.artifact("onnx", "int8")
    (agreement,) = artifact.validation["calibration_images"]
    kept = artifact.validation.get("kept_layers", [])
    return {
        "agreement": agreement["top1_agreement"],
        "float32_layers": kept,
        "layers": len(kept) + artifact.options["quantized_nodes"],
        "smooth_quant": artifact.options.get("smooth_quant"),
        "runs": artifact.validation.get("runs", 0),
        "seconds": time.perf_counter() - start,
    }


if __name__ == "__main__":
    main()
