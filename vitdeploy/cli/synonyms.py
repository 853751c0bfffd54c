"""Other tools' names for vitdeploy's commands, options and values."""

from __future__ import annotations

import re

# Not aliases of the command: elsewhere they have other arguments and results.
COMMANDS = {
    "val": "evaluate",
    "validate": "compare",
    "check": "compare",
    "diff": "compare",
    "test": "gate",
    "run": "predict",
    "infer": "predict",
    "inference": "predict",
    "classify": "predict",
    "convert": "export",
    "build": "export",
    "compile": "export",
    "quantize": "export",
    "optimize": "export",
    "time": "benchmark",
    "profile": "benchmark",
    "autotune": "tune",
    "deploy": "triton",
    "publish": "push",
    "upload": "push",
    "prune": "pack",
    "info": "inspect",
    "show": "inspect",
    "checks": "doctor",
    "env": "doctor",
}

# Aliases of the option, in every command that has it.
OPTIONS = {
    "--half": "--fp16",  # Ultralytics
    "--format": "--to",
    "--imgsz": "--image-size",
    "--quantize": "--precision",
    "--dtype": "--precision",  # Optimum
    "--topk": "--top-k",
    "--out": "--output",
    "--output-dir": "--output",
}

FORMATS = {
    "engine": "tensorrt",
    "trt": "tensorrt",
    "ts": "torchscript",
    "jit": "torchscript",
    "ov": "openvino",
    "ir": "openvino",
}
PRECISIONS = {"half": "fp16", "float16": "fp16", "bfloat16": "bf16", "float32": "fp32", "float": "fp32"}


def device(name: str) -> str:
    """PyTorch's name of a device: "gpu" is "cuda", and "1", as in Ultralytics, is "cuda:1"."""
    name = re.sub("^gpu(?=$|:)", "cuda", name)
    return f"cuda:{name}" if re.fullmatch("[0-9]{1,3}", name) else name
