"""Models and artifacts for the GPU scripts: made once, beside the steps, by one process that does not see the GPU.

Engines are then built without being compared here with the reference on the CPU at their largest batch, which takes
longer than the build; the agreement on the GPU is measured by the steps.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import functools
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import vitdeploy
from gpu.rows import CannotRunError, Ledger, Row
from vitdeploy import EngineOptions, GraphOptions, SourceOptions
from vitdeploy.assets import default_checkpoint, held_out_images
from vitdeploy.specs import AxisRange, Precision

if TYPE_CHECKING:
    from vitdeploy.bundle.bundle import Bundle

EMBEDDED, VIT_B = "embedded", "vit-base-patch16-224"
OPSET_18 = (
    "+opset18"  # after a model's name: its graphs in that opset, should a provider lack an operator of the default
)
RTX = "tensorrt-rtx"
BATCH = AxisRange(1, 32, 256)  # of every engine: one serves the agreement and the latency
QUANTIZED = (Precision.INT8, Precision.FP8)
IMAGES = vitdeploy.Quantization(vitdeploy.Calibration(held_out_images(), count=2, cache=False))
LIMIT_S = 120.0  # of one artifact

_BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "image_size": 224}
# The published sizes of each family's base model, at 224 x 224 pixels.
CONFIGS: dict[str, dict[str, Any]] = {
    "dinov2-base": {**_BASE, "model_type": "dinov2", "architectures": ["Dinov2Model"], "mlp_ratio": 4,
                    "patch_size": 14},
    "dinov3-vitb16": {**_BASE, "model_type": "dinov3_vit", "architectures": ["DINOv3ViTModel"],
                      "intermediate_size": 3072, "patch_size": 16, "num_register_tokens": 4},
    "siglip2-base": {**_BASE, "model_type": "siglip_vision_model", "architectures": ["SiglipVisionModel"],
                     "intermediate_size": 3072, "patch_size": 16},
    "perception-encoder-base": {
        **_BASE, "model_type": "timm_perception_encoder", "architectures": ["TimmPerceptionEncoderModel"],
        "intermediate_size": 3072, "patch_size": 16, "pooling": "attention", "pooler_attention_heads": 8,
        "pooler_intermediate_size": 3072, "projection_size": 1024,
        "rotary": {"coordinates": "index", "theta": 10000.0, "pairs": "neighbors", "reference_grid": [14, 14],
                   "offset": 1.0, "columns_first": True},
    },
}  # fmt: skip
# In the order in which the steps need them; the first step needs the references alone.
ARTIFACTS = tuple(
    dict.fromkeys((
        *((model, "onnx", "fp16") for model in (EMBEDDED, VIT_B)),
        *((EMBEDDED, to, precision) for precision in ("fp16", "fp32", "bf16") for to in ("onnx", RTX)),
        *((VIT_B, to, precision) for precision in ("fp16", "fp32", "bf16") for to in ("onnx", RTX)),
        *((f"{model}{OPSET_18}", "onnx", "fp16") for model in (EMBEDDED, VIT_B)),
        *((model, to, "fp16") for model in CONFIGS for to in ("onnx", RTX)),
        *((VIT_B, RTX, precision) for precision in QUANTIZED),
    ))
)  # fmt: skip


def artifact(bundles: Path, model: str, to: str, precision: str) -> Bundle:
    """The bundle of a model that has this artifact; waits for the process that makes them, or makes it here.

    Args:
        bundles: Folder of the models.
        model: EMBEDDED, a name of CONFIGS, or a preset with random weights; may end in OPSET_18.
        to: Artifact format.

    Raises:
        CannotRunError: If the format's library is missing.
        RuntimeError: If the artifact could not be made.
    """
    name, file = f"{model} {to} {precision}", bundles / "models.json"
    while True:
        attempts: dict[str, Row] = json.loads(file.read_text(encoding="utf-8"))["attempts"] if file.exists() else {}
        result = attempts.get(name, {"result": "begun"})
        if result["result"] == "passed":
            return vitdeploy.Bundle.open(bundles / model)
        if result["result"] == "skipped":
            raise CannotRunError(result["reason"])
        if result["result"] == "failed":
            raise RuntimeError(f"the artifact could not be made: {result['reason']}")
        with _alone(bundles, wait=False) as alone:
            if alone:
                Ledger(file, {}).attempt(name, LIMIT_S, lambda: _make(bundles, model, to, precision))
        if not alone:
            time.sleep(0.2)


def _make(bundles: Path, model: str, to: str, precision: str) -> Iterator[Row]:
    start = time.monotonic()
    name = model.removesuffix(OPSET_18)
    vitdeploy.export(
        _checkpoint(bundles, name),
        to=to,
        precision=precision,
        output=bundles / model,
        engine=EngineOptions(batch=(BATCH,)) if to != "onnx" else None,
        source=SourceOptions(random_weights=name if name not in (EMBEDDED, *CONFIGS) else None),
        graph=GraphOptions(opset=18 if name != model else None),
        quantization=IMAGES if precision in QUANTIZED else None,
    )
    yield {"artifact": f"{model} {to} {precision}", "seconds": round(time.monotonic() - start, 1)}


def _checkpoint(bundles: Path, model: str) -> Path | None:
    """Folder with the checkpoint of a model; None for a preset."""
    if model == EMBEDDED:
        return default_checkpoint()
    if model not in CONFIGS:
        return None
    from vitdeploy.models.checkpoint import save_model
    from vitdeploy.models.config import ViTConfig
    from vitdeploy.models.presets import random_model
    from vitdeploy.specs import Task

    folder = bundles / "checkpoints" / model
    if not (folder / "preprocessor_config.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        config = CONFIGS[model]
        save_model(random_model(ViTConfig.from_dict(config), Task.FEATURES), folder / "model.safetensors")
        processor = {"image_processor_type": "ViTImageProcessor", "size": {"height": 224, "width": 224},
                     "do_resize": True, "do_rescale": True, "do_normalize": True, "rescale_factor": 1 / 255,
                     "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 2}  # fmt: skip
        for name, content in (("config", config), ("preprocessor_config", processor)):
            (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


@contextlib.contextmanager
def _alone(bundles: Path, *, wait: bool) -> Iterator[bool]:
    """True in this block if no other process makes artifacts."""
    bundles.mkdir(parents=True, exist_ok=True)
    with (bundles / "models.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--bundles", type=Path, required=True, help="folder of the models")
    arguments = options.parse_args()
    with _alone(arguments.bundles, wait=True):
        ledger = Ledger(arguments.bundles / "models.json", {})
        works = {" ".join(each): functools.partial(_make, arguments.bundles, *each) for each in ARTIFACTS}
        ledger.attempt_each(works, LIMIT_S)
        code = ledger.exit_code()
    raise SystemExit(code)


if __name__ == "__main__":
    main()
