"""Turn off the libraries' usage reports before they are imported."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

# Read when the library is imported. onnxruntime: Privacy.md in its package. huggingface_hub: its page "Environment
# variables"; transformers and hf_xet read it too. torch, onnx, onnxscript, safetensors and TensorRT report nothing.
# Ray reads its variable when a cluster is started: its page "Usage Stats Collection".
_ONNXRUNTIME = "ORT_DISABLE_TELEMETRY"
VARIABLES = {_ONNXRUNTIME: "1", "HF_HUB_DISABLE_TELEMETRY": "1", "RAY_USAGE_STATS_ENABLED": "0"}
_OPENVINO, _REPORTER = "openvino", "openvino_telemetry"


def disable() -> None:
    """Set the variables in this process and its children. A user's setting is kept.

    If an application imported onnxruntime first, its device id and event store exist, and its first event is sent: only
    later events can be stopped.
    """
    undecided = _ONNXRUNTIME not in os.environ
    for name, off in VARIABLES.items():
        os.environ.setdefault(name, off)
    # Missing while another thread imports the library, or in a module that only has its name.
    stop = getattr(sys.modules.get("onnxruntime"), "disable_telemetry_events", None)
    if undecided and stop is not None:
        stop()


@contextlib.contextmanager
def without_reporter() -> Iterator[None]:
    """Import openvino in this block: it then takes the stub that it has for installations without openvino-telemetry.

    That package has no switch but a file in the home folder. Its own import works again after the block, so that an
    application can still use it. If the application imported openvino first, nothing changes: the import was reported,
    and vitdeploy calls no function that reports.
    """
    if _OPENVINO in sys.modules:
        yield
        return
    hidden = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] == _REPORTER}
    sys.modules[_REPORTER] = None  # type: ignore[assignment]  # the import system's mark for "does not exist"
    try:
        yield
    finally:
        sys.modules.pop(_REPORTER, None)
        sys.modules.update(hidden)
