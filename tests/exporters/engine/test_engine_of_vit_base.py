"""The headline command's model, built by TensorRT-RTX without a GPU in every precision, with free batch and size.

In two of its layers: they are all alike.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from bundles import write_checkpoint_of

import vitdeploy
from vitdeploy import Calibration, GraphOptions, Quantization
from vitdeploy.assets import held_out_images
from vitdeploy.models.presets import preset_config, random_model
from vitdeploy.specs import AxisRange

pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx has no wheel for this platform")

IMAGES = Quantization(Calibration(held_out_images(), count=2, cache=False))


@pytest.mark.parametrize(
    ("precision", "weight_bytes"), [("fp16", 2), ("fp32", 4), ("bf16", 2), ("int8", 1), ("fp8", 1)]
)
def test_vit_base(tmp_path: Path, precision: str, weight_bytes: int) -> None:
    model = random_model(dataclasses.replace(preset_config("vit-base-patch16-224"), num_hidden_layers=2))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    bundle = vitdeploy.export(
        write_checkpoint_of(model, tmp_path / "checkpoint"),
        to="tensorrt-rtx",
        precision=precision,
        output=tmp_path / "out",
        graph=GraphOptions(image_size=((112, 112), (224, 224), (384, 384))),
        quantization=IMAGES if weight_bytes == 1 else None,
    )
    onnx, engine = bundle.manifest.artifacts
    sizes = AxisRange(112, 224, 384)
    assert engine.axes == {"batch": AxisRange(1, 8, 32), "height": sizes, "width": sizes}
    assert engine.outputs == onnx.outputs
    assert engine.options["onnx_sha256"] == [file.sha256 for file in onnx.files]
    # Weights of the precision, and no second copy of them: the rest is kernels and, in 8 bits, what stays float32.
    size = sum(file.size_bytes for file in engine.files)
    assert parameters * weight_bytes < size < parameters * weight_bytes * 1.6
