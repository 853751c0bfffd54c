"""Installed extras of vitdeploy, and the missing requirements of the others."""

from __future__ import annotations

import dataclasses
from importlib.metadata import Distribution, PackageNotFoundError, distribution, packages_distributions
from typing import TYPE_CHECKING, Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = "vitdeploy"
PURPOSES = {
    "onnxruntime": "run ONNX artifacts",
    "onnxruntime-gpu": "run ONNX artifacts on NVIDIA GPUs",
    "hub": "download from the Hugging Face Hub, and push to it",
    "torch": "run the reference and TorchScript",
    "export": "export, compare and debug",
    "report": "write HTML reports",
    "cuda": "find NVIDIA GPUs without torch",
    "openvino": "run OpenVINO and ONNX artifacts on CPUs",
    "tensorrt": "build and run TensorRT engines",
    "tensorrt-rtx": "build and run TensorRT-RTX engines",
    "parquet": "read labelled data from Parquet files",
    "signing": "sign bundles, and check signatures",
    "triton": "serve bundles with Triton Inference Server",
    "ray": "run jobs on Ray Data, and serve with Ray Serve",
    "demo": "export, and write HTML reports",
}
_FOR_DEVELOPERS = frozenset({"dev", "docs"})
_ONNXRUNTIME = "onnxruntime"  # a module installed by packages of several names, such as onnxruntime-gpu


@dataclasses.dataclass(frozen=True)
class Extra:
    """One extra.

    Attributes:
        name: Name in `pip install 'vitdeploy[NAME]'`.
        purpose: Short description.
        missing: Unmet requirements, such as "torch>=2.6" or "onnx>=1.17 (1.16.0 is installed)".
    """

    name: str
    purpose: str
    missing: tuple[str, ...]

    @property
    def installed(self) -> bool:
        return not self.missing

    @property
    def install_line(self) -> str:
        line = f"pip install '{PACKAGE}[{self.name}]'"
        if self.name == "onnxruntime-gpu" and _installed(_ONNXRUNTIME) is not None:
            return f"pip uninstall -y onnxruntime && {line}"
        return line

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "purpose": self.purpose, "installed": self.installed, "missing": list(self.missing)}


def extras() -> tuple[Extra, ...]:
    """All user-facing extras; empty if vitdeploy is not installed as a package."""
    package = _installed(PACKAGE)
    if package is None:
        return ()
    return tuple(
        Extra(name, PURPOSES.get(name, ""), tuple(dict.fromkeys(_missing(package, name))))
        for name in user_extras(package)
    )


def user_extras(package: Distribution) -> list[str]:
    """Names of its extras, except those for developers."""
    return [name for name in package.metadata.get_all("Provides-Extra", []) if name not in _FOR_DEVELOPERS]


def requirements(package: Distribution, extra: str = "") -> Iterator[Requirement]:
    """A package's requirements on this system; with an extra, those of the extra only."""
    for line in package.requires or ():
        requirement = Requirement(line)
        marker = requirement.marker
        if extra:
            applies = marker is not None and marker.evaluate({"extra": extra}) and not marker.evaluate({"extra": ""})
        else:
            applies = marker is None or marker.evaluate({"extra": ""})
        if applies:
            yield requirement


def _missing(package: Distribution, extra: str) -> Iterator[str]:
    for requirement in requirements(package, extra):
        if canonicalize_name(requirement.name) == PACKAGE:
            for further in sorted(requirement.extras):
                yield from _missing(package, further)
            continue
        there = _installed_for(requirement)
        if there is None:
            yield f"{requirement.name}{requirement.specifier}"
        elif not requirement.specifier.contains(there.version, prereleases=True):
            yield f"{requirement.name}{requirement.specifier} ({there.version} is installed)"


def _installed_for(requirement: Requirement) -> Distribution | None:
    package = _installed(requirement.name)
    if package is None and requirement.name == _ONNXRUNTIME:
        others = packages_distributions().get(_ONNXRUNTIME, [])
        package = next(filter(None, map(_installed, others)), None)
    return package


def _installed(name: str) -> Distribution | None:
    try:
        return distribution(name)
    except PackageNotFoundError:
        return None
