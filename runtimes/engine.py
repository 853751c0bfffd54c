"""Run an engine of TensorRT or TensorRT-RTX: what the two share. Neither torch nor ONNX is needed."""

from __future__ import annotations

import hashlib
import os
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

import numpy as np

from vitdeploy.atomic import write_file
from vitdeploy.errors import BundleError, DeviceError, UnavailableError, UsageError
from vitdeploy.gpu import find_gpu, find_gpus
from vitdeploy.runtimes.base import Runtime, check_options, cuda_index
from vitdeploy.runtimes.cuda_memory import close_all, use_device
from vitdeploy.runtimes.engine_fit import check_hardware, check_version, choose_profile
from vitdeploy.runtimes.engine_plan import ShapePlan
from vitdeploy.specs import TensorSpec
from vitdeploy.trt_library import LIBRARIES, make_builder, make_logger, make_runtime
from vitdeploy.user_cache import user_cache

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from typing_extensions import Self

    from vitdeploy.bundle import Bundle
    from vitdeploy.gpu import Gpu
    from vitdeploy.manifest import FileRecord
    from vitdeploy.runtimes.device_arrays import DeviceArray
    from vitdeploy.runtimes.engine_fit import ProfileShapes, Shapes

T = TypeVar("T")


class EngineRuntime(Runtime):
    """An engine on a GPU.

    Args:
        path: the engine. Loading one can run code: open only files that are verified.
        inputs: what it takes; an engine does not name its axes.
        outputs: what it gives.
        weights: the ONNX file of an engine that was written without weights.
        host_code: whether the engine brings a runtime of its own version, which may then run.
        device: "cuda" or "cuda:1".
        cuda_graphs: whether the work of each shape is recorded once and replayed.
        shapes_kept: how many shapes stay ready, with their memory, in the order of their last use.
        runtime_cache: for TensorRT-RTX: the file in which compiled kernels are kept, to open sooner; they can run code.

    Raises:
        DeviceError: the device cannot be had, or the library does not load the engine.
        UsageError: an option is not what it must be, or not the library's.
        BundleError: the engine does not take and give what is stated.
    """

    library: ClassVar[Any]
    _alignment = 256  # TensorRT's documentation of setTensorAddress

    def __init__(
        self,
        path: str | Path,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        weights: Path | None = None,
        host_code: bool = False,
        *,
        device: str = "cuda",
        cuda_graphs: bool = True,
        shapes_kept: int = 8,
        runtime_cache: str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__()
        if type(shapes_kept) is not int or shapes_kept < 1:
            raise UsageError(f"shapes_kept must be a whole number from 1 up, got {shapes_kept!r:.80}")
        has_cache = hasattr(self.library, "IRuntimeCache")
        if runtime_cache is not None and not has_cache:
            raise UsageError(f"{self.backend} {self.library.__version__} has no runtime_cache; leave it out")
        gpu = find_gpu(cuda_index(self.backend, device))
        self.inputs, self.outputs = inputs, outputs
        self._device = self.gpu = gpu.index
        self._cuda_graphs, self._shapes_kept = cuda_graphs, shapes_kept
        self._ready: list[tuple[Shapes, ShapePlan]] = []
        self._lock = threading.Lock()
        use_device(self._device)
        self._logger = make_logger(self.library)
        self._runtime = make_runtime(self.library, self.backend, self._logger)
        if host_code:
            self._runtime.engine_host_code_allowed = True
        self._engine = self._load(Path(path))
        if weights is not None:
            self._refit(weights)
        self._check_tensors(Path(path))
        self._profiles = [self._profile(index) for index in range(self._engine.num_optimization_profiles)]
        self._config = self._engine.create_runtime_config()
        self._captures = cuda_graphs and not hasattr(self._config, "cuda_graph_strategy")
        if cuda_graphs and not self._captures:  # the library records graphs itself
            self._config.cuda_graph_strategy = self.library.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        self._cache_file = None if runtime_cache is None else Path(runtime_cache)
        self._cache = self._open_cache() if has_cache else None
        self.details = {
            "engine": f"{LIBRARIES[self.backend].package} {self.library.__version__}",
            "device": f"cuda:{gpu.index} {gpu.name}",
            "compute_capability": gpu.compute_capability,
            "driver": gpu.driver,
            "profiles": len(self._profiles),
            "cuda_graphs": cuda_graphs,
            "shapes_kept": shapes_kept,
            "runtime_cache": None if self._cache_file is None else str(self._cache_file),
        }

    @classmethod
    def from_bundle(
        cls,
        bundle: Bundle,
        *,
        precision: str,
        device: str,
        runtime_cache: str | os.PathLike[str] | Literal[False] | None = None,
        **options: Any,
    ) -> Self:
        """Open the bundle's engine of that precision.

        Args:
            bundle: the bundle.
            precision: of the engine.
            device: "cuda" or "cuda:1".
            runtime_cache: see the constructor. By default a file for this engine, GPU and version in the user's cache,
                or `VITDEPLOY_CACHE`, where that can be written; False for none.
            options: of the constructor.

        Raises:
            UsageError: an option is not what it must be.
            UnavailableError: the engine was built for another system, version or GPU, or the GPU cannot be had.
            BundleError: a file was altered, or is missing.
        """
        check_options(cls, options)
        index = cuda_index(cls.backend, device)
        artifact = bundle.artifact(cls.backend, precision)
        (path,) = bundle.verified(artifact.files)
        check_version(bundle, artifact, LIBRARIES[cls.backend].package, cls.library.__version__)
        gpu = find_gpu(index)
        check_hardware(bundle, artifact, gpu)
        weights = None
        if artifact.options.get("strip_weights") is True:
            source = bundle.artifact("onnx", precision)
            if [file.sha256 for file in source.files] != artifact.options.get("onnx_sha256"):
                raise BundleError(
                    f"{path} must be given the weights of the ONNX artifact that it was built from, {bundle.path} has "
                    f"another; build it again: vitdeploy export --to {cls.backend} --precision {precision}"
                )
            weights, *_ = bundle.verified(source.files)
        host_code = artifact.options.get("version_compatible") is True
        if runtime_cache is None and hasattr(cls.library, "IRuntimeCache"):
            runtime_cache = _own_cache(cls.backend, artifact.files[0], cls.library.__version__, gpu)
        options["runtime_cache"] = None if runtime_cache is False else runtime_cache
        return cls(path, artifact.inputs, artifact.outputs, weights, host_code, device=device, **options)

    @classmethod
    def probe(cls) -> dict[str, str | None]:
        try:
            names = [f"cuda:{gpu.index}" for gpu in find_gpus()]
        except UnavailableError as exc:
            return {"cuda": str(exc)}
        return {name: cls._probed(name) for name in names}

    @classmethod
    def _probed(cls, device: str) -> str | None:
        """Build and run the smallest engine that there is."""
        spec = TensorSpec("x", "float32", (2, 2))
        try:
            use_device(int(device.partition(":")[2]))
            logger = make_logger(cls.library)
            builder = make_builder(cls.library, cls.backend, logger)
            network = builder.create_network(1 << int(cls.library.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
            x = network.add_input("x", cls.library.float32, (2, 2))
            y = network.add_unary(x, cls.library.UnaryOperation.NEG).get_output(0)
            y.name = "y"
            network.mark_output(y)
            plan = builder.build_serialized_network(network, builder.create_builder_config())
            if plan is None:
                return logger.errors[0] if logger.errors else "an engine of one layer was not built"
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder, "probe.engine")
                path.write_bytes(plan)
                with cls(path, (spec,), (TensorSpec("y", "float32", (2, 2)),), device=device) as runtime:
                    runtime.run({"x": np.ones((2, 2), np.float32)})
        except UnavailableError as exc:
            return str(exc)
        return None

    def _run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        use_device(self._device)
        shapes = {spec.name: feeds[spec.name].shape for spec in self.inputs}
        return self._with_plan(shapes, lambda plan: plan.run(feeds))

    def _run_device(self, arrays: Mapping[str, DeviceArray]) -> None:
        use_device(self._device)
        shapes = {spec.name: arrays[spec.name].shape for spec in self.inputs}
        self._with_plan(shapes, lambda plan: plan.run_device(arrays))

    def _with_plan(self, shapes: Shapes, work: Callable[[ShapePlan], T]) -> T:
        """What `work` gives with a plan for these shapes, which is kept if it succeeds."""
        plan = self._taken(shapes)
        try:
            result = work(plan)
        except BaseException:
            plan.close()
            raise
        self._put_back(shapes, plan)
        return result

    def _taken(self, shapes: Shapes) -> ShapePlan:
        """A plan for these shapes that no other thread has."""
        with self._lock:
            for index, (kept, _) in enumerate(self._ready):
                if kept == shapes:
                    return self._ready.pop(index)[1]
        profile = choose_profile(self._profiles, shapes)
        context = self._engine.create_execution_context(self._config)
        if context is None:
            raise DeviceError(f"{self.backend} must make room for a context on the GPU: {self._last_error()}")
        dtypes = {spec.name: np.dtype(spec.dtype) for spec in self.inputs}
        errors: Sequence[str] = self._logger.errors
        return ShapePlan(context, profile, shapes, self.outputs, dtypes, capture=self._captures, errors=errors)

    def _put_back(self, shapes: Shapes, plan: ShapePlan) -> None:
        with self._lock:
            self._ready.append((shapes, plan))
            too_many = [self._ready.pop(0)[1] for _ in range(len(self._ready) - self._shapes_kept)]
        close_all(*too_many)

    def _close(self) -> None:
        use_device(self._device)
        close_all(*(plan for _, plan in self._ready))
        self._ready.clear()
        if self._cache is not None and self._cache_file is not None:
            write_file(self._cache_file, bytes(self._cache.serialize()))
        del self._cache, self._config, self._engine, self._runtime

    def _load(self, path: Path) -> Any:
        content = path.read_bytes()
        if hasattr(self._runtime, "get_engine_validity"):
            validity, reasons = self._runtime.get_engine_validity(content[: self._runtime.engine_header_size])
            if validity == self.library.EngineValidity.INVALID:
                bits = self.library.EngineInvalidityDiagnostics.__members__.items()
                why = ", ".join(name for name, bit in bits if int(bit) & reasons) or self._last_error()
                raise DeviceError(f"{path} must be an engine for this GPU and library, is not: {why}; build it again")
        engine = self._runtime.deserialize_cuda_engine(content)
        if engine is None:
            raise DeviceError(f"{path} must load with {self.backend}: {self._last_error()}; build it again")
        return engine

    def _refit(self, weights: Path) -> None:
        refitter = self.library.Refitter(self._engine, self._logger)
        parser = self.library.OnnxParserRefitter(refitter, self._logger)
        if not parser.refit_from_file(str(weights)) or not refitter.refit_cuda_engine():
            raise DeviceError(f"the engine must take the weights of {weights}: {self._last_error()}; build it again")

    def _check_tensors(self, path: Path) -> None:
        engine, mode = self._engine, self.library.TensorIOMode
        for specs, kind in ((self.inputs, mode.INPUT), (self.outputs, mode.OUTPUT)):
            names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
            found = {
                name: (
                    np.dtype(self.library.nptype(engine.get_tensor_dtype(name))),
                    tuple(engine.get_tensor_shape(name)),
                )
                for name in names
                if engine.get_tensor_mode(name) == kind
            }
            want = {
                spec.name: (np.dtype(spec.dtype), tuple(axis if isinstance(axis, int) else -1 for axis in spec.shape))
                for spec in specs
            }
            if found != want:
                raise BundleError(
                    f"{path} must take and give what its manifest says, {want}, has {found}; build it again"
                )

    def _profile(self, index: int) -> ProfileShapes:
        shapes = {spec.name: self._engine.get_tensor_profile_shape(spec.name, index) for spec in self.inputs}
        return {name: (tuple(low), tuple(best), tuple(high)) for name, (low, best, high) in shapes.items()}

    def _open_cache(self) -> Any:
        cache = self._config.create_runtime_cache()
        file = self._cache_file
        if file is not None and file.exists() and not cache.deserialize(file.read_bytes()):
            raise DeviceError(
                f"{file} must be a runtime cache of {self.backend} {self.library.__version__}, is not: "
                f"{self._last_error()}; remove it"
            )
        self._config.set_runtime_cache(cache)
        return cache

    def _last_error(self) -> str:
        return self._logger.errors[-1] if self._logger.errors else "it does not say why"


def _own_cache(backend: str, file: FileRecord, version: str, gpu: Gpu) -> Path | None:
    """The file for an engine's compiled kernels in the user's cache; None where that cannot be written."""
    folder = user_cache() / backend
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    parts = file.sha256, version, gpu.name, gpu.compute_capability, gpu.driver
    name = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    return folder / name if os.access(folder, os.W_OK) else None
