"""Export a checkpoint to ONNX with transformers' exporter, the counterpart of `vitdeploy export`, as in its guide."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig, AutoModel, AutoModelForImageClassification
from transformers.exporters import OnnxConfig, OnnxExporter

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

BATCH, SIZE = (0,), (2, 3)  # the axes of pixel_values


def export(
    model: Any,
    output: Path,
    *,
    image_size: tuple[int, int],
    dynamic_axes: Sequence[int] = BATCH,
    flags: Mapping[str, bool] | None = None,
    ort_fusions: str | None = None,
) -> Path:
    """Write `model.onnx` with its weights beside it; return the graph's path.

    Args:
        model: A transformers model.
        output: Output folder.
        image_size: (height, width) of the traced example, a batch of 2.
        dynamic_axes: Dynamic axes of `pixel_values`.
        flags: Arguments of the model's forward, such as `interpolate_pos_encoding`.
        ort_fusions: "cpu" for ONNX Runtime's fused operators; the file then runs nowhere else.
    """
    flags = flags or {}
    inputs = {"pixel_values": torch.zeros(2, 3, *image_size), **flags}
    shapes = {"pixel_values": dict.fromkeys(dynamic_axes, torch.export.Dim.DYNAMIC), **dict.fromkeys(flags)}
    config = OnnxConfig(dynamic_shapes=shapes, ort_fusions=ort_fusions)
    OnnxExporter().export(model, inputs, config).save_pretrained(output)
    return output / "model.onnx"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="folder of the checkpoint")
    parser.add_argument("output", type=Path, help="folder to write")
    parser.add_argument("--ort-fusions", choices=["cpu"], help="use ONNX Runtime's own operators")
    parser.add_argument("--image-size", type=int, help="of the traced example; by default the model's")
    arguments = parser.parse_args()
    (architecture,) = AutoConfig.from_pretrained(arguments.model).architectures
    kind = AutoModelForImageClassification if architecture.endswith("ForImageClassification") else AutoModel
    model = kind.from_pretrained(arguments.model).eval()
    size = arguments.image_size or model.config.image_size
    export(model, arguments.output, image_size=(size, size), ort_fusions=arguments.ort_fusions)


if __name__ == "__main__":
    main()
