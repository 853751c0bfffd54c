"""The same model and the same JPEG files through vitdeploy and other tools: speed and accuracy in one table.

Each tool has its own process, in its own environment, and does what its documentation says: transformers' model (eager
and SDPA attention, its pipeline, torch.compile), timm's, transformers' exporters (ONNX and OpenVINO), optimum's ONNX
file, int8 of ONNX Runtime's tool and of NNCF. All but vitdeploy prepare images with transformers' image processor. Two
times are measured: from JPEG files of 640x427 pixels, and from prepared images. The tools of a group and the base
(transformers' pipeline) take turns, and each group's processes are started several times, so that ratios to the base
are of the same turns. Accuracy is the cosine of the logits or pooled features of each held-out photograph with those of
transformers' model in float32, and the share of photographs with the same top class or nearest neighbour.
"""

from __future__ import annotations

import dataclasses
import json
import pickle
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import sklearn.datasets
from common import (
    add_peer_python,
    optimum_export,
    parser,
    peer_versions,
    record,
    start,
    transformers_export,
    turns,
    vitdeploy_export,
    wait,
)
from trained import figures

from vitdeploy.assess.metrics.intervals import interval_of
from vitdeploy.images.processor import ImageProcessor

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Mapping

FOLDER = Path(__file__).with_name("peers")
JPEG = [Path(sklearn.datasets.__file__).parent / "images" / name for name in ("china.jpg", "flower.jpg")]
BASE = "transformers, pipeline"
REFERENCE = "transformers, SDPA"
OURS = "vitdeploy"
GROUP = 5  # tools whose processes are alive together, beside the base
KEYS = ("jpeg", "ready")  # from JPEG files, and from prepared images
TIMED_RUNS, PAUSE_S = 3, 0.1  # idle threads of an engine spin for some 40 ms after a run
ENVIRONMENTS = {
    "openvino": ("openvino", "nncf"),
    "optimum": ("optimum", "optimum-onnx", "transformers", "onnxruntime"),
    "timm": ("timm", "torch", "transformers"),
}
Times = dict[tuple[str, int, str], list[list[float]]]  # by name, batch size and key: of each process, each turn
TIMM = {"vit": "vit_base_patch16_224", "dinov2": "vit_small_patch14_dinov2"}


@dataclasses.dataclass(frozen=True)
class Peer:
    """A tool with its model; see `peers/worker.py`.

    Attributes:
        opens: "module:function" in `peers/`.
        file: The model in the tool's form.
        precision: Precision of its products.
        python: Interpreter of its environment.
    """

    opens: str
    file: Path
    precision: str
    python: Path = Path(sys.executable)
    options: tuple[str, ...] = ()


def in_torch(arguments: argparse.Namespace) -> dict[str, Peer]:
    """Tools that run the checkpoint in torch."""
    model = arguments.model
    kind = json.loads((model / "config.json").read_text(encoding="utf-8"))["model_type"]
    run = "torch_tools:transformers_model"
    return {
        BASE: Peer("torch_tools:transformers_pipeline", model, "fp32"),
        "transformers, eager": Peer(run, model, "fp32", options=("attention=eager",)),
        REFERENCE: Peer(run, model, "fp32"),
        "transformers, torch.compile": Peer(run, model, "fp32", options=("compiled=yes",)),
        "timm": Peer("torch_tools:timm_model", Path(TIMM[kind]), "fp32", arguments.timm_python),
    }


def exported(folder: Path, arguments: argparse.Namespace) -> dict[str, Peer]:
    """Files of the exporters of transformers and optimum."""
    model, python = arguments.model, arguments.openvino_python
    onnx, ir, optimum = folder / "transformers-onnx", folder / "transformers-openvino", folder / "optimum"
    size = str((ImageProcessor.from_pretrained(model).output_size or (224,))[0])
    wait(start(transformers_export(model, onnx, "--image-size", size)))
    wait(start([str(python), str(FOLDER / "openvino_export.py"), str(model), str(ir), "--image-size", size]))
    task = "image-classification" if _classifies(model) else "feature-extraction"
    wait(start(optimum_export(arguments.optimum_python, model, optimum, task=task)))
    run = "engine_tools:openvino_file"
    (xml,) = ir.glob("*.xml")
    return {
        "transformers, ONNX Runtime": Peer("engine_tools:onnxruntime_file", onnx / "model.onnx", "fp32"),
        "optimum, ONNX Runtime": Peer("engine_tools:optimum_onnx", optimum, "fp32", arguments.optimum_python),
        "transformers, OpenVINO": Peer(run, xml, "fp32", python, ("precision=f32",)),
        "transformers, OpenVINO, its default": Peer(run, xml, "bf16", python),
    }


def quantized(folder: Path, arguments: argparse.Namespace) -> dict[str, Peer]:
    """int8 files that other tools make of vitdeploy's float32 file with their defaults."""
    bundle = folder / "fp32"
    wait(start(vitdeploy_export(bundle, "--model", str(arguments.model))))
    images = folder / "calibration.npy"
    processor = ImageProcessor.from_pretrained(arguments.model)
    photographs = sorted((arguments.photographs / "calibration").iterdir())
    np.save(images, np.concatenate([processor(path) for path in photographs]))

    def made(tool: str, name: str) -> Path:
        output = folder / tool / name
        output.parent.mkdir()
        script = str(Path(__file__).with_name("quantize_peers.py"))
        model = str(bundle / "onnx" / "model.onnx")
        wait(start([str(arguments.openvino_python), script, tool, model, str(images), str(output)]))
        return output

    nncf = made("nncf_openvino", "model.xml")
    in_onnxruntime, in_openvino = "engine_tools:onnxruntime_file", "engine_tools:openvino_file"
    python = arguments.openvino_python
    return {
        "ONNX Runtime, int8 static": Peer(in_onnxruntime, made("onnxruntime", "model.onnx"), "int8"),
        "ONNX Runtime, int8 dynamic": Peer(in_onnxruntime, made("onnxruntime_dynamic", "model.onnx"), "int8"),
        "NNCF, int8, rest f32": Peer(in_openvino, nncf, "int8", python, ("precision=f32",)),
        "NNCF, int8, its default": Peer(in_openvino, nncf, "int8, bf16", python),
    }


def ours(folder: Path, arguments: argparse.Namespace) -> dict[str, Peer]:
    """Vitdeploy's artifacts, each in a bundle of its own."""
    calibration = ("--calibration-data", str(arguments.photographs / "calibration"), "--no-calibration-cache")
    artifacts: dict[str, tuple[str, str, tuple[str, ...]]] = {
        "fp32": ("onnxruntime", "fp32", ()),
        "int8 dynamic": ("onnxruntime", "int8", ("--int8", "--scheme", "dynamic", *calibration)),
        "int8 static": ("onnxruntime", "int8", ("--int8", "--scheme", "static", *calibration)),
        "fp32 in OpenVINO": ("openvino", "fp32", ("--to", "openvino")),
        "bf16": ("openvino", "bf16", ("--to", "openvino", "--bf16")),
        "int8": ("openvino", "int8", ("--to", "openvino", "--int8", *calibration)),
        "int8, rest bf16": ("openvino", "int8", ("--to", "openvino", "--int8", "--rest", "bf16", *calibration)),
    }
    engines = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
    peers = {}
    for name, (backend, precision, options) in artifacts.items():
        bundle = folder / f"{OURS}-{backend}-{name.strip().replace(', ', '-').replace(' ', '-')}"
        command = [sys.executable, "-m", "vitdeploy", "export", "--model", str(arguments.model), "-o", str(bundle)]
        wait(start([*command, *options, *(() if "--to" in options else ("--to", "onnx"))]))
        computed = {"int8, rest bf16": "int8, bf16"}.get(name, precision)
        peers[f"{OURS}, {engines[backend]}, {name.strip()}"] = Peer(
            "engine_tools:vitdeploy_bundle", bundle, computed, options=(f"backend={backend}", f"precision={precision}")
        )
    return peers


@contextmanager
def started(peers: Mapping[str, Peer], model: Path) -> Iterator[dict[str, Any]]:
    """A process for each tool: functions that send a request, and return the reply."""
    with ExitStack() as stack:
        asks = {}
        for name, peer in peers.items():
            module, _, function = peer.opens.partition(":")
            worker = str(FOLDER / "worker.py")
            command = [str(peer.python), worker, module, function, str(peer.file), str(model), *peer.options]
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            stack.enter_context(process)  # at its exit the worker's input ends, and so does the worker

            def ask(*request: Any, process: Any = process, name: str = name) -> Any:
                if request:
                    pickle.dump(request, process.stdin)
                    process.stdin.flush()
                try:
                    return pickle.load(process.stdout)
                except EOFError as exc:
                    raise SystemExit(f"{name} must answer, but its process ended: {process.args}") from exc

            ask()  # the tool is open
            asks[name] = ask
        yield asks


def timed(peers: Mapping[str, Peer], arguments: argparse.Namespace) -> dict[str, dict[str, dict[str, Any]]]:
    """Median times, and ratios to the base of the same turn with 95 % intervals, by name and batch size."""
    sizes = arguments.batch_sizes
    times: Times = {(name, size, key): [] for name in peers for size in sizes for key in KEYS}
    ratios: Times = {(name, size, key): [] for name in peers for size in sizes for key in KEYS}
    others = [name for name in peers if name != BASE]
    groups = [others[begin : begin + GROUP] for begin in range(0, len(others), GROUP)]
    for index in range(arguments.processes):
        for group in groups:
            print(f"processes {index}: {', '.join(group)}", file=sys.stderr)
            with started({name: peers[name] for name in (BASE, *group)}, arguments.model) as asks:
                for size in sizes:
                    _add_turns(times, ratios, asks, size, arguments.rounds)
    found: dict[str, dict[str, dict[str, Any]]] = {name: {} for name in peers}
    for name, size, key in times:
        of_size = found[name].setdefault(str(size), {})
        of_size[f"{key}_ms"] = statistics.median(np.concatenate(times[name, size, key])) / size
        of_size[f"{key}_ratio"] = interval_of(ratios[name, size, key])
    return found


def _add_turns(times: Times, ratios: Times, asks: Mapping[str, Any], size: int, rounds: int) -> None:
    files = (JPEG * size)[:size]
    for ask in asks.values():
        ask("times", files, TIMED_RUNS)  # warm-up; torch.compile compiles
    for each in (times, ratios):
        for name in asks:
            for key in KEYS:
                each[name, size, key].append([])
    for order in turns(list(asks), rounds):
        turn = {}
        for name in order:
            time.sleep(PAUSE_S)
            turn[name] = asks[name]("times", files, TIMED_RUNS)
        for name, answer in turn.items():
            for key in KEYS:
                median, base = (statistics.median(values[key]) for values in (answer, turn[BASE]))
                times[name, size, key][-1].append(median)
                ratios[name, size, key][-1].append(median / base)


def accuracy(peers: Mapping[str, Peer], arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Cosines with the reference on the held-out photographs, and the share of equal top classes or neighbours."""
    files = sorted((arguments.photographs / "held-out").iterdir())
    values = {}
    for name, peer in peers.items():
        with started({name: peer}, arguments.model) as asks:
            values[name] = asks[name]("outputs", files)
    same_class = _classifies(arguments.model)
    rows = {}
    for name, given in values.items():
        rows[name] = figures(values[REFERENCE], given)
        if same_class:
            rows[name]["same_class"] = float((given.argmax(1) == values[REFERENCE].argmax(1)).mean())
    return rows


def _classifies(model: Path) -> bool:
    (name,) = json.loads((model / "config.json").read_text(encoding="utf-8"))["architectures"]
    return str(name).endswith("ForImageClassification")


def main() -> None:
    arguments_parser = parser(__doc__)
    for environment in ENVIRONMENTS:
        add_peer_python(arguments_parser, environment)
    arguments_parser.add_argument("--model", type=Path, required=True, help="folder of the checkpoint")
    arguments_parser.add_argument(
        "--photographs", type=Path, required=True, help="folder of the two sets, see trained.py"
    )
    arguments_parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8])
    arguments_parser.add_argument("--processes", type=int, default=3, help="sets of fresh processes")
    arguments_parser.add_argument("--rounds", type=int, default=5, help="turns in each set; 0 for accuracy alone")
    arguments = arguments_parser.parse_args()
    arguments.model = arguments.model.absolute()
    versions = {
        name: peer_versions(getattr(arguments, f"{name}_python"), *packages) for name, packages in ENVIRONMENTS.items()
    }
    versions["this"] = peer_versions(Path(sys.executable), "torch", "transformers", "onnxruntime", "openvino")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        peers = {
            **in_torch(arguments), **exported(folder, arguments), **quantized(folder, arguments),
            **ours(folder, arguments),
        }  # fmt: skip
        rows: dict[str, dict[str, Any]] = {
            key: {"precision": peers[key].precision, **row} for key, row in accuracy(peers, arguments).items()
        }
        if arguments.rounds:
            for key, by_size in timed(peers, arguments).items():
                rows[key]["batch_sizes"] = by_size
        record(arguments, {"peers": versions, "model": arguments.model.name, "rows": rows})


if __name__ == "__main__":
    main()
