"""Run an ONNX artifact with ONNX Runtime, without torch."""

from __future__ import annotations

import contextlib
import dataclasses
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import onnxruntime as ort

from vitdeploy.errors import BundleError, DeviceError, UsageError, VitDeployError, first_line
from vitdeploy.files.opened import OpenedFile
from vitdeploy.runtimes.base import Runtime
from vitdeploy.runtimes.engine.cuda_memory import wait_for
from vitdeploy.runtimes.onnxrt.options import DEFAULTS, OnnxRuntimeOptions, run_options, session_options
from vitdeploy.runtimes.onnxrt.parallel import ParallelRuns, check_batches, device_images, images, run_threads
from vitdeploy.runtimes.onnxrt.session import CPU, CUDA, ENGINE_ERRORS, INSTEAD_OF_CPU, TENSORRT, open_session
from vitdeploy.runtimes.onnxrt.shape_nodes import shape_nodes
from vitdeploy.runtimes.onnxrt.turns import Turns
from vitdeploy.runtimes.options import parse_device
from vitdeploy.specs import TensorSpec
from vitdeploy.system.cpu import ThreadCount, session_threads, usable_cpus

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from typing_extensions import Self

    from vitdeploy.bundle.bundle import Bundle
    from vitdeploy.runtimes.device_arrays import DeviceArray
    from vitdeploy.runtimes.options import RuntimeOptions

# The patch projection is a ViT's only convolution: by default, ONNX Runtime times every algorithm again for each shape.
# With its default of TF32, float32 products keep 11 bits of their factors; an fp32 artifact must keep all.
_CUDA_DEFAULTS = {"cudnn_conv_algo_search": "HEURISTIC", "use_tf32": "0"}
_RECORD_PLACES = "session.record_ep_graph_assignment_info"
_KEEPS_RECORD = hasattr(ort.InferenceSession, "get_provider_graph_assignment_info")  # since 1.24
_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(bool)": "bool",
    **{f"tensor({sign}int{bits})": f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}
_RUNS_A_CPU = 2  # at a time: with one, a CPU idles while the next caller wakes up (docs/decisions.md)
_NAMED = 3  # nodes in a message


class OnnxRuntime(Runtime):
    """An ONNX Runtime session that runs on the requested providers, or does not open.

    Args:
        path: The .onnx file, with external data beside it.

    Raises:
        DeviceError: If a provider is not available.
        BundleError: If the file cannot be loaded.
    """

    backend = "onnxruntime"
    options_type: ClassVar[type[RuntimeOptions]] = OnnxRuntimeOptions
    shapes_on_cpu: ClassVar[bool] = True  # True if nodes that compute shapes may run there by default
    _limit: int | None = None  # runs at a time
    _fork_advice = ", or open it on the CPU with intra_op_threads=1"

    def __init__(self, path: str | Path | OpenedFile, options: OnnxRuntimeOptions = DEFAULTS) -> None:
        super().__init__()
        if options.providers is None:
            options = dataclasses.replace(options, providers=(CPU,))
        file, providers = OpenedFile.of(path), tuple(options.providers or ())
        provider_options = {name: dict(values) for name, values in (options.provider_options or {}).items()}
        self._parallel: ParallelRuns | None = None
        runs, self._run_options = run_threads(options), run_options(options)
        threads = session_threads(options.intra_op_threads) if runs is None else ThreadCount(1, "one a run")
        spinning = options.allow_spinning
        if spinning is None:
            spinning = usable_cpus().within_quota(threads.count)
        judged = CPU not in providers and self.shapes_on_cpu and _KEEPS_RECORD
        session = session_options(options, threads.count, spinning)
        if judged:
            session.add_session_config_entry(_RECORD_PLACES, "1")
        elif CPU not in providers:
            session.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        beside = (CPU,) if judged else ()  # onnxruntime would add it, with a warning
        self._session = open_session(file, session, providers, provider_options, beside)
        if judged and (left := _computing_on_cpu(self._session, Path(file.handle))):
            self.close()
            more = f" and {len(left) - _NAMED} more" if len(left) > _NAMED else ""
            raise DeviceError(
                f"onnxruntime {ort.__version__} leaves nodes of {file.path} to the CPU instead of "
                f"{', '.join(providers)}: {', '.join(left[:_NAMED])}{more}",
                what="providers", where=file.path, expected=providers, found=left, hint=INSTEAD_OF_CPU,
            )  # fmt: skip
        self.threads = (runs or threads) if CPU in providers else None
        if providers[0] in (CUDA, TENSORRT):
            self.gpu = int(provider_options.get(providers[0], {}).get("device_id", 0))
        self._io_binding = providers != (CPU,) if options.io_binding is None else options.io_binding
        self.inputs = tuple(_tensor_spec(file.path, node) for node in self._session.get_inputs())
        self.outputs = tuple(_tensor_spec(file.path, node) for node in self._session.get_outputs())
        if runs is not None:
            check_batches((*self.inputs, *self.outputs))
            self._parallel = ParallelRuns(runs.count)
        if options.concurrent_runs or providers == (CPU,):
            usual = max(_RUNS_A_CPU * usable_cpus().workers, 1 if runs is None else runs.count)
            self._limit = options.concurrent_runs or usual
            self._turns = Turns(self._limit)
        self.details = {
            "engine": f"onnxruntime {ort.__version__}",
            "providers": list(providers),
            "provider_options": provider_options,
            "intra_op_threads": threads.count,
            "threads_reason": (runs or threads).reason,
            "parallel_runs": 1 if runs is None else runs.count,
            "concurrent_runs": self._limit,
            "inter_op_threads": options.inter_op_threads,
            "allow_spinning": spinning,
            "prepack": options.prepack,
            "shrink_memory": options.shrink_memory,
            "graph_optimization": options.graph_optimization,
            "io_binding": self._io_binding,
        }

    @classmethod
    def from_bundle(cls, bundle: Bundle, options: OnnxRuntimeOptions, *, precision: str, device: str) -> Self:
        kind, index = parse_device(device)
        if kind == "cuda":
            if options.providers is not None:
                raise UsageError(
                    f"device {device} and providers {', '.join(options.providers)} exclude each other",
                    what="providers", found=options.providers, hint="leave one of them out",
                )  # fmt: skip
            options = options.on_gpu(CUDA, index, _CUDA_DEFAULTS)
        with bundle.opened_artifact(bundle.artifact("onnx", precision)) as (model, *_):
            return cls(model, options)

    @classmethod
    def probe(cls) -> dict[str, str | None]:
        return {name: cls._problem(name) for name in ort.get_available_providers()}

    @classmethod
    def _problem(cls, provider: str) -> str | None:
        """Reason why a provider does not run a one-node model; None if it runs."""
        with resources.as_file(resources.files("vitdeploy.runtimes") / "probe.onnx") as path:
            try:
                with cls(path, OnnxRuntimeOptions(providers=(provider,), log_severity=4)) as runtime:
                    runtime.run({"x": np.ones((2, 2), np.float32)})
            except VitDeployError as exc:
                return str(exc)
        return None

    def _run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        if self._parallel is None or len(parts := images(feeds)) == 1:
            return self._run_once(feeds)
        results = self._parallel.map(self._run_once, parts)
        return {name: np.concatenate([result[name] for result in results]) for name in results[0]}

    def _run_once(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        names = [spec.name for spec in self.outputs]
        with self._turns.turn(), self._errors():
            if not self._io_binding:
                return dict(zip(names, self._session.run(names, dict(feeds), self._run_options), strict=True))
            binding = self._session.io_binding()  # one per call: threads must not share a binding
            for name, array in feeds.items():
                binding.bind_cpu_input(name, np.ascontiguousarray(array))
            for name in names:
                binding.bind_output(name)
            self._session.run_with_iobinding(binding, self._run_options)
            return dict(zip(names, binding.copy_outputs_to_cpu(), strict=True))

    def _run_device(self, arrays: Mapping[str, DeviceArray]) -> None:
        if self._parallel is None or len(parts := device_images(arrays)) == 1:
            self._run_device_once(arrays)
        else:
            self._parallel.map(self._run_device_once, parts)

    def _run_device_once(self, arrays: Mapping[str, DeviceArray]) -> None:
        if self.gpu is not None:
            wait_for(arrays.values(), self.gpu)
        place = ("cpu", 0) if self.gpu is None else ("cuda", self.gpu)
        binding = self._session.io_binding()
        for specs, bind in ((self.inputs, binding.bind_input), (self.outputs, binding.bind_output)):
            for spec in specs:
                array = arrays[spec.name]
                bind(spec.name, *place, array.dtype.type, array.shape, array.address)
        with self._turns.turn(), self._errors():
            self._session.run_with_iobinding(binding, self._run_options)
            binding.synchronize_outputs()

    def _make_locks(self) -> None:
        super()._make_locks()
        self._turns = Turns(self._limit)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except ENGINE_ERRORS as exc:
            names, reason = ", ".join(self.details["providers"]), first_line(exc)
            raise DeviceError(
                f"onnxruntime failed to run the model on {names}: {reason}", what="onnxruntime", found=reason
            ) from exc

    def _lost_in_fork(self) -> str | None:
        if self.details["providers"] != [CPU]:
            return f"{', '.join(self.details['providers'])} may have threads or a GPU that are not in this process"
        if self._parallel is not None:
            return "the threads of its parallel runs are not in this process"
        if self.details["intra_op_threads"] == 1 and self.details["inter_op_threads"] <= 1:
            return None  # the caller's thread does all the work
        return "onnxruntime's threads are not in this process"

    def _close(self) -> None:
        if self._parallel is not None:
            self._parallel.close()
        del self._session


def _computing_on_cpu(session: ort.InferenceSession, path: Path) -> list[str]:
    """Nodes on the CPU that compute more than shapes: operator and name of each."""
    parts = session.get_provider_graph_assignment_info()
    on_cpu = [(node.name, node.op_type) for part in parts if part.ep_name == CPU for node in part.get_nodes()]
    shapes = shape_nodes(path) if on_cpu else set()
    return [f"{operator} {name!r}" for name, operator in on_cpu if (name, operator) not in shapes]


def _tensor_spec(path: Path, node: Any) -> TensorSpec:
    if node.type not in _DTYPES:
        raise BundleError(
            f"{path}: '{node.name}' has type {node.type}, which numpy lacks",
            what=node.name,
            where=path,
            found=node.type,
        )
    return TensorSpec(node.name, _DTYPES[node.type], tuple(node.shape))
