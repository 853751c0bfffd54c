"""Run a TensorRT engine."""

from __future__ import annotations

import tensorrt

from vitdeploy.runtimes.engine.runtime import EngineRuntime


class TensorRTRuntime(EngineRuntime):
    """See `EngineRuntime`; the second run of a shape is captured as a CUDA graph."""

    backend = "tensorrt"
    library = tensorrt
