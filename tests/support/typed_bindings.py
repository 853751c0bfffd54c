"""Objects with the attributes, and the return types, that NVIDIA's bindings document for each class; nothing runs.

The code that builds and runs engines is driven over them, so that whatever it asks an object for is asked of the
object's class, however the variable that holds it is called.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import inspect
import itertools
import re
import types
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
from environments import ROOT
from fake_cuda import FakeCuda, OnTheGpu, aligned

from vitdeploy.errors import CheckFailedError, DeviceError, UsageError
from vitdeploy.exporters.engine.build import EngineRequest, _build
from vitdeploy.exporters.engine.capabilities import CAPABILITIES
from vitdeploy.runtimes.engine import cuda_memory
from vitdeploy.runtimes.engine.file import EngineFile
from vitdeploy.runtimes.engine.options import KERNEL_SPECIALIZATIONS, EngineRuntimeOptions
from vitdeploy.runtimes.engine.probe import X, Y
from vitdeploy.runtimes.engine.runtime import EngineRuntime
from vitdeploy.specs import AxisRange
from vitdeploy.system.option_fields import options_in
from vitdeploy.trt import gpu
from vitdeploy.trt.library import compiles_on_target
from vitdeploy.trt.options import EngineOptions

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_MADE = ("Builder", "OnnxParser", "OnnxParserRefitter", "Refitter", "Runtime")  # with a call of the class
_PLAIN = {"bool": True, "int": 1, "str": "text", "None": None, "list": [], "IHostMemory": b"memory", "Dims": X.shape}
_FILES = ("vitdeploy/trt", "exporters/engine", "runtimes/engine")
# Attributes of our own objects, which classes of TensorRT have as well.
_OF_OTHERS = {"dtype", "file", "precision", "shape"}


class Library:
    """A module of bindings.

    Args:
        module: The module.

    Attributes:
        used: "class.attribute" of everything that was asked for.
        answers: By the same names, values in place of those that stand for a return type.
    """

    def __init__(self, module: Any) -> None:
        self.module = module
        self.used: set[str] = set()
        self.answers: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.module, name)
        self.used.add(name)
        return (lambda *_: Typed(self, value)) if name in _MADE else value

    def value(self, name: str, doc: str) -> Any:
        """The answer to a call, or a value of the type that its documentation states."""
        if name in self.answers:
            return self.answers[name]
        stated = re.search(r"-> ([\w.:]+)", doc)
        assert stated is not None, f"{name}: {doc}"
        kind = re.split(r"[.:]", stated[1])[-1]
        if kind in _PLAIN:
            return _PLAIN[kind]
        found = getattr(self.module, kind, None) or getattr(self.module, kind.removeprefix("I"))
        members = getattr(found, "__members__", None)
        return Typed(self, found) if members is None else next(iter(members.values()))


class Typed:
    """An object of a class of the bindings."""

    def __init__(self, library: Library, kind: type) -> None:
        self.__dict__.update(_library=library, _kind=kind)

    def __getattr__(self, name: str) -> Any:
        member = getattr(self._kind, name)
        full = f"{self._kind.__name__}.{name}"
        self._library.used.add(full)
        if isinstance(member, property):
            return self._library.value(full, inspect.getdoc(member.fget) or "")

        def call(*arguments: Any, **_: Any) -> Any:
            value = self._library.value(full, member.__doc__)
            return value(*arguments) if isinstance(value, types.FunctionType) else value

        return call

    def __setattr__(self, name: str, _: Any) -> None:
        member = getattr(self._kind, name)
        assert isinstance(member, property)
        assert member.fset is not None, f"{self._kind.__name__}.{name} cannot be set"
        self._library.used.add(f"{self._kind.__name__}.{name}")


def drive(module: Any, backend: str, folder: Path) -> Library:
    """Build engines, and open, run and refit one, over a module of bindings, with every option that it has."""
    library, cuda = Library(module), FakeCuda()
    (folder / "model.onnx").write_bytes(b"a graph")
    library.answers = {
        "ICudaEngine.get_tensor_name": lambda index: "xy"[index],
        "ICudaEngine.get_tensor_mode": lambda name: getattr(module.TensorIOMode, {"x": "INPUT", "y": "OUTPUT"}[name]),
        "ICudaEngine.get_tensor_profile_shape": [X.shape] * 3,
        "ICudaEngine.num_io_tensors": 2,
        "Runtime.get_engine_validity": (0, 0),
    }
    with (
        mock.patch.object(gpu, "cuda_runtime", return_value=cuda),
        mock.patch.object(cuda_memory, "cuda_runtime", return_value=cuda),
    ):
        _build_all(library, backend, folder)
        _run_all(library, backend, folder)
    assert cuda.live == {}
    return library


@contextlib.contextmanager
def _answered(library: Library, error: type[Exception], **answers: Any) -> Iterator[None]:
    """With other answers, with which the block fails."""
    with mock.patch.dict(library.answers, {name.replace("__", "."): value for name, value in answers.items()}):
        try:
            yield
        except error:
            return
    raise AssertionError(f"{answers} raise no {error.__name__}")


def _build_all(library: Any, backend: str, folder: Path) -> None:
    asked: dict[str, Any] = {"workspace_mib": 64, "tf32": True, "version_compatible": True, "refit": True,
                             "strip_weights": True, "compute_capabilities": ("8.9",)}  # fmt: skip
    options = EngineOptions(**{name: value for name, value in asked.items() if CAPABILITIES[name].has(library)})
    request = EngineRequest(
        backend, folder / "model.onnx", "fp16", (X,), (Y,), [{"batch": AxisRange(2, 2, 2)}], options,
        folder / "timing-cache", folder / "log",
    )  # fmt: skip
    (known,) = (option.choices for field, option in options_in(EngineOptions) if field.name == "hardware_compatibility")
    levels = known if CAPABILITIES["hardware_compatibility"].has(library) else ()
    every = [dataclasses.replace(options, hardware_compatibility=level) for level in levels]
    for given in (EngineOptions(), options, *every):
        _build(library, dataclasses.replace(request, options=given), folder, "x.engine", [])
    with _answered(library, CheckFailedError, OnnxParser__parse_from_file=False, ParserError__node_name=""):
        _build(library, request, folder, "x.engine", [])


def _run_all(library: Any, backend: str, folder: Path) -> None:
    runtime_class: Any = type("Driven", (EngineRuntime,), {"backend": backend, "library": library})
    compiles = compiles_on_target(library)
    assert set(runtime_class.probe().values()) == {None}
    onnx = folder / "model.onnx"
    engine = EngineFile(folder / "x.engine", (X,), (Y,), weights=onnx, host_code=True, takes_weights=True)
    feeds = {"x": np.ones((2, 2), np.float32)}
    for graphs, kernels in itertools.product((True, False), KERNEL_SPECIALIZATIONS if compiles else (None,)):
        options = EngineRuntimeOptions(
            cuda_graphs=graphs, kernel_specialization=kernels, runtime_cache=folder / "kernels" if compiles else None
        )
        with runtime_class(engine, options) as runtime:
            for _ in range(3):  # run, recorded and replayed
                runtime.run(feeds)
            runtime.refit(onnx)
            with mock.patch.dict(library.answers, {"IExecutionContext.update_device_memory_size_for_shapes": 0}):
                runtime.run(feeds)
            arrays = {name: OnTheGpu(aligned(np.ones((2, 2), np.float32)), (2, 0)) for name in "xy"}
            runtime.run_device({"x": arrays["x"]}, {"y": arrays["y"]})
            with _answered(library, UsageError, OnnxParserRefitter__refit_from_file=False):
                runtime.refit(onnx)
    if compiles:
        with _answered(library, DeviceError, Runtime__get_engine_validity=(library.EngineValidity.INVALID, 1)):
            runtime_class(engine)


def not_driven(library: Library) -> list[str]:
    """Attributes in the code that a driven class of the bindings has, and that no object of theirs was asked for."""
    last = {name.rpartition(".")[2] for name in library.used}
    kinds = [getattr(library.module, name.partition(".")[0]) for name in library.used if "." in name]
    found = set()
    for folder in _FILES:
        for path in (ROOT / folder).glob("*.py"):
            nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            found |= {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    names = {name for name in found - last - _OF_OTHERS if not name.startswith("__")}
    return sorted(name for name in names if any(hasattr(kind, name) for kind in kinds))
