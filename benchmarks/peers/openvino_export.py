"""Export a checkpoint to OpenVINO IR with transformers' exporter, as its guide says."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from torch_tools import is_classifier
from transformers import AutoModel, AutoModelForImageClassification

# As if that package were not installed: OpenVINO's converter then sends no reports.
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]


def main() -> None:
    from transformers.exporters.exporter_openvino import OpenVINOConfig, OpenVINOExporter

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="folder of the checkpoint")
    parser.add_argument("output", type=Path, help="folder to write")
    parser.add_argument("--image-size", type=int, default=224, help="of the traced example")
    arguments = parser.parse_args()
    kind = AutoModelForImageClassification if is_classifier(arguments.model) else AutoModel
    model = kind.from_pretrained(arguments.model).eval()
    inputs = {"pixel_values": torch.zeros(2, 3, arguments.image_size, arguments.image_size)}
    config = OpenVINOConfig(dynamic_shapes={"pixel_values": {0: torch.export.Dim.DYNAMIC}})
    OpenVINOExporter().export(model, inputs, config=config).save_pretrained(arguments.output)


if __name__ == "__main__":
    main()
