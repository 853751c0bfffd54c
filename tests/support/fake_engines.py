"""Engine runtimes on the fake of `fake_cuda.py`, which takes "x" (batch, 4) and gives "y" (batch), the sums."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import TYPE_CHECKING, Any

from fake_cuda import FakeCuda, fake_library

from vitdeploy.runtimes.engine import cuda_memory
from vitdeploy.runtimes.engine.file import EngineFile
from vitdeploy.runtimes.engine.options import EngineRuntimeOptions
from vitdeploy.runtimes.engine.runtime import EngineRuntime
from vitdeploy.specs import TensorSpec
from vitdeploy.trt import gpu

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import pytest

    Open = Callable[..., EngineRuntime]

INPUTS = (TensorSpec("x", "float32", ("batch", 4)),)
OUTPUTS = (TensorSpec("y", "float32", ("batch",)),)


@contextlib.contextmanager
def patched_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCuda]:
    """A fake of CUDA; after the test, everything must be closed, and the thread on its first device."""
    fake = FakeCuda()
    for module in (gpu, cuda_memory):
        monkeypatch.setattr(module, "cuda_runtime", lambda: fake)
    yield fake
    assert fake.live == {}
    assert fake.device == 0
    assert {stream.flags for stream in fake.streams} <= {fake.cudaStreamNonBlocking}, "no stream waits for another"


def opener(cuda: FakeCuda, folder: Path, name: str) -> Open:
    """A function that opens an engine of a library on the second device."""

    class Fake(EngineRuntime):
        backend = name
        library = fake_library(cuda, rtx=name == "tensorrt-rtx")

    (folder / "x.engine").write_bytes(b"an engine")

    def opened(device: str = "cuda:1", **given: Any) -> EngineRuntime:
        fields = {field.name for field in dataclasses.fields(EngineFile)} & given.keys()
        engine = {"inputs": INPUTS, "outputs": OUTPUTS, **{name: given.pop(name) for name in fields}}
        return Fake(EngineFile(folder / "x.engine", **engine), EngineRuntimeOptions(**given), device=device)

    return opened
