"""Run an engine of TensorRT or TensorRT-RTX: what the two share. Neither torch nor ONNX is needed."""

from __future__ import annotations

import contextlib
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

import numpy as np

from vitdeploy.bundle.output_paths import check_outputs
from vitdeploy.errors import BundleError, DeviceError, OutputError, UnavailableError, UsageError, readable
from vitdeploy.runtimes.base import Runtime, check_options, cuda_index
from vitdeploy.runtimes.engine.cache import KernelCache, own_cache
from vitdeploy.runtimes.engine.compatibility import check_hardware, check_version, choose_profile
from vitdeploy.runtimes.engine.cuda_memory import close_all, on_device
from vitdeploy.runtimes.engine.load import check_tensors, last_of, load_engine, profiles_of, why_refused
from vitdeploy.runtimes.engine.plan import ShapePlan
from vitdeploy.specs import TensorSpec
from vitdeploy.trt.gpu import find_gpu, find_gpus
from vitdeploy.trt.library import (
    LIBRARIES,
    compiles_on_target,
    make_builder,
    make_logger,
    make_runtime,
    network_flags,
)

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from typing_extensions import Self

    from vitdeploy.bundle.bundle import Bundle
    from vitdeploy.runtimes.device_arrays import DeviceArray
    from vitdeploy.runtimes.engine.compatibility import Shapes

T = TypeVar("T")

KERNEL_SPECIALIZATIONS = ("eager", "lazy", "none")  # of TensorRT-RTX, the default first


class EngineRuntime(Runtime):
    """An engine on a GPU.

    Args:
        path: the engine. Loading one can run code: open only files that are verified.
        inputs: what it takes; an engine does not name its axes.
        outputs: what it gives.
        weights: the ONNX file of an engine that was written without weights.
        host_code: whether the engine brings a runtime of its own version, which may then run.
        takes_weights: whether it was built to be given other weights (`refit`).
        disposable_cache: as `runtime_cache`, but one that may be replaced, or left unwritten.
        content: the engine, where it was read already.
        device: "cuda" or "cuda:1".
        cuda_graphs: whether a shape's work is recorded and replayed: of TensorRT at its second run, of TensorRT-RTX
            as that library does.
        shapes_kept: how many shapes stay ready, with their memory, in the order of their last use.
        kernel_specialization: for TensorRT-RTX: whether kernels for the very sizes of a new shape are compiled at once
            ("eager", its default here), meanwhile ("lazy": slower ones run until then), or never ("none").
        runtime_cache: for TensorRT-RTX: the file in which compiled kernels are kept, to open sooner; they can run code.
            It is written when new ones were compiled, at most once in a minute, and when the runtime is closed.

    Raises:
        OtherHardwareError: the engine was built for another GPU.
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
        takes_weights: bool = False,
        disposable_cache: Path | None = None,
        content: bytes | None = None,
        *,
        device: str = "cuda",
        cuda_graphs: bool = True,
        shapes_kept: int = 8,
        kernel_specialization: str | None = None,
        runtime_cache: str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__()
        if type(shapes_kept) is not int or shapes_kept < 1:
            raise UsageError(f"shapes_kept must be a whole number from 1 up, got {shapes_kept!r:.80}")
        if kernel_specialization not in (None, *KERNEL_SPECIALIZATIONS):
            names = ", ".join(KERNEL_SPECIALIZATIONS)
            raise UsageError(f"kernel_specialization must be one of {names}, got {kernel_specialization!r:.80}")
        name, compiles = f"{self.backend} {self.library.__version__}", compiles_on_target(self.library)
        for option, value in (("runtime_cache", runtime_cache), ("kernel_specialization", kernel_specialization)):
            if value is not None and not compiles:
                raise UsageError(f"{name} has no {option}; leave it out")
        specialization = kernel_specialization or KERNEL_SPECIALIZATIONS[0] if compiles else None
        gpu = find_gpu(cuda_index(self.backend, device))
        self.inputs, self.outputs = inputs, outputs
        self._device = self.gpu = gpu.index
        self._shapes_kept, self._takes_weights = shapes_kept, takes_weights
        self._ready: list[tuple[Shapes, ShapePlan]] = []
        self._logger = make_logger(self.library)
        self._cache: KernelCache | None = None
        self._unsaved = False
        with on_device(self._device):
            self._open(Path(path), content, weights, host_code)
            self._configure(cuda_graphs, specialization)
            if compiles:
                file = disposable_cache if runtime_cache is None else Path(runtime_cache)
                self._cache = KernelCache(
                    self._config, file, disposable=runtime_cache is None, made_by=name, errors=self._logger.errors
                )
        cache_file = None if self._cache is None else self._cache.file
        self.details = {
            "engine": f"{LIBRARIES[self.backend].package} {self.library.__version__}",
            "device": f"cuda:{gpu.index} {gpu.name}",
            "compute_capability": gpu.compute_capability,
            "driver": gpu.driver,
            "profiles": len(self._profiles),
            "cuda_graphs": cuda_graphs,
            "shapes_kept": shapes_kept,
            "kernel_specialization": specialization,
            "runtime_cache": None if cache_file is None else str(cache_file),
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
        (record,) = artifact.files
        path, content = bundle.path / record.path, bundle.read(record)  # it can run code: read once
        check_version(bundle, artifact, LIBRARIES[cls.backend].package, cls.library.__version__)
        gpu = find_gpu(index)
        check_hardware(bundle, artifact, gpu)
        source = None
        if artifact.options.get("strip_weights") is True:
            source = bundle.artifact("onnx", precision)
            if [file.sha256 for file in source.files] != artifact.options.get("onnx_sha256"):
                raise BundleError(
                    f"{path} must be given the weights of the ONNX artifact that it was built from, {bundle.path} has "
                    f"another; build it again: vitdeploy export --to {cls.backend} --precision {precision}"
                )
        host_code = artifact.options.get("version_compatible") is True
        takes_weights = artifact.options.get("refit") is True
        kept = None
        check_outputs({"runtime_cache": runtime_cache}, {}, bundle=bundle.path)
        if runtime_cache is None and compiles_on_target(cls.library):
            kept = own_cache(cls.backend, record, cls.library.__version__, gpu)
        options["runtime_cache"] = None if runtime_cache is False else runtime_cache
        specs = artifact.inputs, artifact.outputs
        with contextlib.ExitStack() as stack:
            weights = None
            if source is not None:
                weights = stack.enter_context(bundle.opened_artifact(source, by_name=True))[0].path
            return cls(path, *specs, weights, host_code, takes_weights, kept, content, device=device, **options)

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
            with on_device(int(device.partition(":")[2])):
                logger = make_logger(cls.library)
                builder = make_builder(cls.library, cls.backend, logger)
                network = builder.create_network(network_flags(cls.library))
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

    def refit(self, onnx: str | os.PathLike[str]) -> None:
        """Give the engine the weights of another ONNX file of the same graph, when the runs in progress are done.

        Args:
            onnx: the file; its weights have the names, shapes and types of the one that the engine was built from.

        Raises:
            UsageError: the engine was not built with `--refit`, or does not take these weights, and has those before;
                or the runtime is closed.
            InputError: the file cannot be read.
            DeviceError: the library failed in between; the runtime is closed.
        """
        path = Path(onnx)
        with readable(path, "an ONNX file"):
            path.open("rb").close()
        with self._alone(), on_device(self._device):
            if not (self._takes_weights and self._engine.refittable):
                raise UsageError(
                    f"an engine must be built with --refit to take the weights of {path}, this one was not"
                )
            refitter = self.library.Refitter(self._engine, self._logger)
            refused = why_refused(self.library, refitter, path, self._logger)
            if refused is not None:
                raise UsageError(f"{path} must have the weights of the engine's graph: {refused}; give another")
            self._drop_ready()
            if not refitter.refit_cuda_engine():  # which leaves some of the new weights in it
                self._closed = True
                self._close()
                raise DeviceError(f"the engine must take the weights of {path}: {self._last_error()}; open it again")
            self.details["weights"] = str(path)

    def _make_locks(self) -> None:
        super()._make_locks()
        self._lock = threading.Lock()
        self._gate = threading.Lock()

    def _lost_in_fork(self) -> str:
        return "CUDA does not work in a forked process"

    @contextlib.contextmanager
    def _in_use(self) -> Iterator[None]:
        with self._gate:
            pass  # who wants to be alone is before us
        with super()._in_use():
            yield
        cache = self._cache  # which another thread may close
        if cache is not None and self._unsaved and cache.is_due():
            self._save()

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold off new runs in this block, which begins when those in progress are done.

        Raises:
            UsageError: the runtime is closed.
        """
        with self._gate, self._idle:
            self._idle.wait_for(lambda: self._running == 0)
            with super()._in_use():
                yield

    def _save(self) -> None:
        """Keep what was compiled, for a process that is killed before it closes the runtime.

        Alone, as a run that compiles writes to what is read here.
        """
        with contextlib.suppress(UsageError, OutputError), self._alone():  # closing saves as well, and tells
            if self._cache is not None and self._unsaved:
                self._unsaved = False
                self._cache.save()

    def _run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        shapes = {spec.name: feeds[spec.name].shape for spec in self.inputs}
        with on_device(self._device):
            return self._with_plan(shapes, lambda plan: plan.run(feeds))

    def _run_device(self, arrays: Mapping[str, DeviceArray]) -> None:
        shapes = {spec.name: arrays[spec.name].shape for spec in self.inputs}
        with on_device(self._device):
            self._with_plan(shapes, lambda plan: plan.run_device(arrays))

    def _with_plan(self, shapes: Shapes, work: Callable[[ShapePlan], T]) -> T:
        """What `work` gives with a plan for these shapes, which is kept unless it fails."""
        plan = self._taken(shapes)
        if plan is None:
            plan = self._made(shapes)
            self._unsaved = True
        try:
            result = work(plan)
        except UsageError:  # of the caller: the plan is as it was
            self._put_back(shapes, plan)
            raise
        except BaseException:
            plan.close()
            raise
        self._put_back(shapes, plan)
        return result

    def _taken(self, shapes: Shapes) -> ShapePlan | None:
        """A plan that is ready for these shapes, and that no other thread has from here on."""
        with self._lock:
            for index, (kept, _) in enumerate(self._ready):
                if kept == shapes:
                    return self._ready.pop(index)[1]
        return None

    def _made(self, shapes: Shapes) -> ShapePlan:
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

    def _drop_ready(self) -> None:
        plans = [plan for _, plan in self._ready]
        self._ready.clear()
        close_all(*plans)

    def _close(self) -> None:
        with on_device(self._device):
            cache = self._cache
            self._cache = None
            try:
                self._drop_ready()
                if cache is not None:
                    cache.save()
            finally:
                del cache, self._config, self._engine, self._runtime

    def _open(self, path: Path, content: bytes | None, weights: Path | None, host_code: bool) -> None:
        self._runtime = make_runtime(self.library, self.backend, self._logger)
        if host_code:
            self._runtime.engine_host_code_allowed = True
        self._engine = load_engine(
            self.library,
            self._runtime,
            path.read_bytes() if content is None else content,
            path,
            self.backend,
            self._logger.errors,
        )
        if weights is not None:
            refitter = self.library.Refitter(self._engine, self._logger)
            refused = why_refused(self.library, refitter, weights, self._logger)
            if refused is not None or not refitter.refit_cuda_engine():
                raise DeviceError(
                    f"the engine must take the weights of {weights}: {refused or self._last_error()}; build it again"
                )
        check_tensors(self.library, self._engine, path, self.inputs, self.outputs)
        self._profiles = profiles_of(self._engine, self.inputs)

    def _configure(self, cuda_graphs: bool, specialization: str | None) -> None:
        self._config = self._engine.create_runtime_config()
        # A context with memory of its own has as much as the largest shape of all profiles needs.
        self._config.set_execution_context_allocation_strategy(
            self.library.ExecutionContextAllocationStrategy.USER_MANAGED
        )
        self._captures = cuda_graphs and not hasattr(self._config, "cuda_graph_strategy")
        if cuda_graphs and not self._captures:  # the library records graphs itself
            self._config.cuda_graph_strategy = self.library.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        if specialization is not None:
            strategies = self.library.DynamicShapesKernelSpecializationStrategy
            self._config.dynamic_shapes_kernel_specialization_strategy = getattr(strategies, specialization.upper())

    def _last_error(self) -> str:
        return last_of(self._logger.errors)
