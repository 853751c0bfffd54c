"""Latency and agreement of int8 on the CPU against float32 and against other tools, on ViT-B with random weights.

Timed in ONNX Runtime are the files of `vitdeploy export`, `--int8` (dynamic) and `--int8 --calibration-data` (static),
and those that NNCF and ONNX Runtime's tool make from vitdeploy's float32 file with their defaults; the float32 file and
NNCF's model also in OpenVINO. Each runs in its own process, in turns: see `sessions.py`. OpenVINO runs the float32 file
in float32, and int8 in two ways: with its default of bfloat16 for other layers, if the processor has it, and with
float32 for other layers, as in vitdeploy. Static ranges come from two photographs: speed does not depend on them.
Ratios are of the same turn.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import sklearn.datasets
from common import PRESET, add_peer_python, parser, peer_versions, record, start, vitdeploy_export, wait
from sessions import Session, latencies

from vitdeploy.assess.metrics.outputs import compare_outputs
from vitdeploy.images.processor import ImageProcessor

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sessions import Latencies

PHOTOGRAPHS = [Path(sklearn.datasets.__file__).parent / "images" / name for name in ("china.jpg", "flower.jpg")]
FLOAT = "fp32"
PEER = "OpenVINO int8"
PEER_FLOAT = "OpenVINO int8, rest float32"
_IN_FLOAT = ("INFERENCE_PRECISION_HINT=f32",)
PEER_PACKAGES = ("openvino", "nncf", "onnxruntime")


def ours(folder: Path, preset: str) -> dict[str, Session]:
    photographs = folder / "photographs"
    photographs.mkdir()
    for path in PHOTOGRAPHS:
        shutil.copy(path, photographs)
    options = {
        FLOAT: [],
        "int8 dynamic": ["--int8"],
        "int8 static": ["--int8", "--calibration-data", str(photographs), "--no-calibration-cache"],
    }
    sessions = {}
    for name, of_one in options.items():
        bundle = folder / name.replace(" ", "-")
        wait(start([*vitdeploy_export(bundle, "--random-weights", preset), *of_one]))
        sessions[name] = Session(bundle / "onnx" / ("model.onnx" if name == FLOAT else "model_int8.onnx"))
    return sessions


def peers(folder: Path, own: Mapping[str, Session], python: Path) -> dict[str, Session]:
    """The other tools' quantized versions of the float32 file, on preprocessed photographs; also ours in OpenVINO."""
    model = own[FLOAT].file
    images = folder / "photographs.npy"
    np.save(images, ImageProcessor.from_pretrained(model.parent.parent)(PHOTOGRAPHS))

    def quantized(peer: str, file: str) -> Path:
        output = folder / peer / file
        output.parent.mkdir()
        script = Path(__file__).with_name("quantize_peers.py")
        wait(start([str(python), str(script), peer, str(model), str(images), str(output)]))
        return output

    of_nncf = quantized("nncf_openvino", "model.xml")
    return {
        "NNCF int8": Session(quantized("nncf_onnx", "model.onnx")),
        "ONNX Runtime int8": Session(quantized("onnxruntime", "model.onnx")),
        "OpenVINO fp32": Session(model, "openvino", python, _IN_FLOAT),
        "int8 static, OpenVINO": Session(own["int8 static"].file, "openvino", python),
        PEER: Session(of_nncf, "openvino", python),
        PEER_FLOAT: Session(of_nncf, "openvino", python, _IN_FLOAT),
    }


def figures(found: Latencies, sessions: Mapping[str, Session]) -> dict[str, dict[str, Any]]:
    """For each: median, ratios to others (quartiles of the turns), size, and differences of the logits."""
    if found.problems:
        raise SystemExit(f"every file must run, got: {found.problems}")
    rows = {}
    for name, times in found.times_ms.items():
        (difference,) = compare_outputs({"logits": found.logits[FLOAT]}, {"logits": found.logits[name]})
        rows[name] = {
            "median_ms": statistics.median(times),
            "ratios": {base: quartiles(times, found.times_ms[base]) for base in (FLOAT, PEER, PEER_FLOAT)},
            "file_mb": size_mb(sessions[name].file),
            "max_relative": difference.max_relative,
            "min_cosine": difference.min_cosine,
        }
    return rows


def quartiles(times: list[float], base: list[float]) -> list[float]:
    ratios = np.percentile([own / other for own, other in zip(times, base, strict=True)], (25, 50, 75))
    return [float(ratio) for ratio in ratios]


def size_mb(file: Path) -> float:
    """Size of `file` with the weights beside it."""
    return sum(path.stat().st_size for path in file.parent.glob(f"{file.stem}.*")) / 1e6


def main() -> None:
    arguments_parser = parser(__doc__)
    add_peer_python(arguments_parser, "openvino")
    arguments_parser.add_argument("--preset", default=PRESET, help="architecture, with random weights")
    arguments_parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8])
    arguments_parser.add_argument("--processes", type=int, default=4, help="sets of fresh processes")
    arguments_parser.add_argument("--rounds", type=int, default=5, help="turns in each set")
    arguments_parser.add_argument(
        "--clock", choices=("wall", "processor"), default="wall", help="processor: of one thread, on a busy machine"
    )
    arguments = arguments_parser.parse_args()
    versions = peer_versions(arguments.openvino_python, *PEER_PACKAGES)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sessions = ours(folder, arguments.preset)
        sessions |= peers(folder, sessions, arguments.openvino_python)
        found = latencies(
            sessions,
            tuple(arguments.batch_sizes),
            arguments.processes,
            arguments.rounds,
            processor_time=arguments.clock == "processor",
        )
        measured = {size: figures(of_one, sessions) for size, of_one in found.items()}
        record(arguments, {"peers": versions, "batch_sizes": measured})


if __name__ == "__main__":
    main()
