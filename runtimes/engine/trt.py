"""Run a TensorRT engine."""

from __future__ import annotations

import tensorrt

from vitdeploy.runtimes.engine.runtime import EngineRuntime


class TensorRTRuntime(EngineRuntime):
    """See `EngineRuntime`; a shape's work is captured as a CUDA graph at its second run."""

    backend = "tensorrt"
    library = tensorrt
