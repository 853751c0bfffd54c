"""Run a TensorRT-RTX engine, whose kernels are compiled on the target machine."""

from __future__ import annotations

import tensorrt_rtx

from vitdeploy.runtimes.engine.runtime import EngineRuntime


class TensorRTRTXRuntime(EngineRuntime):
    """See `EngineRuntime`; the library records CUDA graphs itself, even for a new shape."""

    backend = "tensorrt-rtx"
    library = tensorrt_rtx
