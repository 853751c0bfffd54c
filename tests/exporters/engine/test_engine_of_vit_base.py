"""The headline command's model, built by TensorRT-RTX without a GPU in every precision, with free batch and size."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import vitdeploy
from vitdeploy.assets import held_out_images
from vitdeploy.specs import AxisRange

if TYPE_CHECKING:
    from pathlib import Path

pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx has no wheel for this platform")

PARAMETERS = 86.6e6  # of ViT-B/16 at 224 pixels with 1,000 classes
IMAGES = vitdeploy.Quantization(vitdeploy.Calibration(held_out_images(), count=2, cache=False))


@pytest.mark.parametrize(
    ("precision", "weight_bytes"), [("fp32", 4), ("fp16", 2), ("bf16", 2), ("int8", 1), ("fp8", 1)]
)
def test_vit_base(tmp_path: Path, precision: str, weight_bytes: int) -> None:
    bundle = vitdeploy.export(
        to="tensorrt-rtx",
        precision=precision,
        output=tmp_path / "out",
        graph=vitdeploy.GraphOptions(image_size=((112, 112), (224, 224), (384, 384))),
        source=vitdeploy.SourceOptions(random_weights="vit-base-patch16-224"),
        quantization=IMAGES if weight_bytes == 1 else None,
    )
    onnx, engine = bundle.manifest.artifacts
    sizes = AxisRange(112, 224, 384)
    assert engine.axes == {"batch": AxisRange(1, 8, 32), "height": sizes, "width": sizes}
    assert engine.outputs == onnx.outputs
    assert engine.options["onnx_sha256"] == [file.sha256 for file in onnx.files]
    # Weights of the precision, and no second copy of them: the rest is kernels and, in 8 bits, what stays float32.
    assert PARAMETERS * weight_bytes < sum(file.size_bytes for file in engine.files) < PARAMETERS * weight_bytes * 1.3
