"""Quantize an ONNX graph to int8 with another tool's defaults: NNCF for OpenVINO or as ONNX, or ONNX Runtime's tool.

Run by the interpreter of the environment with NNCF, in one process per tool, so that they do not share loaded modules.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

# As if that package were not installed: NNCF and OpenVINO's converter then send no reports.
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]


def nncf_openvino(model: Path, images: list[np.ndarray], output: Path) -> None:
    import nncf
    import openvino as ov

    read = ov.Core().read_model(model)
    kind = nncf.ModelType.TRANSFORMER
    ov.save_model(nncf.quantize(read, nncf.Dataset(images), model_type=kind, subset_size=len(images)), output)


def nncf_onnx(model: Path, images: list[np.ndarray], output: Path) -> None:
    import nncf
    import onnx

    feeds = [{"pixel_values": image} for image in images]
    kind = nncf.ModelType.TRANSFORMER
    onnx.save(nncf.quantize(onnx.load(model), nncf.Dataset(feeds), model_type=kind, subset_size=len(feeds)), output)


def onnxruntime(model: Path, images: list[np.ndarray], output: Path) -> None:
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        feeds = iter([{"pixel_values": image} for image in images])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.feeds, None)

    quantize_static(model, output, Reader())


def onnxruntime_dynamic(model: Path, images: list[np.ndarray], output: Path) -> None:  # noqa: ARG001  (it needs none)
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(model, output)


PEERS = {of_one.__name__: of_one for of_one in (nncf_openvino, nncf_onnx, onnxruntime, onnxruntime_dynamic)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("model", type=Path, help="ONNX file, float32")
    parser.add_argument("images", type=Path, help=".npy file of pixel values (N, 3, H, W) to calibrate on")
    parser.add_argument("output", type=Path, help="file to write")
    arguments = parser.parse_args()
    pixel_values = np.load(arguments.images)
    PEERS[arguments.peer](arguments.model, list(pixel_values[:, None]), arguments.output)


if __name__ == "__main__":
    main()
