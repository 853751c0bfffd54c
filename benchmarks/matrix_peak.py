"""Peak performance of a device: operations per second of torch's matrix products."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

_TYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def matrix_peak(precision: str, device: str, size: int, runs: int = 10) -> float:
    """Operations per second of the product of two square matrices, median of `runs`.

    A multiplication and an addition count as two. float32 is not rounded to TF32; int8 accumulates in int32, E4M3 in
    float32.

    Raises:
        RuntimeError: If the device does not support the product.
    """
    work = _product(precision, device, size)
    for _ in range(3):
        work()
    times = []
    for _ in range(runs):
        synchronize(device)
        start = time.perf_counter()
        work()
        synchronize(device)
        times.append(time.perf_counter() - start)
    return 2 * size**3 / statistics.median(times)


def _product(precision: str, device: str, size: int) -> Callable[[], object]:
    if precision == "int8":
        a, b = (torch.randint(-128, 128, (size, size), dtype=torch.int8, device=device) for _ in range(2))
        return lambda: torch._int_mm(a, b)
    if precision == "fp8":
        a, b = (torch.randn(size, size, device=device).to(torch.float8_e4m3fn) for _ in range(2))
        one = torch.ones((), device=device)
        return lambda: torch._scaled_mm(a, b.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16)
    x, y = (torch.randn(size, size, dtype=_TYPES[precision], device=device) for _ in range(2))
    return lambda: torch.matmul(x, y)


def synchronize(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()
