"""Run a TensorRT-RTX engine, whose kernels are compiled on the machine that runs it."""

from __future__ import annotations

import tensorrt_rtx

from vitdeploy.runtimes.engine.runtime import EngineRuntime


class TensorRTRTXRuntime(EngineRuntime):
    """See `EngineRuntime`; the library records CUDA graphs itself, also where a shape is new."""

    backend = "tensorrt-rtx"
    library = tensorrt_rtx
