"""Builder differences between TensorRT 10, TensorRT 11 and TensorRT-RTX, detected by a library's attributes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from vitdeploy.errors import UsageError
from vitdeploy.trt.library import compiles_on_target
from vitdeploy.trt.options import EngineOptions


class Capability(NamedTuple):
    """One builder option.

    Attributes:
        has: True if a library has it and respects it.
        apply: Sets the value, given the library, the builder's configuration and the value. Returns whether the library
            accepted it; None if the library does not report that.
    """

    has: Callable[[Any], bool]
    apply: Callable[[Any, Any, Any], bool | None]


def _flag(name: str) -> Callable[[Any, Any, Any], None]:
    def apply(trt: Any, config: Any, on: bool) -> None:
        flag = getattr(trt.BuilderFlag, name)
        (config.set_flag if on else config.clear_flag)(flag)

    return apply


def _has_flag(name: str) -> Callable[[Any], bool]:
    return lambda trt: hasattr(trt.BuilderFlag, name)


def _set_strip(trt: Any, config: Any, on: bool) -> None:
    """Strip weights, to refit the same ones later, for which TensorRT stores only placeholders.

    TensorRT-RTX's documentation prescribes REFIT, TensorRT's REFIT_IDENTICAL, with which other weights are invalid.
    """
    _flag("STRIP_PLAN")(trt, config, on)
    if on:
        given_again = _flag("REFIT") if compiles_on_target(trt) else _flag("REFIT_IDENTICAL")
        given_again(trt, config, True)


def _set_workspace(trt: Any, config: Any, mib: int | None) -> None:
    if mib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, mib << 20)


def _set_level(_trt: Any, config: Any, level: int) -> None:
    config.builder_optimization_level = level


def _set_hardware(trt: Any, config: Any, level: str) -> None:
    config.hardware_compatibility_level = getattr(trt.HardwareCompatibilityLevel, level.upper())


def _set_targets(trt: Any, config: Any, names: tuple[str, ...]) -> bool:
    if names:
        config.num_compute_capabilities = len(names)
    chosen = [getattr(trt.ComputeCapability, targets(trt)[name]) for name in names]
    return all(config.set_compute_capability(target, index) for index, target in enumerate(chosen))


def targets(trt: Any) -> dict[str, str]:
    """The library's name of each available compute capability: "8.9" is SM89."""
    names = [name for name in dir(trt.ComputeCapability) if name.startswith("SM")]
    return {f"{name[2:-1]}.{name[-1]}": name for name in sorted(names, key=lambda name: int(name[2:]))}


def _measures_kernels(trt: Any) -> bool:
    return not compiles_on_target(trt)


# By option name. `apply` treats the timing cache as a file only: see `vitdeploy.exporters.engine.build`.
CAPABILITIES = {
    "workspace_mib": Capability(lambda trt: hasattr(trt.MemoryPoolType, "WORKSPACE"), _set_workspace),
    "optimization_level": Capability(lambda trt: hasattr(trt.IBuilderConfig, "builder_optimization_level"), _set_level),
    "tf32": Capability(_has_flag("TF32"), _flag("TF32")),
    "timing_cache": Capability(_measures_kernels, lambda *_: None),
    "version_compatible": Capability(_measures_kernels, _flag("VERSION_COMPATIBLE")),
    "hardware_compatibility": Capability(_measures_kernels, _set_hardware),
    "compute_capabilities": Capability(compiles_on_target, _set_targets),
    "refit": Capability(_has_flag("REFIT"), _flag("REFIT")),
    "strip_weights": Capability(
        lambda trt: _has_flag("STRIP_PLAN")(trt) and hasattr(trt, "OnnxParserRefitter"), _set_strip
    ),
}


def check_options(trt: Any, name: str, options: EngineOptions) -> None:
    """Raise UsageError unless the library has each option that differs from its default.

    Args:
        name: One of `vitdeploy.trt.library.LIBRARIES`.
    """
    for option, value in options.chosen().items():
        if not CAPABILITIES[option].has(trt):
            raise UsageError(
                f"{name} {trt.__version__} has no option {option}, got {value!r:.80}", what=option,
                expected=tuple(supported for supported, row in CAPABILITIES.items() if row.has(trt)), found=value,
                hint="leave it out",
            )  # fmt: skip
    if options.compute_capabilities:
        known = targets(trt)
        for target in options.compute_capabilities:
            if target not in known:
                raise UsageError(
                    f"{name} does not build for compute capability {target}; it builds for {', '.join(known)}",
                    what="compute_capabilities", expected=known, found=target,
                )  # fmt: skip


def configure(trt: Any, config: Any, options: EngineOptions) -> None:
    """Set every option that the library has, including vitdeploy's defaults, which are the same for every version.

    Raises:
        UsageError: If the library refuses a value.
    """
    for option, row in CAPABILITIES.items():
        value = getattr(options, option)
        if row.has(trt) and row.apply(trt, config, value) is False:
            raise UsageError(
                f"version {trt.__version__} of the library refuses {option} {value!r:.80}", what=option, found=value
            )
