"""Build and run the smallest engine that there is, to see whether a GPU and a library work together."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vitdeploy.errors import UnavailableError
from vitdeploy.runtimes.engine.cuda_memory import on_device
from vitdeploy.runtimes.engine.file import EngineFile
from vitdeploy.specs import TensorSpec
from vitdeploy.trt.library import make_builder, make_logger, network_flags

if TYPE_CHECKING:
    from vitdeploy.runtimes.engine.runtime import EngineRuntime
    from vitdeploy.trt.gpu import Gpu


def probe(runtime: type[EngineRuntime], gpu: Gpu) -> str | None:
    """Why a kind of runtime does not work on a GPU; None where it does."""
    x, y = (TensorSpec(name, "float32", (2, 2)) for name in "xy")
    try:
        with on_device(gpu.index):
            plan = _build(runtime)
        if isinstance(plan, str):
            return plan
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "probe.engine")
            path.write_bytes(plan)
            with runtime(EngineFile(path, (x,), (y,)), device=f"cuda:{gpu.index}") as opened:
                opened.run({"x": np.ones((2, 2), np.float32)})
    except UnavailableError as exc:
        return str(exc)
    return None


def _build(runtime: type[EngineRuntime]) -> bytes | str:
    """An engine that negates "x", or why it was not built."""
    library = runtime.library
    logger = make_logger(library)
    builder = make_builder(library, runtime.backend, logger)
    network = builder.create_network(network_flags(library))
    layer = network.add_unary(network.add_input("x", library.float32, (2, 2)), library.UnaryOperation.NEG)
    y = layer.get_output(0)
    y.name = "y"
    network.mark_output(y)
    plan = builder.build_serialized_network(network, builder.create_builder_config())
    if plan is None:
        return str(logger.errors[0]) if logger.errors else "an engine of one layer was not built"
    return bytes(plan)
