"""Run a batch on a model that takes one image a run: the streams share the images."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from vitdeploy.system.telemetry import without_reporter

with without_reporter():
    import openvino as ov

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

_QUEUED = 2  # runs a stream: one that it computes, and one that waits, so that it never waits for Python


def run_images(compiled: Any, arrays: Sequence[np.ndarray], results: Sequence[np.ndarray]) -> None:
    """Run on each image of `arrays`, the inputs, and write to `results`, the outputs: C-contiguous, (N, ...)."""
    count = len(arrays[0])
    if count == 1 or compiled.get_property("INFERENCE_NUM_THREADS") == 1:
        request = compiled.create_infer_request()  # runs in the caller's thread: a forked child has no other
        for index in range(count):
            _bind(request, arrays, results, index)
            request.infer()
        return
    most = min(count, _QUEUED * compiled.get_property("NUM_STREAMS"))
    requests = [compiled.create_infer_request() for _ in range(most)]
    try:
        for index in range(count):
            request = requests[index % most]
            request.wait()
            _bind(request, arrays, results, index)
            request.start_async()
        for request in requests:
            request.wait()
    except BaseException:
        for request in requests:  # they write to `results`
            with contextlib.suppress(RuntimeError):
                request.cancel()
                request.wait()
        raise


def _bind(request: Any, arrays: Sequence[np.ndarray], results: Sequence[np.ndarray], index: int) -> None:
    for port, array in enumerate(arrays):
        request.set_input_tensor(port, ov.Tensor(array[index : index + 1], shared_memory=True))
    for port, array in enumerate(results):
        request.set_output_tensor(port, ov.Tensor(array[index : index + 1], shared_memory=True))
