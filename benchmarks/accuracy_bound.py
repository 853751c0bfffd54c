"""int8 of a ViT-S with outliers: with default options, and within an accuracy bound.

A ViT-S (12 layers of 384 channels) is trained on handwritten digits, in minutes. Then four channels of each
LayerNormalization's and each attention value's activation are scaled by 30, and the following weights by 1/30, which
does not change the computation. Ranges, and the layers that stay in float32, are found on 512 of the training images.
Compared with the reference are the top-1 classes of these and of the 450 held-out images.
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from common import parser, record
from quantize_peers import onnxruntime as quantize_as_onnxruntime

import vitdeploy
from vitdeploy.assets import held_out_images, train_digits
from vitdeploy.runtimes import open_runtime
from vitdeploy.runtimes.onnxrt.runtime import OnnxRuntime

if TYPE_CHECKING:
    from vitdeploy.bundle.bundle import Bundle
    from vitdeploy.runtimes.base import Runtime

sys.path.append(str(Path(__file__).parents[1] / "tests" / "support"))
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
NAIVE: dict[str, Any] = {"method": "minmax", "smooth_quant": "off"}
BOUND: dict[str, Any] = {"accuracy": vitdeploy.MinAgreement(MIN_AGREEMENT)}
WAYS: dict[str, dict[str, Any]] = {
    "int8, minmax, no smoothing": NAIVE,
    "int8": {},
    f"int8, min_agreement {MIN_AGREEMENT}": BOUND,
    f"int8, minmax, no smoothing, min_agreement {MIN_AGREEMENT}": NAIVE | BOUND,
}
PEER_IMAGES = 64  # onnxruntime's calibrator keeps all activations of all of them


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
    seen = folder / "seen"
    train_digits.write_images(seen, pixels, labels, fit)
    accuracy = train_digits.accuracy(model, train_digits.PROCESSOR(list(pixels[held_out])), labels[held_out])
    checkpoint = with_outliers(folder / "plain", folder / "checkpoint", FACTOR)
    found = {"onnxruntime quantize_static, its defaults": _peer(checkpoint, seen, folder / "peer")}
    for name, options in WAYS.items():
        found[name] = _ours(checkpoint, seen, folder / name, options)
    return {"epochs": epochs, "accuracy": accuracy.to_dict(), "ways": found}


def _peer(checkpoint: Path, seen: Path, folder: Path) -> dict[str, Any]:
    bundle = vitdeploy.export(checkpoint, output=folder)
    images = sorted(seen.rglob("*.png"))
    with vitdeploy.load(folder) as predictor:
        pixel_values = predictor.processor(images[:: len(images) // PEER_IMAGES])
    start = time.perf_counter()
    quantized = folder / "quantized.onnx"
    quantize_as_onnxruntime(bundle.path / "onnx" / "model.onnx", list(pixel_values[:, None]), quantized)
    seconds = time.perf_counter() - start
    with OnnxRuntime(quantized) as runtime:
        agreement = _agreement(bundle, runtime)
    return {"agreement": agreement, "agreement_seen": None, "float32_layers": [], "layers": None, "seconds": seconds}


def _ours(checkpoint: Path, seen: Path, folder: Path, options: dict[str, Any]) -> dict[str, Any]:
    settings = dict(options)
    calibration = vitdeploy.Calibration(seen, settings.pop("method", "auto"), cache=False)
    start = time.perf_counter()
    bundle = vitdeploy.export(
        checkpoint,
        precision="int8",
        output=folder,
        quantization=vitdeploy.Quantization(calibration, **settings),
        validation=vitdeploy.ValidationOptions(tolerance=None if "accuracy" in options else 10),
    )
    seconds = time.perf_counter() - start
    artifact = bundle.artifact("onnx", "int8")
    kept = artifact.validation.get("kept_layers", [])
    with open_runtime(bundle, "onnxruntime", precision="int8") as runtime:
        agreement = _agreement(bundle, runtime)
    return {
        "agreement": agreement,
        "agreement_seen": artifact.validation["calibration_images"][0]["top1_agreement"],
        "float32_layers": kept,
        "layers": len(kept) + artifact.options["quantized_nodes"],
        "smooth_quant": artifact.options.get("smooth_quant"),
        "runs": artifact.validation.get("runs", 0),
        "seconds": seconds,
    }


def _agreement(bundle: Bundle, artifact: Runtime) -> float:
    """Share of held-out images with the reference's top-1 class."""
    with vitdeploy.load(bundle.path, backend="torch") as predictor:
        feeds = {"pixel_values": predictor.processor(sorted(held_out_images().rglob("*.png")))}
        best = [np.argmax(runtime.run(feeds)["logits"], axis=1) for runtime in (predictor.runtime, artifact)]
    return float((best[0] == best[1]).mean())


if __name__ == "__main__":
    main()
