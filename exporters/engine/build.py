"""Build a strongly typed engine from an ONNX artifact: the engine keeps its tensor types."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import platform
import traceback
from collections.abc import Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any

from vitdeploy.errors import CheckFailedError, DeviceError, OutputError, check_utf_8, readable
from vitdeploy.exporters import Exported
from vitdeploy.exporters.engine.capabilities import CAPABILITIES, check_options, configure
from vitdeploy.exporters.engine.interrupts import interrupts_held
from vitdeploy.exporters.engine.progress import make_monitor
from vitdeploy.files.atomic import write_file
from vitdeploy.files.output_files import check_writable
from vitdeploy.files.regular_file import read_regular
from vitdeploy.specs import Precision, TensorSpec
from vitdeploy.system.progress import SILENT, Progress
from vitdeploy.trt.gpu import find_gpu
from vitdeploy.trt.library import LIBRARIES, compiles_on_target, load_library, make_builder, make_logger, network_flags
from vitdeploy.trt.options import BATCH, EngineOptions, Profile, colons

# Workarounds for operators that the libraries refuse (seen with TensorRT-RTX 1.7).
_AVOIDED_BY = {
    "Attention": "export the ONNX artifact with --opset 22 or less, which has no such operator",
    "QuantizeLinear": "choose --fp16 or --bf16",
    "DequantizeLinear": "choose --fp16 or --bf16",
}
_OTHERWISE = "export the ONNX artifact again with its default options, without --optimize"
# For builds that name no compute capability, TensorRT-RTX's documentation requires "if the model precisions are
# supported on the target architecture"; E4M3 is from 8.9 on. The builder refuses others that are named.
_TARGETS = "portable: 8.0, 8.6, 8.9, 12.0 and later"
_TARGETS_OF = {Precision.FP8: "portable: 8.9, 12.0 and later"}

_MOST_TIMING_CACHE_BYTES = 256 * 1024**2


@dataclasses.dataclass(frozen=True)
class EngineRequest:
    """A request for an engine.

    Attributes:
        library: One of `vitdeploy.trt.library.LIBRARIES`.
        onnx: The ONNX artifact's verified file.
        profiles: Sizes of its dynamic axes; see `EngineOptions.profiles`.
        timing_cache: File of kernel timings, read if it exists and updated.
        log: File for the builder's log.
    """

    library: str
    onnx: Path
    precision: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    profiles: Sequence[Profile]
    options: EngineOptions
    timing_cache: Path
    log: Path
    progress: Progress = SILENT


@dataclasses.dataclass(frozen=True)
class Built(Exported):
    hardware: dict[str, Any] = dataclasses.field(default_factory=dict)


def check_request(library: str, options: EngineOptions) -> None:
    """Check that the library is installed and has the options.

    Raises:
        UnavailableError: If the library is not installed, or does not load.
        UsageError: If it does not have an option.
    """
    check_options(load_library(library, f"exporting to {library}"), library, options)


def build_engine(request: EngineRequest, folder: Path, file: str) -> Built:
    """Write an engine to `file` in `folder`.

    Raises:
        MissingDependencyError: If the library is not installed.
        DeviceError: If the library, or an option, needs a GPU for the build, and there is none.
        UsageError: If the library does not have an option.
        CheckFailedError: If the library refuses the graph, or fails to build it; the message names the log.
        OSError: If a file cannot be written.
    """
    trt = load_library(request.library, f"exporting to {request.library}")
    check_options(trt, request.library, request.options)
    _check_files(request)
    # The libraries hold a lock while they call the logger and the monitor. If Python releases an object there, such as
    # an older builder in a reference cycle or a traceback, it deadlocks (seen with TensorRT-RTX 1.7).
    collected = gc.isenabled()
    gc.disable()
    try:
        with interrupts_held() as came:
            return _build(trt, request, folder, file, came)
    except BaseException as exc:
        _let_go(exc)
        raise
    finally:
        if collected:
            gc.enable()


def _let_go(exc: BaseException | None) -> None:
    """Clear the frames of an exception and of its causes."""
    while exc is not None:
        traceback.clear_frames(exc.__traceback__)
        exc = exc.__cause__ or exc.__context__


def _check_files(request: EngineRequest) -> None:
    """Raise UsageError or OutputError unless the log and the timing cache can be written."""
    check_utf_8(request.library, request.onnx)
    for file, what in ((request.log, "the builder's log"), (request.timing_cache, "the timing cache")):
        check_writable(file)
        if file.is_symlink() or (file.exists() and not file.is_file()):
            raise OutputError(f"{file}, for {what}, is no file", where=file, hint="remove it, or name another")


def _build(trt: Any, request: EngineRequest, folder: Path, file: str, came: Sequence[int]) -> Built:
    name = request.library
    with request.log.open("w", encoding="utf-8") as log:
        logger = make_logger(trt, log)
        builder = make_builder(trt, name, logger)
        hardware = _hardware(trt, request)
        network = builder.create_network(network_flags(trt))
        parser = trt.OnnxParser(network, logger)
        _parse(trt, parser, network, request)
        config = builder.create_builder_config()
        configure(trt, config, request.options)
        _add_profiles(builder, config, request)
        caches = CAPABILITIES["timing_cache"].has(trt)
        if caches:
            _use_timing_cache(config, request)
        monitor = config.progress_monitor = make_monitor(trt, request.progress.advance, came)
        plan = builder.build_serialized_network(network, config)
        for problem in (monitor.error, logger.lost):
            if problem is not None:
                raise problem
        if plan is None:
            why = logger.errors[0] if logger.errors else "it does not say why"
            raise CheckFailedError(
                f"{name} {trt.__version__} does not build the engine: {shorten(why, 300)}",
                what="engine", where=request.log, found=why, hint=f"see {request.log}",
            )  # fmt: skip
    path = folder / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(plan)
    if caches:
        write_file(request.timing_cache, bytes(config.get_timing_cache().serialize()))
    return Built(
        files=(file,),
        inputs=request.inputs,
        outputs=request.outputs,
        options=_recorded(trt, request),
        tools={LIBRARIES[name].package: trt.__version__},
        hardware=hardware,
    )


def _hardware(trt: Any, request: EngineRequest) -> dict[str, Any]:
    """The target hardware of the engine; looks for a GPU if the library or an option needs one for the build."""
    options = request.options
    system: dict[str, Any] = {"platform": f"{platform.system()} {platform.machine()}"}
    if not compiles_on_target(trt):
        gpu = find_gpu()
        return system | {
            "gpu": gpu.name,
            "compute_capability": gpu.compute_capability,
            "driver": gpu.driver,
            "hardware_compatibility": options.hardware_compatibility,
        }
    if options.refit or options.strip_weights:  # without it, such an engine fails to build (TensorRT-RTX 1.7)
        try:
            find_gpu()
        except DeviceError as exc:
            raise DeviceError(
                f"{request.library} needs a GPU to build with refit or strip_weights: {exc}",
                what="refit" if options.refit else "strip_weights", hint="leave it out",
            ) from exc  # fmt: skip
    portable = _TARGETS_OF.get(Precision(request.precision), _TARGETS)
    return system | {"compute_capabilities": list(options.compute_capabilities) or [portable]}


def _parse(trt: Any, parser: Any, network: Any, request: EngineRequest) -> None:
    """Parse the graph; the library's objections are reported before a long build starts."""
    if not parser.parse_from_file(str(request.onnx)):
        error = parser.get_error(0)
        operator = error.node_operator() or "unknown"
        node = error.node_name() or f"number {error.node()}"
        avoid = _AVOIDED_BY.get(operator, _OTHERWISE)
        reason = shorten(error.desc(), 300)
        raise CheckFailedError(
            f"{request.library} {trt.__version__} refuses node {node} ({operator}) of {request.onnx.name}: {reason}",
            what=node, where=request.onnx, found=operator, hint=f"{avoid}; see {request.log}",
        )  # fmt: skip
    # TensorRT-RTX 1.7 parses it, and then refuses to build it, or crashes.
    fused = getattr(trt.LayerType, "ATTENTION_INPUT", None) if compiles_on_target(trt) else None
    layers = (network.get_layer(index) for index in range(network.num_layers))
    for layer in layers:
        if fused is not None and layer.type == fused:
            node = layer.name.removesuffix("_AttentionInput")
            raise CheckFailedError(
                f"{request.library} {trt.__version__} may have no kernel for node {node} (Attention) of "
                f"{request.onnx.name}",
                what=node, where=request.onnx, found="Attention", hint=_AVOIDED_BY["Attention"],
            )  # fmt: skip


def _add_profiles(builder: Any, config: Any, request: EngineRequest) -> None:
    for sizes in request.profiles:
        profile = builder.create_optimization_profile()
        for spec in request.inputs:
            shapes = [
                tuple(axis if isinstance(axis, int) else getattr(sizes[axis], bound) for axis in spec.shape)
                for bound in ("minimum", "optimum", "maximum")
            ]
            profile.set_shape(spec.name, *shapes)
        if config.add_optimization_profile(profile) < 0:
            given = ", ".join(f"{axis} {colons(limits)}" for axis, limits in sizes.items())
            raise CheckFailedError(
                f"{request.library} refuses the profile {given}", what="profile", found=given, hint=f"see {request.log}"
            )


def _use_timing_cache(config: Any, request: EngineRequest) -> None:
    content = b""
    with readable(request.timing_cache, "a timing cache"), contextlib.suppress(FileNotFoundError):
        content = read_regular(request.timing_cache, _MOST_TIMING_CACHE_BYTES)
    cache = config.create_timing_cache(content)
    if cache is not None and config.set_timing_cache(cache, ignore_mismatch=False):
        return
    if request.options.timing_cache is not None:
        raise CheckFailedError(
            f"{request.timing_cache} is no timing cache of this {request.library} on this GPU",
            what="timing_cache", where=request.timing_cache, hint="remove it",
        )  # fmt: skip
    config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)  # instead of another GPU's


def _recorded(trt: Any, request: EngineRequest) -> dict[str, Any]:
    """Effective options for the manifest: those that the library has, and the image sizes for each batch size."""
    values = request.options.to_dict()
    kept = {name: value for name, value in values.items() if name not in CAPABILITIES or CAPABILITIES[name].has(trt)}
    first = request.profiles[0]
    of_images = [profile for profile in request.profiles if profile[BATCH] == first[BATCH]]
    sizes = {name: [colons(profile[name]) for profile in of_images] for name in first if name != BATCH}
    return kept | sizes | {"strongly_typed": True}
