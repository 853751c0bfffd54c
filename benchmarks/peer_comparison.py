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
import functools
import json
import pickle
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
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
Makers = dict[str, Callable[[], "Peer"]]  # by name: writes the tool's files
Times = dict[tuple[str, int, str], list[list[float]]]  # by name, batch size and key: of each process, each turn
# Runtime options that vitdeploy's guides name for batches, as JSON.
FOR_BATCHES = {
    "ONNX Runtime, int8 dynamic": "parallel_runs=0",
    "OpenVINO, int8, rest bf16": 'hint="throughput"',
}
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


def in_torch(folder: Path, arguments: argparse.Namespace) -> Makers:  # noqa: ARG001  (nothing is written)
    """Tools that run the checkpoint in torch."""
    model = arguments.model
    kind = json.loads((model / "config.json").read_text(encoding="utf-8"))["model_type"]
    run = "torch_tools:transformers_model"
    peers = {
        BASE: Peer("torch_tools:transformers_pipeline", model, "fp32"),
        "transformers, eager": Peer(run, model, "fp32", options=("attention=eager",)),
        REFERENCE: Peer(run, model, "fp32"),
        "transformers, torch.compile": Peer(run, model, "fp32", options=("compiled=yes",)),
        "timm": Peer("torch_tools:timm_model", Path(TIMM[kind]), "fp32", arguments.timm_python),
    }
    return {name: functools.partial(_same, peer) for name, peer in peers.items()}


def exported(folder: Path, arguments: argparse.Namespace) -> Makers:
    """Files of the exporters of transformers and optimum."""
    model, python = arguments.model, arguments.openvino_python
    size = str((ImageProcessor.from_pretrained(model).output_size or (224,))[0])

    def onnx() -> Peer:
        output = folder / "transformers-onnx"
        wait(start(transformers_export(model, output, "--image-size", size)))
        return Peer("engine_tools:onnxruntime_file", output / "model.onnx", "fp32")

    def optimum() -> Peer:
        output = folder / "optimum"
        task = "image-classification" if _classifies(model) else "feature-extraction"
        wait(start(optimum_export(arguments.optimum_python, model, output, task=task)))
        return Peer("engine_tools:optimum_onnx", output, "fp32", arguments.optimum_python)

    @functools.cache
    def ir() -> Path:
        output = folder / "transformers-openvino"
        script = str(FOLDER / "openvino_export.py")
        wait(start([str(python), script, str(model), str(output), "--image-size", size]))
        (xml,) = output.glob("*.xml")
        return xml

    run = "engine_tools:openvino_file"
    return {
        "transformers, ONNX Runtime": onnx,
        "optimum, ONNX Runtime": optimum,
        "transformers, OpenVINO": lambda: Peer(run, ir(), "fp32", python, ("precision=f32",)),
        "transformers, OpenVINO, its default": lambda: Peer(run, ir(), "bf16", python),
    }


def quantized(folder: Path, arguments: argparse.Namespace) -> Makers:
    """int8 files that other tools make of vitdeploy's float32 file with their defaults."""
    python = arguments.openvino_python

    @functools.cache
    def sources() -> tuple[str, str]:
        bundle, images = folder / "fp32", folder / "calibration.npy"
        wait(start(vitdeploy_export(bundle, "--model", str(arguments.model))))
        processor = ImageProcessor.from_pretrained(arguments.model)
        photographs = sorted((arguments.photographs / "calibration").iterdir())
        np.save(images, np.concatenate([processor(path) for path in photographs]))
        return str(bundle / "onnx" / "model.onnx"), str(images)

    @functools.cache
    def made(tool: str, name: str) -> Path:
        output = folder / tool / name
        output.parent.mkdir()
        script = str(Path(__file__).with_name("quantize_peers.py"))
        wait(start([str(python), script, tool, *sources(), str(output)]))
        return output

    def in_onnxruntime(tool: str) -> Peer:
        return Peer("engine_tools:onnxruntime_file", made(tool, "model.onnx"), "int8")

    def nncf(precision: str, *options: str) -> Peer:
        return Peer("engine_tools:openvino_file", made("nncf_openvino", "model.xml"), precision, python, options)

    return {
        "ONNX Runtime, int8 static": lambda: in_onnxruntime("onnxruntime"),
        "ONNX Runtime, int8 dynamic": lambda: in_onnxruntime("onnxruntime_dynamic"),
        "NNCF, int8, rest float32": lambda: nncf("int8", "precision=f32"),
        "NNCF, int8, its default": lambda: nncf("int8, bf16"),
    }


def ours(folder: Path, arguments: argparse.Namespace) -> Makers:
    """Artifacts of vitdeploy, each in a bundle of its own."""
    calibration = ("--calibration-data", str(arguments.photographs / "calibration"), "--no-calibration-cache")
    to_onnx, to_openvino = ("--to", "onnx"), ("--to", "openvino")
    onnx_int8 = (*to_onnx, "--int8", *calibration)
    artifacts = {
        "ONNX Runtime, fp32": ("onnxruntime", "fp32", to_onnx),
        "ONNX Runtime, int8 dynamic": (
            "onnxruntime",
            "int8",
            (*onnx_int8, "--scheme", "dynamic"),
        ),
        "ONNX Runtime, int8 static": ("onnxruntime", "int8", (*onnx_int8, "--scheme", "static")),
        "OpenVINO, fp32": ("openvino", "fp32", to_openvino),
        "OpenVINO, bf16": ("openvino", "bf16", (*to_openvino, "--bf16")),
        "OpenVINO, int8, rest float32": ("openvino", "int8", (*to_openvino, "--int8", *calibration)),
        "OpenVINO, int8, rest bf16": ("openvino", "int8", (*to_openvino, "--int8", "--rest", "bf16", *calibration)),
    }

    @functools.cache
    def made(name: str) -> Peer:
        backend, precision, options = artifacts[name]
        bundle = folder / f"{OURS}-{name.replace(', ', '-').replace(' ', '-')}"
        command = [sys.executable, "-m", "vitdeploy", "export", "--model", str(arguments.model), "-o", str(bundle)]
        wait(start([*command, *options]))
        computed = f"{precision}, bf16" if "--rest" in options else precision
        runs = (f"backend={backend}", f"precision={precision}")
        return Peer("engine_tools:vitdeploy_bundle", bundle, computed, options=runs)

    def for_batches(name: str) -> Peer:
        peer = made(name)
        return dataclasses.replace(peer, options=(*peer.options, FOR_BATCHES[name]))

    makers: Makers = {f"{OURS}, {name}": functools.partial(made, name) for name in artifacts}
    return makers | {f"{OURS}, {name}, for batches": functools.partial(for_batches, name) for name in FOR_BATCHES}


def _same(peer: Peer) -> Peer:
    return peer


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
    arguments_parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="tools beside transformers'")
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
        makers: Makers = {}
        for tools in (in_torch, exported, quantized, ours):
            makers |= tools(folder, arguments)
        unknown = {*arguments.only} - {*makers}
        if unknown:
            arguments_parser.error(f"--only takes names of {', '.join(map(repr, makers))}, got {unknown}")
        peers = {key: make() for key, make in makers.items() if key in (BASE, REFERENCE, *(arguments.only or makers))}
        rows: dict[str, dict[str, Any]] = {
            key: {"precision": peers[key].precision, **row} for key, row in accuracy(peers, arguments).items()
        }
        if arguments.rounds:
            for key, by_size in timed(peers, arguments).items():
                rows[key]["batch_sizes"] = by_size
        record(arguments, {"peers": versions, "model": arguments.model.name, "rows": rows})


if __name__ == "__main__":
    main()
