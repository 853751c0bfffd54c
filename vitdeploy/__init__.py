"""Take a Vision Transformer to production, and prove that every artifact still is the same model."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from vitdeploy import telemetry

if TYPE_CHECKING:
    from vitdeploy.assess.benchmark import benchmark
    from vitdeploy.assess.bisection import Bisection, bisect
    from vitdeploy.assess.compare import Comparison, compare
    from vitdeploy.assess.evaluate import Evaluation, evaluate
    from vitdeploy.assess.gate import GateResult, gate
    from vitdeploy.assess.latency import Benchmark
    from vitdeploy.assess.sensitivity import Sensitivity, sensitivity
    from vitdeploy.bundle import Bundle
    from vitdeploy.engine_options import EngineOptions
    from vitdeploy.errors import VitDeployError
    from vitdeploy.model_repository import TritonModel, write_triton_model
    from vitdeploy.predictor import Prediction, Predictor, load
    from vitdeploy.processor import ImageProcessor
    from vitdeploy.processor_options import ProcessorOptions
    from vitdeploy.workflow import export

__version__ = "0.1.0"

telemetry.disable()  # here, since every module of the package is imported after it

__all__ = [
    "Benchmark",
    "Bisection",
    "Bundle",
    "Comparison",
    "EngineOptions",
    "Evaluation",
    "GateResult",
    "ImageProcessor",
    "Prediction",
    "Predictor",
    "ProcessorOptions",
    "Sensitivity",
    "TritonModel",
    "VitDeployError",
    "__version__",
    "benchmark",
    "bisect",
    "compare",
    "evaluate",
    "export",
    "gate",
    "load",
    "sensitivity",
    "write_triton_model",
]

# Imported on first use: `import vitdeploy` costs nothing, and no name needs more than it uses.
_MODULES = {
    "Benchmark": "assess.latency",
    "Bisection": "assess.bisection",
    "Bundle": "bundle",
    "Comparison": "assess.compare",
    "EngineOptions": "engine_options",
    "Evaluation": "assess.evaluate",
    "GateResult": "assess.gate",
    "ImageProcessor": "processor",
    "Prediction": "predictor",
    "Predictor": "predictor",
    "ProcessorOptions": "processor_options",
    "Sensitivity": "assess.sensitivity",
    "TritonModel": "model_repository",
    "VitDeployError": "errors",
    "benchmark": "assess.benchmark",
    "bisect": "assess.bisection",
    "compare": "assess.compare",
    "evaluate": "assess.evaluate",
    "export": "workflow",
    "gate": "assess.gate",
    "load": "predictor",
    "sensitivity": "assess.sensitivity",
    "write_triton_model": "model_repository",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
