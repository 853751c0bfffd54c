"""Run a TensorRT engine."""

from __future__ import annotations

import tensorrt

from vitdeploy.runtimes.engine import EngineRuntime


class TensorRTRuntime(EngineRuntime):
    """See `EngineRuntime`; each shape's work is captured as a CUDA graph."""

    backend = "tensorrt"
    library = tensorrt
