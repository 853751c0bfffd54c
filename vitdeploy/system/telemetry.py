"""Turn off the libraries' usage reports before they are imported."""

from __future__ import annotations

import os
import sys

# Read when the library is imported. onnxruntime: Privacy.md in its package. huggingface_hub: its page "Environment
# variables"; transformers and hf_xet read it too. torch, onnx, onnxscript, safetensors and TensorRT report nothing.
_ONNXRUNTIME = "ORT_DISABLE_TELEMETRY"
VARIABLES = (_ONNXRUNTIME, "HF_HUB_DISABLE_TELEMETRY")


def disable() -> None:
    """Set the variables in this process and its children. A user's setting is kept.

    If an application imported onnxruntime first, its device id and event store exist, and its first event is sent: only
    later events can be stopped.
    """
    undecided = _ONNXRUNTIME not in os.environ
    for name in VARIABLES:
        os.environ.setdefault(name, "1")
    # Missing while another thread imports the library, or in a module that only has its name.
    stop = getattr(sys.modules.get("onnxruntime"), "disable_telemetry_events", None)
    if undecided and stop is not None:
        stop()
