"""The smallest possible engine, to test a GPU with a library."""

from __future__ import annotations

from typing import Any

from vitdeploy.errors import DeviceError
from vitdeploy.specs import TensorSpec
from vitdeploy.trt.library import last_of, make_builder, make_logger, network_flags

X, Y = (TensorSpec(name, "float32", (2, 2)) for name in "xy")


def smallest_engine(library: Any, backend: str) -> bytes:
    """An engine that negates `X`, built on the current device.

    Raises:
        DeviceError: If the build failed.
    """
    logger = make_logger(library)
    builder = make_builder(library, backend, logger)
    network = builder.create_network(network_flags(library))
    layer = network.add_unary(network.add_input(X.name, library.float32, X.shape), library.UnaryOperation.NEG)
    output = layer.get_output(0)
    output.name = Y.name
    network.mark_output(output)
    plan = builder.build_serialized_network(network, builder.create_builder_config())
    if plan is None:
        reason = last_of(logger.errors)
        raise DeviceError(f"{backend} cannot build an engine of one layer: {reason}", what=backend, found=reason)
    return bytes(plan)
