"""Results of every assessment, made by hand: for whatever writes one down, and needs no model to be run."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from vitdeploy.assess.benchmark.comparison import BenchmarkComparison, Change
from vitdeploy.assess.benchmark.recorded import Key, Recorded
from vitdeploy.assess.benchmark.result import Benchmark, NotMeasured
from vitdeploy.assess.benchmark.scenarios.arrivals import Answers
from vitdeploy.assess.benchmark.scenarios.options import Scenario
from vitdeploy.assess.benchmark.scenarios.rate_search import Replay
from vitdeploy.assess.benchmark.scenarios.results import OfflineResult, ScenarioBenchmark, StreamResult
from vitdeploy.assess.benchmark.scenarios.server_result import ServerResult
from vitdeploy.assess.benchmark.tuning import BoundedAccuracy, Candidate, TimedSetting, Tuning
from vitdeploy.assess.compare.results import BackendComparison, Comparison
from vitdeploy.assess.compare.worst_images import WorstImage
from vitdeploy.assess.data.folder_listing import LeftOut, Reason
from vitdeploy.assess.debug.layer_results import ArtifactLayers, LayerComparison, PartDifference
from vitdeploy.assess.debug.sensitivity import LayerEffect, Sensitivity
from vitdeploy.assess.evaluate.embedding_run import Neighbours
from vitdeploy.assess.evaluate.embeddings import EmbeddingEvaluation
from vitdeploy.assess.evaluate.evaluate import Evaluation
from vitdeploy.assess.gate.checks import Check
from vitdeploy.assess.gate.gate import GateResult
from vitdeploy.assess.metrics.accuracy import Accuracy, Predictions
from vitdeploy.assess.metrics.intervals import Interval, Ratio
from vitdeploy.assess.metrics.latency import Latency
from vitdeploy.assess.metrics.logits import LogitsDifference
from vitdeploy.assess.metrics.order_statistics import Percentile
from vitdeploy.assess.metrics.outputs import Difference
from vitdeploy.assess.metrics.pareto import Quality
from vitdeploy.predictor import Prediction
from vitdeploy.system.cpu import ThreadCount

if TYPE_CHECKING:
    from pathlib import Path

LEFT_OUT = LeftOut(4, (Reason("hidden", 3), Reason("ending .<b>", 1)), ("newt|s",))
GOOD = Difference("logits", 16, True, 1e-6, 1e-7, 1e-6, 0.99999999, 1.0, 1e-6, 0.99999999, 132.0)
POOLED = Difference("pooler_output", 16, True, 0.5, 0.1, 0.5, 0.9, None, 0.2, 0.95, 16.0)
BROKEN = Difference("hidden_states.2", 16, False, math.inf, math.inf, math.inf, -1.0, None, math.inf, -1.0, None)

FAR = WorstImage(3, "gone/a.png", math.inf, Prediction("cat", 0, 0.9), Prediction("not finite", -1, math.nan))
COMPARISON = Comparison(
    "gone",
    16,
    True,
    (
        BackendComparison(
            "onnx-fp32", "onnxruntime", 1e-4, (GOOD, POOLED), {"engine": "x"}, None,
            LogitsDifference(1e-9, 1.0, None, 0, 1), (3, 4), (FAR,),
        ),
        BackendComparison("tensorrt-fp16", "", 1e-2, skipped="no backend runs it"),
    ),
    left_out=LEFT_OUT,
)  # fmt: skip

LAYERS = LayerComparison(
    "gone",
    16,
    False,
    "reference",
    (
        ArtifactLayers(
            "onnx-fp32",
            1e-4,
            (
                PartDifference("embeddings", (GOOD,)),
                PartDifference("layers.0", (GOOD,)),
                PartDifference("layers.1", (BROKEN,)),
                PartDifference("head", (GOOD, POOLED)),
            ),
        ),
        ArtifactLayers("torchscript-fp32", 1e-4, skipped="its layers cannot be told apart"),
    ),
    left_out=LEFT_OUT,
)

SENSITIVITY = Sensitivity(
    "gone",
    16,
    True,
    "fp16",
    (
        LayerEffect("embeddings.projection", ("conv",), "Conv", "embeddings", 0.25, "embeddings, projection"),
        LayerEffect("layers.0.mlp.fc1", ("val_1", "linear_1"), "MatMul", "layers.0", math.inf, "block 0, MLP, fc1"),
        LayerEffect("gelu", ("gelu",), "Gelu", "layers.0", 0.25, "block 0, gelu"),
        LayerEffect("head.classifier", ("logits",), "Gemm", "head", 0.0, "head, classifier"),
    ),
    math.inf,
    1e-7,
    left_out=LEFT_OUT,
)

# Two cats, two newts. The artifact takes the first newt for a cat, and has nothing finite for the second.
EVALUATION = Evaluation(
    bundle="gone",
    data="gone/data",
    labels=("cat", "dog", "newt"),
    images=("cat/1.png", "cat/2.png", "newt/1.png", "newt/2.png"),
    targets=np.array([0, 0, 2, 2], np.int32),
    data_sha256="0" * 64,
    results=(
        Predictions(
            "reference",
            "torch",
            "fp32",
            np.array([[0, 1, 2], [1, 0, 2], [2, 1, 0], [2, 0, 1]], np.int32),
            np.array([0.9, 0.7, 0.8, 0.6], np.float32),
            {"engine": "torch 9"},
        ),
        Predictions(
            "x-fp32",
            "x",
            "fp32",
            np.array([[0, 1, 2], [0, 1, 2], [0, 1, 2], [-1, -1, -1]], np.int32),
            np.array([0.9, 0.5, 0.95, math.nan], np.float32),
        ),
        Predictions(
            "y-fp16", "y", "fp16", np.empty((0, 3), np.int32), np.empty(0, np.float32), skipped="no such device"
        ),
    ),
    settings={
        "kind": "folder",
        "labels_matched": "by name",
        "images": 4,
        "batch_size": 2,
        "device": "cpu",
        "limit": None,
        "seed": None,
    },
    left_out=LEFT_OUT,
)

# The same images: the artifact finds a cat for the first newt, and has nothing finite for the second.
EMBEDDINGS = EmbeddingEvaluation(
    bundle="gone",
    data="gone/data",
    labels=("cat", "dog", "newt"),
    images=EVALUATION.images,
    targets=EVALUATION.targets,
    data_sha256="0" * 64,
    results=(
        Neighbours(
            "reference",
            "torch",
            "fp32",
            np.array([0, 0, 2, 2], np.int32),
            np.array([0, 0, 0, 1], np.int32),
            16,
            details={"engine": "torch 9"},
        ),
        Neighbours("x-fp32", "x", "fp32", np.array([0, 0, 0, -1], np.int32), np.array([0, 0, 7, -1], np.int32), 16, 1),
        Neighbours("y-fp16", "y", "fp16", np.empty(0, np.int32), np.empty(0, np.int32), skipped="no such device"),
    ),
    settings={
        "neighbours": 3,
        "pool": None,
        "kind": "folder",
        "images": 4,
        "batch_size": 2,
        "device": "cpu",
        "limit": None,
        "seed": None,
    },
    left_out=LEFT_OUT,
    gallery="gone/gallery",
    gallery_images=9,
    unmatched=1,
    shared=2,
)

BENCHMARK = Benchmark(
    "gone",
    {"cpu": "abacus"},
    {
        "batch_sizes": [1], "image_sizes": [], "processes": 1, "rounds": 2, "runs": 2, "device": "cpu", "threads": 0,
        "images": "2", "accuracy": "top-1 accuracy", "warm_up": "short",
    },
    (
        Latency(
            "reference", "torch", "fp32", 1, ((4.0, 5.0), (6.0, 6.0)), ((6.0, 7.0), (8.0, 8.0)),
            1.5, 900.0, 12.0, 10**8, details={"engine": "torch 9"},
        ),
        Latency("x-fp32", "x", "fp32", 1, ((2.0, 2.5), (3.0, 3.0)), steady=False, quality=Quality(4, Accuracy(3, 4))),
    ),
    (NotMeasured("y-fp16", "y", "fp16", None, "no such device"), NotMeasured("x-fp32", "x", "fp32", 8, "takes one")),
    left_out=LEFT_OUT,
)  # fmt: skip

TUNING = Tuning(
    bundle="gone",
    settings={
        "accuracy": "min_agreement 0.99", "target": "latency", "max_batch": 32, "time_limit": 60.0, "seed": 0,
        "resumed": False,
    },
    data={
        "source": "photos", "calibration_images": 64, "calibration_sha256": "0" * 64, "held_out_images": 100,
        "held_out_sha256": "1" * 64, "labels": False,
    },
    machine={"cpu": "abacus", "cpus": "2"},
    candidates=(
        Candidate(
            "x-int8 static", "x-int8", "x", True, "met",
            BoundedAccuracy("min_agreement 0.99", True, 0.995, 0.98, 0.999, 0.99, 100, "logits"), None, 10**6,
        ),
        Candidate("y-bf16", "y-bf16", "", True, "not made", reason="no such library"),
    ),
    timed=(
        TimedSetting(
            "x-int8 static", "x", {"threads": 1}, 1, "chosen", None, Interval(2.0, 1.9, 2.1), Interval(1.0, 1.0, 1.0),
            2.5, 1.5, 40, front=True,
        ),
        TimedSetting("x-int8 static", "x", {}, 1, "not run", "out of memory"),
    ),
    usual="x-fp32 on x at 1",
    gain=Interval(0.5, 0.4, 0.6),
    notes=("the final had 2 of 4 sessions",),
    seconds=12.0,
    left_out=LEFT_OUT,
)  # fmt: skip


_KEY = Key("x-fp32", "x", "fp32", "", 1, None)
_RECORDED = Recorded(
    "before.json", "gone", {"cpu": "abacus"}, {"rounds": 2}, {_KEY: ((2.0, 2.1), (2.0, 2.2))}, ("hot",)
)
BENCHMARK_COMPARISON = BenchmarkComparison(
    "after.json",
    _RECORDED,
    dataclasses.replace(_RECORDED, file="after.json", machine={"cpu": "slide rule"}),
    (Change(_KEY, Interval(2.0, 1.9, 2.1), Interval(2.2, 2.1, 2.3), Ratio(1.1, 1.05, 1.15)),),
    0.05,
)

_ON_X: dict[str, Any] = {"artifact": "x-fp32", "backend": "x", "precision": "fp32", "details": {"engine": "x 1"}}
_LOAD: dict[str, Any] = {
    "machine": {"cpu": "abacus"},
    "settings": {"batch_sizes": [1], "device": "cpu", "threads": [0], "images": "2 files of a folder"},
    "left_out": LEFT_OUT,
}


def _replay(seed: int, *late_s: float, stopped: bool = False) -> Replay:
    """459 queries at 40 per second, most of which took 10 ms."""
    latencies = np.array([0.01] * (459 - len(late_s)) + [*late_s])
    return Replay(40.0, seed, 459, Answers(latencies, latencies, np.full(400, 1e-4), stopped))


STREAM = ScenarioBenchmark(
    "gone",
    Scenario("multi-stream", duration_s=1.0),
    results=(
        StreamResult(
            **_ON_X, batch_size=8, percentile=Percentile.of(99, list(range(1, 1001))), median_ms=500.0, seconds=20.0
        ),
        StreamResult(
            **_ON_X, changes="threads=1", batch_size=8, percentile=Percentile.of(99, [3.0, 4.0]), median_ms=3.5,
            seconds=0.01,
        ),
    ),
    skipped=(NotMeasured("y-fp16", "y", "fp16", None, "no such device"),),
    **_LOAD,
)  # fmt: skip

OFFLINE_RUN = ScenarioBenchmark(
    "gone",
    Scenario("offline", sessions=2),
    results=(OfflineResult(**_ON_X, batch_size=4, sessions=2, threads=ThreadCount(1, "one"), images=800, seconds=4.0),),
    **_LOAD,
)

SERVER_RUN = ScenarioBenchmark(
    "gone",
    Scenario("server", p99_ms=50.0),
    results=(
        ServerResult(
            **_ON_X, bound_ms=50.0, rate=40.0, invalid_rate=41.0, holds=0.99,
            replays=(_replay(1), _replay(2, 0.06, 0.06)), measured=9, searched=True,
        ),
        ServerResult(
            **_ON_X, bound_ms=50.0, rate=40.0, invalid_rate=None, holds=0.0,
            replays=(_replay(0, *[0.07] * 23, stopped=True),), measured=1, searched=False,
        ),
        ServerResult(
            **_ON_X, bound_ms=5.0, rate=None, invalid_rate=2.5, holds=None, replays=(_replay(0, stopped=True),),
            measured=1, searched=True,
        ),
        ServerResult(
            **_ON_X, bound_ms=0.5, rate=40.0, invalid_rate=None, holds=1.0, measured=1, searched=False,
            replays=(Replay(40.0, 0, 2, Answers(np.full(2, 4e-4), np.full(2, 4e-4), np.full(2, 1e-4), False)),),
        ),
    ),
    **_LOAD,
)  # fmt: skip


def gate_result(baseline: Path | None = None) -> GateResult:
    """One check of each outcome."""
    checks = (
        Check("finite", "torch fp32", 0.0, 0.0, "passed", "the logits of 0 of 4 images are not all finite"),
        Check("finite", "x fp32", 1.0, 0.0, "failed", "the logits of 1 of 4 images are not all finite"),
        Check("max_drop", "y fp16", None, 1.0, "skipped", "it could not run: no such device"),
    )
    changes = ("weights: model.safetensors: a -> b",) if baseline else ()
    return GateResult(
        bundle="gone",
        data="gone/data",
        checks=checks,
        images=len(EVALUATION.images),
        evaluation=EVALUATION,
        processor=EVALUATION.processor,
        left_out=EVALUATION.left_out,
        benchmark=BENCHMARK,
        baseline=baseline,
        changes=changes,
    )
