"""Build engines ahead of time with TensorRT-RTX, without a GPU: seconds and megabytes by precision.

8-bit ranges come from two images: neither time nor size depends on them.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from common import PRESET, parser, record

import vitdeploy
from vitdeploy import EngineOptions
from vitdeploy.assets import held_out_images
from vitdeploy.specs import AxisRange
from vitdeploy.trt.options import colons

BATCH = AxisRange(1, 8, 32)
SIZES: dict[str, Any] = {"fixed": None, "dynamic": ((112, 112), (224, 224), (384, 384))}


IMAGES = vitdeploy.Quantization(vitdeploy.Calibration(held_out_images(), count=2, cache=False), target="tensorrt")


def build(preset: str, precision: str, size: str, folder: Path) -> dict[str, Any]:
    """Build one engine; its ONNX artifact is exported before, and not timed."""
    output = folder / f"{precision}-{size}"
    vitdeploy.export(
        precision=precision,
        output=output,
        graph=vitdeploy.GraphOptions(image_size=SIZES[size]),
        source=vitdeploy.SourceOptions(random_weights=preset),
        quantization=IMAGES if precision in ("int8", "fp8") else None,
    )
    start = time.perf_counter()
    bundle = vitdeploy.export(
        to="tensorrt-rtx", precision=precision, output=output, engine=EngineOptions(batch=(BATCH,))
    )
    seconds = time.perf_counter() - start
    onnx, engine = (bundle.artifact(kind, precision) for kind in ("onnx", "tensorrt-rtx"))
    return {
        "precision": precision,
        "size": "224" if SIZES[size] is None else ":".join(str(height) for height, _ in SIZES[size]),
        "batch": colons(BATCH),
        "seconds": round(seconds, 1),
        "engine_mb": round(engine.files[0].size_bytes / 1e6, 1),
        "onnx_mb": round(onnx.files[0].size_bytes / 1e6, 1),
        "validation": engine.validation.get("status", "proven"),
    }


def main() -> None:
    arguments_parser = parser(__doc__)
    arguments_parser.add_argument("--preset", default=PRESET, help="with random weights")
    arguments_parser.add_argument(
        "--precision", nargs="+", default=["fp32", "fp16", "bf16", "int8", "fp8"], help="of the engines"
    )
    arguments = arguments_parser.parse_args()
    rows = []
    for precision in arguments.precision:
        for size in SIZES:
            with tempfile.TemporaryDirectory() as folder:
                rows.append(build(arguments.preset, precision, size, Path(folder)))
    record(arguments, {"rows": rows})


if __name__ == "__main__":
    main()
