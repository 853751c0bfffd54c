"""TensorRT and TensorRT-RTX: the table of libraries, their import, and their logger."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TextIO

from vitdeploy.errors import DeviceError
from vitdeploy.system.imports import load_package


class Library(NamedTuple):
    """A TensorRT library.

    Attributes:
        package: Import name.
        instead: Advice if the library, or a GPU for it, is missing.
    """

    package: str
    instead: str


# By backend name, which is also the extra's and the artifact's format.
LIBRARIES = {
    "tensorrt": Library("tensorrt", "or export --to tensorrt-rtx, which builds without a GPU"),
    "tensorrt-rtx": Library("tensorrt_rtx", ""),
}


def load_library(name: str, what: str) -> Any:
    """Import a library.

    Args:
        name: Name in `LIBRARIES`.
        what: Feature that needs it, such as "the tensorrt backend".

    Raises:
        MissingDependencyError: If it is not installed.
        UnavailableError: If it does not load.
    """
    row = LIBRARIES[name]
    return load_package(row.package, what, name, row.instead)


def compiles_on_target(trt: Any) -> bool:
    """True if the library leaves the last build step to the target machine, as TensorRT-RTX does.

    It then builds without a GPU, for named compute capabilities, and measures nothing: timing cache, version and
    hardware compatibility have no effect (TensorRT-RTX 1.7 warns, or fails to build).
    """
    return hasattr(trt, "ComputeCapability")


def network_flags(trt: Any) -> int:
    """Strongly typed: the engine has the ONNX graph's tensor types. Implied since TensorRT 11."""
    return 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)


def make_logger(trt: Any, file: TextIO | None = None) -> Any:
    """A logger that writes the library's messages to a file, and collects its errors, one line each, in `errors`.

    An exception cannot pass through the library, which may hold a lock: a failed write is recorded in `lost`, and
    messages after the file was closed are dropped.
    """

    class FileLogger(trt.ILogger):  # type: ignore[misc]  # the base is known when the library is
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []
            self.lost: OSError | None = None

        def log(self, severity: Any, message: str) -> None:
            name = str(severity).rpartition(".")[2]
            if name in ("ERROR", "INTERNAL_ERROR"):
                self.errors.append(" ".join(message.split()))
            if file is not None and not file.closed and name != "VERBOSE":
                try:
                    file.write(f"{name}: {message}\n")
                except OSError as exc:
                    self.lost = exc

    return FileLogger()


def last_of(errors: Sequence[str]) -> str:
    return errors[-1] if errors else "it does not say why"


def make_builder(trt: Any, name: str, logger: Any) -> Any:
    """The library's builder.

    Raises:
        DeviceError: If it needs a GPU, and there is none.
    """
    return _create(trt.Builder, name, logger, "build")


def make_runtime(trt: Any, name: str, logger: Any) -> Any:
    """The library's runtime, which loads engines.

    Raises:
        DeviceError: If it needs a GPU, and there is none.
    """
    return _create(trt.Runtime, name, logger, "run")


def _create(kind: Any, name: str, logger: Any, verb: str) -> Any:
    try:
        return kind(logger)
    except (TypeError, RuntimeError) as exc:  # pybind11's result for a null pointer
        reason = f": {logger.errors[0]}" if logger.errors else ""
        raise DeviceError(
            f"{name} found no NVIDIA GPU with a driver, which it needs to {verb} an engine{reason}", what="gpu",
            hint=f"use a machine with one, {LIBRARIES[name].instead}".rstrip(", ") if verb == "build" else None,
        ) from exc  # fmt: skip
