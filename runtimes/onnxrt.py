"""Run an ONNX artifact with ONNX Runtime, without torch."""

from __future__ import annotations

import contextlib
import functools
import io
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import onnxruntime as ort

from vitdeploy.errors import BundleError, DeviceError, UsageError, VitDeployError, check_utf_8, first_line
from vitdeploy.files.opened import OpenedFile
from vitdeploy.runtimes.base import Runtime, check_options, parse_device
from vitdeploy.runtimes.engine.cuda_memory import wait_for
from vitdeploy.runtimes.shape_nodes import shape_nodes
from vitdeploy.specs import TensorSpec
from vitdeploy.system.cpu import MOST_THREADS, session_threads, usable_cpus
from vitdeploy.system.exhaustion import check_exhaustion
from vitdeploy.system.quiet import is_quiet, onnxruntime_severity

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from typing_extensions import Self

    from vitdeploy.bundle.bundle import Bundle
    from vitdeploy.runtimes.device_arrays import DeviceArray

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
# The patch projection is a ViT's one convolution: ONNX Runtime's own default times every algorithm anew for each shape.
# Its default of TF32 keeps 11 bits of the factors of float32 products, of which an fp32 artifact is to keep all.
_CUDA_DEFAULTS = {"cudnn_conv_algo_search": "HEURISTIC", "use_tf32": "0"}
_RECORD_PLACES = "session.record_ep_graph_assignment_info"
_KEEPS_RECORD = hasattr(ort.InferenceSession, "get_provider_graph_assignment_info")  # since 1.24
_INSTEAD = "export it with --opset 18, install a newer onnxruntime-gpu, or choose device cpu"
_GPU_PACKAGE = "pip install 'vitdeploy[onnxruntime-gpu]' in place of onnxruntime"
_NEEDED = {
    CUDA: f"{_GPU_PACKAGE}, and the CUDA and cuDNN that it was built for",
    TENSORRT: f"{_GPU_PACKAGE}, and the CUDA and TensorRT that it was built for (pip install 'vitdeploy[tensorrt]')",
}
_LEVELS = {
    "disabled": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(bool)": "bool",
    **{f"tensor({sign}int{bits})": f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}
_NAMED = 3  # nodes in a message


if is_quiet():
    ort.set_default_logger_severity(onnxruntime_severity())  # of messages that belong to no session


class OnnxRuntime(Runtime):
    """An ONNX Runtime session that runs on the providers asked for, or does not open.

    Args:
        path: the .onnx file; external data lies beside it.
        providers: execution providers, the preferred one first. A node that none of them takes is an error, unless the
            CPU provider is among them, or it computes shapes, which belong there.
        provider_options: options by provider name, as ONNX Runtime documents them.
        intra_op_threads: threads inside an operator. 0 is the default: `ORT_INTRA_OP_NUM_THREADS`, or else one thread a
            physical core that the process's CPU affinity and cgroup quota allow; see
            `vitdeploy.system.cpu.session_threads`. ONNX Runtime's own default counts the cores of the host, and pins
            its threads to them.
        inter_op_threads: operators that may run at a time, in graphs with parallel branches; with 0 and 1, one.
        allow_spinning: whether idle threads spin, which is faster alone and slower beside other work. By default they
            do unless there are more of them than a cgroup quota has CPUs: waiting is then paid with time to compute.
        prepack: whether weights are laid out anew for the processor when the file is opened, which is faster to run and
            takes longer, and more memory, to open.
        graph_optimization: "disabled", "basic", "extended" or "all".
        io_binding: whether to run through an IO binding, which copies each array once between the host and the
            device; by default where a provider is not the CPU's.
        log_severity: the least severe of ONNX Runtime's own messages: 0 verbose, 1 info, 2 warning, 3 error, 4 fatal;
            by default warnings, and in the command line's process fatal ones.

    Raises:
        DeviceError: a provider cannot be had.
        UsageError: an option is not what it must be.
        BundleError: the file cannot be loaded.
    """

    backend = "onnxruntime"
    shapes_on_cpu: ClassVar[bool] = True  # whether nodes that compute shapes may run there, unasked
    _fork_advice = ", or open it on the CPU with intra_op_threads=1"

    def __init__(
        self,
        path: str | Path | OpenedFile,
        *,
        providers: Sequence[str] = (CPU,),
        provider_options: Mapping[str, Mapping[str, Any]] | None = None,
        intra_op_threads: int = 0,
        inter_op_threads: int = 0,
        allow_spinning: bool | None = None,
        prepack: bool = True,
        graph_optimization: str = "all",
        io_binding: bool | None = None,
        log_severity: int | None = None,
    ) -> None:
        super().__init__()
        file = OpenedFile.of(path)
        path = file.path
        if graph_optimization not in _LEVELS:
            raise UsageError(f"graph_optimization must be one of {', '.join(_LEVELS)}, got {graph_optimization!r}")
        _check_range("intra_op_threads", intra_op_threads, MOST_THREADS)
        _check_range("inter_op_threads", inter_op_threads, MOST_THREADS)
        log_severity = onnxruntime_severity() if log_severity is None else log_severity
        _check_range("log_severity", log_severity, 4)
        if isinstance(providers, str):
            raise UsageError(f"providers must be a sequence of names, got the name {providers!r}")
        options = ort.SessionOptions()
        options.log_severity_level = log_severity
        threads = session_threads(intra_op_threads)
        self.threads = threads if CPU in providers else None
        options.intra_op_num_threads = threads.count
        if inter_op_threads > 1:  # ONNX Runtime ignores the number in its sequential mode
            options.inter_op_num_threads = inter_op_threads
            options.execution_mode = ort.ExecutionMode.ORT_PARALLEL
        options.graph_optimization_level = _LEVELS[graph_optimization]
        if allow_spinning is None:
            allow_spinning = usable_cpus().within_quota(threads.count)
        for pool in ("intra_op", "inter_op"):
            options.add_session_config_entry(f"session.{pool}.allow_spinning", str(int(allow_spinning)))
        options.add_session_config_entry("session.disable_prepacking", str(int(not prepack)))
        judged = CPU not in providers and self.shapes_on_cpu and _KEEPS_RECORD
        if judged:
            options.add_session_config_entry(_RECORD_PLACES, "1")
        elif CPU not in providers:
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        beside = (CPU,) if judged else ()  # onnxruntime would add it, and then warn of it
        self._session = _open_session(file, options, tuple(providers), provider_options or {}, beside)
        if judged and (left := _computing_on_cpu(self._session, Path(file.handle))):
            self.close()
            more = f" and {len(left) - _NAMED} more" if len(left) > _NAMED else ""
            raise DeviceError(
                f"{path} must run on {', '.join(providers)}, onnxruntime {ort.__version__} leaves to the CPU: "
                f"{', '.join(left[:_NAMED])}{more}; {_INSTEAD}"
            )
        if providers[0] in (CUDA, TENSORRT):
            self.gpu = int((provider_options or {}).get(providers[0], {}).get("device_id", 0))
        self._io_binding = any(name != CPU for name in providers) if io_binding is None else io_binding
        self.inputs = tuple(_tensor_spec(path, node) for node in self._session.get_inputs())
        self.outputs = tuple(_tensor_spec(path, node) for node in self._session.get_outputs())
        self.details = {
            "engine": f"onnxruntime {ort.__version__}",
            "providers": list(providers),
            "provider_options": {name: dict(values) for name, values in (provider_options or {}).items()},
            "intra_op_threads": threads.count,
            "threads_reason": threads.reason,
            "inter_op_threads": inter_op_threads,
            "allow_spinning": allow_spinning,
            "prepack": prepack,
            "graph_optimization": graph_optimization,
            "io_binding": self._io_binding,
        }

    @classmethod
    def from_bundle(cls, bundle: Bundle, *, precision: str, device: str, **options: Any) -> Self:
        check_options(cls, options)
        kind, index = parse_device(device)
        if "providers" in options:
            if kind != "cpu":
                raise UsageError(f"a session needs device or providers, got both: {device} and {options['providers']}")
        elif kind == "cuda":
            options |= provider_on_gpu(CUDA, index, options, _CUDA_DEFAULTS)
        with bundle.opened_artifact(bundle.artifact("onnx", precision)) as (model, *_):
            return cls(model, **options)

    @classmethod
    def probe(cls) -> dict[str, str | None]:
        return {name: cls._problem(name) for name in ort.get_available_providers()}

    @classmethod
    def _problem(cls, provider: str) -> str | None:
        """Why a provider does not run a model of one node; None where it does."""
        with resources.as_file(resources.files("vitdeploy.runtimes") / "probe.onnx") as path:
            try:
                with cls(path, providers=(provider,), log_severity=4) as runtime:
                    runtime.run({"x": np.ones((2, 2), np.float32)})
            except VitDeployError as exc:
                return str(exc)
        return None

    def _run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        names = [spec.name for spec in self.outputs]
        with self._errors():
            return dict(zip(names, self._values(names, feeds), strict=True))

    def _run_device(self, arrays: Mapping[str, DeviceArray]) -> None:
        if self.gpu is not None:
            wait_for(arrays.values(), self.gpu)
        place = ("cpu", 0) if self.gpu is None else ("cuda", self.gpu)
        binding = self._session.io_binding()
        for specs, bind in ((self.inputs, binding.bind_input), (self.outputs, binding.bind_output)):
            for spec in specs:
                array = arrays[spec.name]
                bind(spec.name, *place, array.dtype.type, array.shape, array.address)
        with self._errors():
            self._session.run_with_iobinding(binding)
            binding.synchronize_outputs()

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except _ENGINE_ERRORS as exc:
            raise DeviceError(
                f"onnxruntime must run the model on {', '.join(self.details['providers'])}: {first_line(exc)}"
            ) from exc

    def _values(self, names: list[str], feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        if not self._io_binding:
            return self._session.run(names, dict(feeds))  # type: ignore[no-any-return]
        binding = self._session.io_binding()  # one a call: a binding must not be shared between threads
        for name, array in feeds.items():
            binding.bind_cpu_input(name, np.ascontiguousarray(array))
        for name in names:
            binding.bind_output(name)
        self._session.run_with_iobinding(binding)
        return binding.copy_outputs_to_cpu()  # type: ignore[no-any-return]

    def _lost_in_fork(self) -> str | None:
        if self.details["providers"] != [CPU]:
            return f"{', '.join(self.details['providers'])} may have threads or a GPU that are not in this process"
        if self.details["intra_op_threads"] == 1 and self.details["inter_op_threads"] <= 1:
            return None  # the caller's thread does it all
        return "onnxruntime's threads are not in this process"

    def _close(self) -> None:
        del self._session


def provider_on_gpu(
    provider: str, index: int | None, options: Mapping[str, Any], defaults: Mapping[str, Any]
) -> dict[str, Any]:
    """The constructor's arguments for a provider on a GPU.

    Args:
        provider: its name.
        index: of the GPU; None for the first.
        options: of the runtime; the provider's own among them go before the defaults.
        defaults: options of the provider.

    Raises:
        UsageError: they name a GPU too.
    """
    given = dict(options.get("provider_options") or {})
    if index is not None and "device_id" in given.get(provider, {}):
        raise UsageError(f"a session needs a device index or a device_id, got both: cuda:{index} and {given}")
    return {
        "providers": (provider,),
        "provider_options": {**given, provider: {"device_id": index or 0, **defaults, **given.get(provider, {})}},
    }


def check_built(providers: Sequence[str]) -> None:
    """Raise DeviceError unless onnxruntime was built with every provider; load what NVIDIA's need."""
    if not {CUDA, TENSORRT}.isdisjoint(providers):
        _preload_libraries()  # first: some builds list a provider only when it was loaded
    available = ort.get_available_providers()
    for name in providers:
        if name not in available:
            built_with = f"{', '.join(available)}{_install((name,))}"
            raise DeviceError(f"provider {name} must be one that onnxruntime was built with: {built_with}")


def _install(providers: Iterable[str]) -> str:
    """What to install for those that need something, to end a message with."""
    return "".join(f"; {_NEEDED[name]}" for name in providers if name in _NEEDED)


def _open_session(
    file: OpenedFile,
    options: ort.SessionOptions,
    providers: tuple[str, ...],
    provider_options: Mapping[str, Mapping[str, Any]],
    beside: tuple[str, ...],
) -> ort.InferenceSession:
    path = file.path
    if not providers or len(set(providers)) != len(providers):
        raise UsageError(f"providers must be one or more different names, got {providers}")
    check_built(providers)
    for name in provider_options:
        if name not in providers:
            raise UsageError(f"provider_options must be of providers asked for, {', '.join(providers)}; got {name!r}")
    if provider_options.get(CPU):  # ONNX Runtime would ignore them
        raise UsageError(f"{CPU} takes no options, got {', '.join(provider_options[CPU])}")
    if not Path(file.handle).is_file():
        raise BundleError(f"{path} must be an ONNX file, but is no file")
    check_utf_8("onnxruntime", file.handle)
    requested = [
        (name, {key: str(value) for key, value in provider_options.get(name, {}).items()})
        for name in (*providers, *beside)
    ]
    try:
        session = ort.InferenceSession(file.handle, options, providers=requested, enable_fallback=False)
    except ort.capi.onnxruntime_pybind11_state.NotImplemented as exc:
        raise DeviceError(
            f"{path} must hold what {', '.join(providers)} of onnxruntime {ort.__version__} implements, does not: "
            f"{file.named(first_line(exc))}; choose another device or precision"
        ) from exc
    except _LOAD_ERRORS as exc:
        if providers == (CPU,) and not isinstance(exc, _MODEL_ERRORS):
            check_exhaustion(exc, f"loading {path}")
        if providers != (CPU,):
            instead = f"; {_INSTEAD}" if "CPU EP" in str(exc) else ""
            raise DeviceError(
                f"{path} must load on {', '.join(providers)}: {file.named(first_line(exc))}{instead}"
            ) from exc
        raise BundleError(
            f"{path} must be a model that onnxruntime {ort.__version__} loads: {file.named(first_line(exc))}"
        ) from exc
    session.disable_fallback()  # of runs that fail, to the CPU: old ones do not know the keyword above
    # ONNX Runtime drops a provider that it cannot start, and appends its own CPU provider.
    got = session.get_providers()
    if tuple(got[: len(providers)]) != providers:
        raise DeviceError(
            f"providers {', '.join(providers)} must all start, onnxruntime started {', '.join(got)}; "
            f"see its log above{_install(name for name in providers if name not in got)}"
        )
    return session


def _computing_on_cpu(session: ort.InferenceSession, path: Path) -> list[str]:
    """The nodes on the CPU that compute more than shapes: operator and name of each."""
    parts = session.get_provider_graph_assignment_info()
    on_cpu = [(node.name, node.op_type) for part in parts if part.ep_name == CPU for node in part.get_nodes()]
    shapes = shape_nodes(path) if on_cpu else set()
    return [f"{operator} {name!r}" for name, operator in on_cpu if (name, operator) not in shapes]


@functools.cache
def _preload_libraries() -> None:
    """Load CUDA and cuDNN from NVIDIA's Python packages, where onnxruntime alone does not look.

    It prints what it misses; that matters where the provider does not start, and is then told with what it needs.
    """
    preload = getattr(ort, "preload_dlls", None)  # since 1.21
    if preload is not None:
        with contextlib.redirect_stdout(io.StringIO()):
            preload()


def _ort_errors() -> tuple[type[Exception], ...]:
    """The exception types of onnxruntime's C++ core, which share no base class but Exception."""
    state = ort.capi.onnxruntime_pybind11_state
    names = ("EPFail", "EngineError", "Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NoModel",
             "NoSuchFile", "NotFound", "NotImplemented", "RuntimeException")  # fmt: skip
    return tuple(getattr(state, name) for name in names if hasattr(state, name))


# Those of them that quote a model.
_MODEL_ERRORS: tuple[type[Exception], ...] = (
    ort.capi.onnxruntime_pybind11_state.InvalidGraph,
    ort.capi.onnxruntime_pybind11_state.InvalidProtobuf,
)
_ENGINE_ERRORS: tuple[type[Exception], ...] = (RuntimeError, ValueError, *_ort_errors())
_LOAD_ERRORS: tuple[type[Exception], ...] = (MemoryError, *_ENGINE_ERRORS)


def _check_range(name: str, value: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= high:
        raise UsageError(f"{name} must be an integer from 0 to {high}, got {value!r}")


def _tensor_spec(path: str | Path, node: Any) -> TensorSpec:
    if node.type not in _DTYPES:
        raise BundleError(f"{path}: '{node.name}' must be of a type that numpy has, is {node.type}")
    return TensorSpec(node.name, _DTYPES[node.type], tuple(node.shape))
