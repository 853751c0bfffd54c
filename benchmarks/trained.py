"""int8 on a trained ViT: similarity of pooled features to float32 on held-out photographs, and latency.

Trained weights have outliers that random ones lack. `--model` is a Hugging Face folder of a model with pooled features;
`--photographs` has two folders, `calibration` and `held-out`, without a common photograph; see `trained_model.py` for
both. The files of vitdeploy and of the other tools are made from the same photographs. Cosines compare each image's
pooled output with the float32 file's. A nearest neighbour is preserved if an image's quantized features have the same
nearest float32 features, among the other held-out photographs, as its float32 features. Latencies are from processes
that take turns, see `sessions.py`, with ratios of the same turn. In OpenVINO, layers that int8 leaves in floating point
use its default, bfloat16, if the processor has it.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from common import add_peer_python, parser, peer_versions, record, start, vitdeploy_export, wait
from sessions import Session, latencies, outputs

from vitdeploy.images.processor import ImageProcessor

if TYPE_CHECKING:
    import argparse
    import resource

FLOAT, DEFAULT = "fp32", "int8, default"
IN_OPENVINO = "in OpenVINO"
# By name: the options of `vitdeploy export` beside --int8 and --calibration-data.
WAYS: dict[str, tuple[str, ...]] = {
    DEFAULT: (),
    "int8, no smoothing": ("--smooth-quant", "off"),
    "int8, minmax": ("--calibration", "minmax"),
    "int8, minmax, no smoothing": ("--calibration", "minmax", "--smooth-quant", "off"),
    "int8, mse, no smoothing": ("--calibration", "mse", "--smooth-quant", "off"),
    "int8, dynamic": ("--scheme", "dynamic"),
    "int8, dynamic, no smoothing": ("--scheme", "dynamic", "--smooth-quant", "off"),
}
# By name: the function in `quantize_peers.py`, and its output file.
PEERS = {
    "ONNX Runtime, static": ("onnxruntime", "model.onnx"),
    "ONNX Runtime, dynamic": ("onnxruntime_dynamic", "model.onnx"),
    "NNCF": ("nncf_openvino", "model.xml"),
}
TIMED = (FLOAT, DEFAULT, "int8, no smoothing", "int8, dynamic", "ONNX Runtime, static", "ONNX Runtime, dynamic")
PACKAGES = ("openvino", "nncf", "onnxruntime")


def ours(folder: Path, arguments: argparse.Namespace) -> tuple[dict[str, Session], dict[str, dict[str, Any]]]:
    """Files of vitdeploy, with the processor time of each export, in seconds, and the chosen quantization."""
    sessions, made = {}, {}
    calibration = arguments.photographs / "calibration"
    for name, options in {FLOAT: (), **WAYS}.items():
        bundle = folder / name.replace(", ", "-").replace(" ", "-")
        how = [] if name == FLOAT else ["--int8", "--calibration-data", str(calibration), "--no-calibration-cache"]
        how += [] if name in (FLOAT, DEFAULT) else ["--tolerance", "10"]  # the result is measured, not judged
        command = [*vitdeploy_export(bundle, "--model", str(arguments.model)), *how, *options]
        usage: resource.struct_rusage = wait(start(command))
        (artifact,) = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))["artifacts"]
        chosen = {key: artifact["options"].get(key) for key in ("scheme", "calibration", "smooth_quant")}
        made[name] = {"processor_s": usage.ru_utime + usage.ru_stime, **chosen}
        sessions[name] = Session(bundle / artifact["files"][0]["path"])
    return sessions, made


def peers(folder: Path, own: Session, arguments: argparse.Namespace) -> dict[str, Session]:
    """The other tools' quantized versions of vitdeploy's float32 file, with defaults."""
    images = folder / "calibration.npy"
    np.save(images, _pixels(arguments, "calibration"))
    sessions = {}
    for name, (peer, file) in PEERS.items():
        output = folder / peer / file
        output.parent.mkdir()
        script = Path(__file__).with_name("quantize_peers.py")
        wait(start([str(arguments.openvino_python), str(script), peer, str(own.file), str(images), str(output)]))
        engine = "openvino" if file.endswith(".xml") else "onnxruntime"
        sessions[name] = Session(
            output, engine, arguments.openvino_python if engine == "openvino" else Path(sys.executable)
        )
    return sessions


def figures(wanted: np.ndarray, given: np.ndarray) -> dict[str, float]:
    """Compare features (N, C) with the float32 ones."""
    a, b = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (wanted, given))
    cosines = (a * b).sum(axis=1)
    nearest = []
    for features in (a, b):
        similar = features @ a.T
        np.fill_diagonal(similar, -np.inf)
        nearest.append(similar.argmax(axis=1))
    return {
        "mean_cosine": float(cosines.mean()),
        "p5_cosine": float(np.percentile(cosines, 5)),
        "min_cosine": float(cosines.min()),
        "same_neighbour": float((nearest[0] == nearest[1]).mean()),
    }


def _pixels(arguments: argparse.Namespace, part: str) -> np.ndarray:
    processor = ImageProcessor.from_pretrained(arguments.model)
    return np.concatenate([processor(path) for path in sorted((arguments.photographs / part).iterdir())])


def main() -> None:
    arguments_parser = parser(__doc__)
    add_peer_python(arguments_parser, "openvino")
    arguments_parser.add_argument("--model", type=Path, required=True, help="folder of the checkpoint")
    arguments_parser.add_argument("--photographs", type=Path, required=True, help="folder of the two sets")
    arguments_parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8])
    arguments_parser.add_argument("--processes", type=int, default=4, help="sets of fresh processes")
    arguments_parser.add_argument("--rounds", type=int, default=5, help="turns in each set; 0 for no latency")
    arguments = arguments_parser.parse_args()
    versions = peer_versions(arguments.openvino_python, *PACKAGES)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sessions, made = ours(folder, arguments)
        sessions |= peers(folder, sessions[FLOAT], arguments)
        for of_one in (FLOAT, DEFAULT, "int8, no smoothing"):
            sessions[f"{of_one}, {IN_OPENVINO}"] = Session(sessions[of_one].file, "openvino", arguments.openvino_python)
        features = outputs(sessions, _pixels(arguments, "held-out"))
        rows: dict[str, dict[str, Any]] = {
            of_one: {**figures(features[FLOAT], found), **made.get(of_one, {})} for of_one, found in features.items()
        }
        timed = {key: session for key, session in sessions.items() if key in TIMED or session.engine == "openvino"}
        if arguments.rounds:
            found = latencies(timed, tuple(arguments.batch_sizes), arguments.processes, arguments.rounds)
            for size, of_size in found.items():
                for key, times in of_size.times_ms.items():
                    ratios = [own / base for own, base in zip(times, of_size.times_ms[FLOAT], strict=True)]
                    row = {"median_ms": statistics.median(times), "ratio": statistics.median(ratios)}
                    rows[key].setdefault("batch_sizes", {})[str(size)] = row
        images = {part: len(list((arguments.photographs / part).iterdir())) for part in ("calibration", "held-out")}
        record(arguments, {"peers": versions, "images": images, "ways": rows})


if __name__ == "__main__":
    main()
