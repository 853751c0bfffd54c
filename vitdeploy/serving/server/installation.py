"""Find an installation of Triton Inference Server: a path, PATH, or NVIDIA's wheel in this Python environment."""

from __future__ import annotations

import ctypes.util
import dataclasses
import importlib.util
import os
import shutil
import sys
import sysconfig
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

from packaging.version import Version

from vitdeploy.errors import MissingDependencyError, UnavailableError, UsageError

_NAME = "tritonserver"
_WHEEL = "pytriton"  # import name of nvidia-pytriton
_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
_STUB = "triton_python_backend_stub"
_PACKAGE = Path(__file__).parents[3]  # holds vitdeploy


@dataclasses.dataclass(frozen=True)
class Installation:
    """An installed Triton.

    Attributes:
        binary: Its `tritonserver`.
        wheel: The folder `pytriton/tritonserver` of nvidia-pytriton; None for another installation.
    """

    binary: Path
    wheel: Path | None = None

    def backends(self, folder: Path) -> Path | None:
        """The folder of backends; None for that which is compiled in.

        The wheel has a Python backend for each Python, which this links together in `folder`.

        Raises:
            UnavailableError: If the wheel has none for this Python, or this environment has numpy 2.
        """
        if self.wheel is None:
            beside = self.binary.resolve().parents[1] / "backends"
            return beside if beside.is_dir() else None
        stub = self.wheel / "python_backend_stubs" / _PYTHON / _STUB
        if not stub.is_file():
            known = sorted(path.name for path in stub.parents[1].iterdir())
            raise UnavailableError(
                f"nvidia-pytriton has no Python backend for Python {_PYTHON}, only for {', '.join(known)}",
                what="python", expected=known, found=_PYTHON, hint="use one of these, or name a Triton with --triton",
            )  # fmt: skip
        if Version(metadata.version("numpy")) >= Version("2"):
            raise UnavailableError(
                "the Python backend of nvidia-pytriton crashes with numpy 2", what="numpy", expected="numpy<2",
                found=metadata.version("numpy"), hint="run: pip install 'vitdeploy[triton]' 'numpy<2'",
            )  # fmt: skip
        backend = folder / "python"
        backend.mkdir(parents=True)
        for file in ((self.wheel / "backends" / "python").glob("*.*"), [stub]):
            for path in file:
                (backend / path.name).symlink_to(path)
        return folder

    def environ(self, given: Mapping[str, str]) -> dict[str, str]:
        """The environment of the process: its backend's Python is this one, and finds vitdeploy."""
        paths: dict[str, list[Path | str]] = {"PYTHONPATH": [_PACKAGE]}
        if self.wheel is not None:
            paths["PATH"] = [Path(sys.executable).parent]  # where an embedded Python looks for its environment
            paths["LD_LIBRARY_PATH"] = [*_python_library(), self.wheel.parents[1] / "nvidia_pytriton.libs"]
        joined = {
            name: os.pathsep.join([*map(str, first), *filter(None, [given.get(name)])]) for name, first in paths.items()
        }
        return {**given, **joined}


def find_installation(path: str | os.PathLike[str] | None = None) -> Installation:
    """The Triton at `path`, a `tritonserver` or a folder with `bin/tritonserver`; else that on PATH, else the wheel's.

    Raises:
        UsageError: If there is none at `path`.
        MissingDependencyError: If there is none.
    """
    if path is not None:
        places = [Path(path), Path(path) / "bin" / _NAME]
        for place in places:
            if place.is_file() and os.access(place, os.X_OK):
                return _at(place)
        raise UsageError(f"there is no {_NAME} at {path}", what="triton", where=path, found=path, hint="name its file")
    on_path = shutil.which(_NAME)
    if on_path is not None:
        return _at(Path(on_path))
    spec = importlib.util.find_spec(_WHEEL)
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        binary = Path(folder) / _NAME / "bin" / _NAME
        if binary.is_file():
            return _at(binary)
    raise MissingDependencyError(
        "Triton Inference Server", "triton", "name an installation with --triton, or run NVIDIA's container"
    )


def _at(binary: Path) -> Installation:
    """The installation of a binary; the wheel has stubs beside it."""
    above = binary.resolve().parents[1]
    return Installation(binary, above if (above / "python_backend_stubs").is_dir() else None)


def _python_library() -> list[str]:
    """The folder of this Python's shared library, if the system does not know it.

    Raises:
        UnavailableError: If it has none.
    """
    folder, name = (sysconfig.get_config_var(variable) for variable in ("LIBDIR", "INSTSONAME"))
    if folder and name and (Path(folder) / name).is_file():
        return [folder]
    if ctypes.util.find_library(f"python{_PYTHON}") or sys.version_info >= (3, 13):  # nvidia-pytriton has that of 3.13
        return []
    raise UnavailableError(
        "Triton's Python backend needs Python as a shared library, and this Python was built without",
        what="python", expected=f"libpython{_PYTHON}.so", found=sys.executable,
        hint=f"install libpython{_PYTHON}, or use a Python built with --enable-shared",
    )  # fmt: skip
