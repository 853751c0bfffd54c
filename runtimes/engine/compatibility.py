"""Compatibility check of an engine with this machine, from its manifest, before a library opens it."""

from __future__ import annotations

import math
import platform
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vitdeploy.bundle.bundle import Bundle
from vitdeploy.bundle.manifest import Artifact
from vitdeploy.errors import OtherHardwareError, UnavailableError, UsageError, typed_line
from vitdeploy.trt.gpu import Gpu

Shapes = Mapping[str, tuple[int, ...]]
ProfileShapes = Mapping[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if re.fullmatch("[0-9]{1,9}", part))


# Major versions between which a version-compatible engine is portable (NVIDIA's support matrix of TensorRT 11.4,
# "Engine Portability").
_ACROSS_MAJORS = ((10,), (11,))

# By hardware compatibility: does an engine built on one GPU run on another?
_COMPATIBLE: dict[str, Callable[[Mapping[str, Any], Gpu], bool]] = {
    "none": lambda built, gpu: (built["gpu"], built["compute_capability"]) == (gpu.name, gpu.compute_capability),
    "same_compute_capability": lambda built, gpu: built["compute_capability"] == gpu.compute_capability,
    "ampere_plus": lambda _, gpu: _number(gpu.compute_capability) >= (8, 0),
}


def check_version(bundle: Bundle, artifact: Artifact, package: str, version: str) -> None:
    """Raise UnavailableError unless this library version and this system can run the engine.

    A TensorRT-RTX engine whose last build step is left to the target machine runs on both Linux and Windows (NVIDIA's
    "CPU-Only AOT and TensorRT-RTX Engines").
    """
    hardware = artifact.hardware or {}
    built, here = str(artifact.tools.get(package)), f"{platform.system()} {platform.machine()}"
    later = artifact.options.get("version_compatible") is True and _runs_later(_number(built), _number(version))
    elsewhere = hardware.get("platform") != here and "compute_capabilities" not in hardware
    if (built != version and not later) or elsewhere:
        system = hardware.get("platform")
        raise UnavailableError(
            f"{bundle.path / artifact.files[0].path} was built by {package} {built} for {system}, this is "
            f"{package} {version} on {here}",
            what=package, where=bundle.path / artifact.files[0].path, expected=(built, system), found=(version, here),
            hint=_rebuild(bundle, artifact),
        )  # fmt: skip


def check_hardware(bundle: Bundle, artifact: Artifact, gpu: Gpu) -> None:
    """Raise OtherHardwareError unless the engine was built for this GPU.

    A TensorRT-RTX engine without a recorded compute capability is left to the library.
    """
    built = artifact.hardware or {}
    named = built.get("compute_capabilities")
    if named is None:
        rule = _COMPATIBLE.get(str(built.get("hardware_compatibility")))
        fits = rule is not None and {"gpu", "compute_capability"} <= set(built) and rule(built, gpu)
    else:
        fits = gpu.compute_capability in named or any(name.startswith("portable") for name in named)
    if not fits:
        made_for = ", ".join(f"{key} {value}" for key, value in built.items())
        raise OtherHardwareError(
            f"{bundle.path / artifact.files[0].path} was built for {made_for or 'nothing that its manifest names'}; "
            f"this is {gpu.name}, compute capability {gpu.compute_capability}",
            what="hardware", where=bundle.path / artifact.files[0].path, expected=dict(built),
            found=(gpu.name, gpu.compute_capability), hint=_rebuild(bundle, artifact),
        )  # fmt: skip


def choose_profile(profiles: Sequence[ProfileShapes], shapes: Shapes) -> int:
    """Index of the profile that takes these shapes and whose optimum is nearest.

    Args:
        profiles: Minimum, optimum and maximum shape of each input.

    Raises:
        UsageError: If no profile takes them.
    """
    fitting = [
        index
        for index, profile in enumerate(profiles)
        if all(
            all(low <= size <= high for low, size, high in zip(profile[name][0], shape, profile[name][2], strict=True))
            for name, shape in shapes.items()
        )
    ]
    if not fitting:
        taken = "; or ".join(
            ", ".join(f"'{name}' {low} to {high}" for name, (low, _, high) in profile.items()) for profile in profiles
        )
        got = ", ".join(f"'{name}' {shape}" for name, shape in shapes.items())
        raise UsageError(
            f"the engine takes {taken}, got {got}", what="shapes", expected=profiles, found=dict(shapes),
            hint="give shapes that it takes, or build it with another --batch",
        )  # fmt: skip
    return min(fitting, key=lambda index: _distance(profiles[index], shapes))


def _distance(profile: ProfileShapes, shapes: Shapes) -> float:
    """Distance of shapes from a profile's optimum: the factor of elements, in logarithms."""
    return sum(abs(math.log(math.prod(shape) / math.prod(profile[name][1]))) for name, shape in shapes.items())


def _runs_later(built: tuple[int, ...], here: tuple[int, ...]) -> bool:
    """True if a version-compatible engine of one version runs with another."""
    return built <= here and (built[:1] == here[:1] or (built[:1], here[:1]) == _ACROSS_MAJORS)


def _rebuild(bundle: Bundle, artifact: Artifact) -> str:
    return f"build it here: {rebuild_line(bundle, artifact)}"


def rebuild_line(bundle: Bundle, artifact: Artifact) -> str:
    """A shell command that rebuilds an engine from the ONNX artifact in its bundle."""
    options = ("--to", artifact.format, "--precision", artifact.precision, "-o", bundle.path)
    return typed_line("export", *options)
