"""The device of a GPU script, and the backends that run on it."""

from __future__ import annotations

import functools
import sys
from typing import Any

import torch

from gpu.rows import CannotRunError
from gpu.steps import SKIPPED
from vitdeploy.errors import UnavailableError
from vitdeploy.runtimes import runtime_class
from vitdeploy.runtimes.onnxrt.session import CPU, CUDA
from vitdeploy.trt.gpu import find_gpu


def check_device(device: str) -> None:
    """Exit with SKIPPED, and the reason, unless torch has the device."""
    if device != "cpu" and not torch.cuda.is_available():
        print("torch finds no CUDA device", flush=True)
        sys.exit(SKIPPED)


def about(device: str) -> dict[str, Any]:
    """Name, compute capability and driver of the device, for the record of a run."""
    if device == "cpu":
        return {"device": "cpu"}
    known: dict[str, Any] = {"device": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
    known["compute_capability"] = ".".join(map(str, torch.cuda.get_device_capability()))
    try:
        known["driver_cuda"] = find_gpu().driver
    except UnavailableError as exc:
        known["driver_cuda"] = f"not known: {exc}"
    return known


def check_backend(backend: str, device: str) -> None:
    """Raise CannotRunError unless the backend runs a smallest model on the device."""
    if (reason := _problem(backend, device)) is not None:
        raise CannotRunError(reason)


@functools.cache
def _problem(backend: str, device: str) -> str | None:
    try:
        problems = runtime_class(backend).probe()
    except UnavailableError as exc:
        return str(exc)
    if backend == "onnxruntime":
        place = CPU if device == "cpu" else CUDA
        return problems.get(place, f"this onnxruntime has no {place}, it has {', '.join(problems)}")
    return problems.get("cpu" if device == "cpu" else "cuda:0", next(iter(problems.values())))
