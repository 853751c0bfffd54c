"""Take Vision Transformers to production, and verify that every artifact still is the same model."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from vitdeploy.system import telemetry

if TYPE_CHECKING:
    from vitdeploy._version import __version__
    from vitdeploy.assess.benchmark.benchmark import benchmark
    from vitdeploy.assess.benchmark.comparison import BenchmarkComparison, compare_benchmarks
    from vitdeploy.assess.benchmark.result import Benchmark
    from vitdeploy.assess.benchmark.scenarios.options import Scenario
    from vitdeploy.assess.benchmark.scenarios.results import ScenarioBenchmark
    from vitdeploy.assess.benchmark.scenarios.scenario_benchmark import benchmark_scenario
    from vitdeploy.assess.benchmark.tuning import Tuning
    from vitdeploy.assess.compare.compare import compare
    from vitdeploy.assess.compare.results import Comparison
    from vitdeploy.assess.debug.bisection import Bisection, bisect
    from vitdeploy.assess.debug.sensitivity import Sensitivity, sensitivity
    from vitdeploy.assess.evaluate.embeddings import EmbeddingEvaluation, evaluate_embeddings
    from vitdeploy.assess.evaluate.evaluate import Evaluation, evaluate
    from vitdeploy.assess.gate.gate import GateResult, gate
    from vitdeploy.batch.embed_job import EmbeddedImages, embed
    from vitdeploy.batch.predict_job import PredictedImages, predict
    from vitdeploy.bundle.bundle import Bundle
    from vitdeploy.delivery.hub_upload import PushedBundle, push
    from vitdeploy.delivery.loading import load
    from vitdeploy.delivery.packing import pack
    from vitdeploy.delivery.signing import sign
    from vitdeploy.errors import VitDeployError
    from vitdeploy.exporting.graph_options import GraphOptions
    from vitdeploy.exporting.options import (
        Calibration,
        MaxDrop,
        MinAgreement,
        MinCosine,
        Quantization,
        SourceOptions,
        ValidationOptions,
    )
    from vitdeploy.exporting.workflow import export
    from vitdeploy.images.processor import ImageProcessor
    from vitdeploy.images.processor_options import ProcessorOptions
    from vitdeploy.predictor import Prediction, Predictor
    from vitdeploy.runtimes.warmed_shapes import WarmedShape
    from vitdeploy.serving.in_process.async_predictor import AsyncPredictor
    from vitdeploy.serving.in_process.lazy_predictor import LazyPredictor
    from vitdeploy.serving.in_process.micro_batcher import MicroBatcher
    from vitdeploy.serving.in_process.reloading_predictor import ReloadingPredictor
    from vitdeploy.serving.model_repository.model_folder import TritonModel
    from vitdeploy.serving.model_repository.python_options import PythonBackend
    from vitdeploy.serving.model_repository.python_repository import write_python_model
    from vitdeploy.serving.model_repository.repository import write_triton_model
    from vitdeploy.sources.architectures.weights_options import WeightsFile
    from vitdeploy.system.progress import Progress
    from vitdeploy.trt.options import EngineOptions
    from vitdeploy.tuning.tune import tune

telemetry.disable()  # here, because every module of the package is imported after it

__all__ = [
    "AsyncPredictor",
    "Benchmark",
    "BenchmarkComparison",
    "Bisection",
    "Bundle",
    "Calibration",
    "Comparison",
    "EmbeddedImages",
    "EmbeddingEvaluation",
    "EngineOptions",
    "Evaluation",
    "GateResult",
    "GraphOptions",
    "ImageProcessor",
    "LazyPredictor",
    "MaxDrop",
    "MicroBatcher",
    "MinAgreement",
    "MinCosine",
    "PredictedImages",
    "Prediction",
    "Predictor",
    "ProcessorOptions",
    "Progress",
    "PushedBundle",
    "PythonBackend",
    "Quantization",
    "ReloadingPredictor",
    "Scenario",
    "ScenarioBenchmark",
    "Sensitivity",
    "SourceOptions",
    "TritonModel",
    "Tuning",
    "ValidationOptions",
    "VitDeployError",
    "WarmedShape",
    "WeightsFile",
    "__version__",
    "benchmark",
    "benchmark_scenario",
    "bisect",
    "compare",
    "compare_benchmarks",
    "embed",
    "evaluate",
    "evaluate_embeddings",
    "export",
    "gate",
    "load",
    "pack",
    "predict",
    "push",
    "sensitivity",
    "sign",
    "tune",
    "write_python_model",
    "write_triton_model",
]

# Imported on first use: `import vitdeploy` is cheap, and a name loads only its own dependencies.
_MODULES = {
    "AsyncPredictor": "serving.in_process.async_predictor",
    "Benchmark": "assess.benchmark.result",
    "BenchmarkComparison": "assess.benchmark.comparison",
    "Bisection": "assess.debug.bisection",
    "Bundle": "bundle.bundle",
    "Calibration": "exporting.options",
    "Comparison": "assess.compare.compare",
    "EmbeddedImages": "batch.embed_job",
    "EmbeddingEvaluation": "assess.evaluate.embeddings",
    "EngineOptions": "trt.options",
    "Evaluation": "assess.evaluate.evaluate",
    "GateResult": "assess.gate.gate",
    "GraphOptions": "exporting.graph_options",
    "ImageProcessor": "images.processor",
    "LazyPredictor": "serving.in_process.lazy_predictor",
    "MaxDrop": "exporting.options",
    "MicroBatcher": "serving.in_process.micro_batcher",
    "MinAgreement": "exporting.options",
    "MinCosine": "exporting.options",
    "PredictedImages": "batch.predict_job",
    "Prediction": "predictor",
    "Predictor": "predictor",
    "ProcessorOptions": "images.processor_options",
    "Progress": "system.progress",
    "PushedBundle": "delivery.hub_upload",
    "PythonBackend": "serving.model_repository.python_options",
    "Quantization": "exporting.options",
    "ReloadingPredictor": "serving.in_process.reloading_predictor",
    "Scenario": "assess.benchmark.scenarios.options",
    "ScenarioBenchmark": "assess.benchmark.scenarios.results",
    "Sensitivity": "assess.debug.sensitivity",
    "SourceOptions": "exporting.options",
    "TritonModel": "serving.model_repository.model_folder",
    "Tuning": "assess.benchmark.tuning",
    "ValidationOptions": "exporting.options",
    "VitDeployError": "errors",
    "WarmedShape": "runtimes.warmed_shapes",
    "WeightsFile": "sources.architectures.weights_options",
    "__version__": "_version",
    "benchmark": "assess.benchmark.benchmark",
    "benchmark_scenario": "assess.benchmark.scenarios.scenario_benchmark",
    "bisect": "assess.debug.bisection",
    "compare": "assess.compare.compare",
    "compare_benchmarks": "assess.benchmark.comparison",
    "embed": "batch.embed_job",
    "evaluate": "assess.evaluate.evaluate",
    "evaluate_embeddings": "assess.evaluate.embeddings",
    "export": "exporting.workflow",
    "gate": "assess.gate.gate",
    "load": "delivery.loading",
    "pack": "delivery.packing",
    "predict": "batch.predict_job",
    "push": "delivery.hub_upload",
    "sensitivity": "assess.debug.sensitivity",
    "sign": "delivery.signing",
    "tune": "tuning.tune",
    "write_python_model": "serving.model_repository.python_repository",
    "write_triton_model": "serving.model_repository.repository",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__  # completion shows public names only; Python sorts them
