"""Run a TensorRT or TensorRT-RTX engine; common base class. Needs neither torch nor ONNX."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np

from vitdeploy.bundle.output_paths import check_outputs
from vitdeploy.errors import DeviceError, OutputError, UnavailableError, UsageError, readable
from vitdeploy.runtimes.base import Runtime
from vitdeploy.runtimes.engine.cache import KernelCache
from vitdeploy.runtimes.engine.compatibility import Shapes, choose_profile
from vitdeploy.runtimes.engine.cuda_memory import on_device
from vitdeploy.runtimes.engine.file import EngineFile, opened_engine
from vitdeploy.runtimes.engine.load import make_config, open_engine, profiles_of, why_refused
from vitdeploy.runtimes.engine.options import KERNEL_SPECIALIZATIONS, EngineRuntimeOptions
from vitdeploy.runtimes.engine.plan import ReadyPlans, ShapePlan
from vitdeploy.runtimes.engine.probe import X, Y, smallest_engine
from vitdeploy.runtimes.options import cuda_index
from vitdeploy.trt.gpu import find_gpu, find_gpus
from vitdeploy.trt.library import LIBRARIES, compiles_on_target, last_of, make_logger

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from typing_extensions import Self

    from vitdeploy.bundle.bundle import Bundle
    from vitdeploy.runtimes.device_arrays import DeviceArray

T = TypeVar("T")
DEFAULTS = EngineRuntimeOptions()


class EngineRuntime(Runtime):
    """An engine on a GPU.

    Args:
        engine: The engine. Loading one can run code: open only verified files.
        device: "cuda" or "cuda:1".

    Raises:
        OtherHardwareError: If the engine was built for another GPU.
        DeviceError: If the device is not available, or the library does not load the engine.
        UsageError: If the library does not have an option.
        BundleError: If the engine's tensors differ from the specification.
    """

    library: ClassVar[Any]
    options_type = EngineRuntimeOptions
    _alignment = 256  # TensorRT's documentation of setTensorAddress

    def __init__(self, engine: EngineFile, options: EngineRuntimeOptions = DEFAULTS, *, device: str = "cuda") -> None:
        self._plans = ReadyPlans(options.shapes_kept)
        super().__init__()
        name, compiles = f"{self.backend} {self.library.__version__}", compiles_on_target(self.library)
        for option in ("runtime_cache", "kernel_specialization"):
            value = getattr(options, option)
            if value not in (None, False) and not compiles:
                raise UsageError(f"{name} has no {option}", what=option, found=value, hint="leave it out")
        specialization = options.kernel_specialization or KERNEL_SPECIALIZATIONS[0] if compiles else None
        gpu = find_gpu(cuda_index(self.backend, device))
        self.inputs, self.outputs = engine.inputs, engine.outputs
        self._device = self.gpu = gpu.index
        self._takes_weights = engine.takes_weights
        self._logger = make_logger(self.library)
        self._cache: KernelCache | None = None
        self._unsaved = False
        with on_device(self._device):
            self._runtime, self._engine = open_engine(self.library, self.backend, engine, self._logger)
            self._profiles = profiles_of(self._engine, self.inputs)
            self._config, self._captures = make_config(
                self.library, self._engine, cuda_graphs=options.cuda_graphs, specialization=specialization
            )
            if compiles:
                cache = options.runtime_cache
                file = engine.cache if cache is None else Path(cache) if cache is not False else None
                disposable = cache is None or cache is False
                self._cache = KernelCache(
                    self._config, file, disposable=disposable, made_by=name, errors=self._logger.errors
                )
        cache_file = None if self._cache is None else self._cache.file
        self.details = {
            "engine": f"{LIBRARIES[self.backend].package} {self.library.__version__}",
            "device": f"cuda:{gpu.index} {gpu.name}",
            "compute_capability": gpu.compute_capability,
            "driver": gpu.driver,
            "profiles": len(self._profiles),
            "cuda_graphs": options.cuda_graphs,
            "shapes_kept": options.shapes_kept,
            "kernel_specialization": specialization,
            "runtime_cache": None if cache_file is None else str(cache_file),
        }

    @classmethod
    def from_bundle(cls, bundle: Bundle, options: EngineRuntimeOptions, *, precision: str, device: str) -> Self:
        """Open the bundle's engine of that precision.

        Raises:
            UsageError: If an option is invalid, or unknown to the library.
            UnavailableError: If the engine was built for another system, version or GPU, or the GPU is not available.
            BundleError: If a file was altered, or is missing.
        """
        index = cuda_index(cls.backend, device)
        check_outputs({"runtime_cache": options.runtime_cache}, {}, bundle=bundle.path)
        with opened_engine(bundle, cls.backend, precision, cls.library, index) as engine:
            return cls(engine, options, device=device)

    @classmethod
    def probe(cls) -> dict[str, str | None]:
        try:
            return {f"cuda:{gpu.index}": cls._problem(gpu.index) for gpu in find_gpus()}
        except UnavailableError as exc:
            return {"cuda": str(exc)}

    @classmethod
    def builds_here(cls) -> bool:
        try:
            smallest_engine(cls.library, cls.backend)
        except UnavailableError:
            return False
        return True

    @classmethod
    def _problem(cls, index: int) -> str | None:
        """Reason why an engine does not run on a GPU; None if it runs."""
        try:
            with on_device(index):
                content = smallest_engine(cls.library, cls.backend)
            with cls(EngineFile(Path("probe.engine"), (X,), (Y,), content), device=f"cuda:{index}") as runtime:
                runtime.run({X.name: np.ones((2, 2), np.float32)})
        except UnavailableError as exc:
            return str(exc)
        return None

    def refit(self, onnx: str | os.PathLike[str]) -> None:
        """Refit the engine with the weights of another ONNX file of the same graph, after the runs in progress.

        Args:
            onnx: The file; weights must have the names, shapes and types of the engine's source.

        Raises:
            UsageError: If the engine was not built with `--refit`, or refuses these weights and keeps the old ones; or
                if the runtime is closed.
            InputError: If the file cannot be read.
            DeviceError: If the library failed midway; the runtime is then closed.
        """
        path = Path(onnx)
        with readable(path, "an ONNX file"):
            path.open("rb").close()
        with self._alone(), on_device(self._device):
            if not (self._takes_weights and self._engine.refittable):
                raise UsageError(
                    f"this engine was not built to take the weights of {path}",
                    what="refit", where=path, expected=True, found=False, hint="build it with --refit",
                )  # fmt: skip
            refitter = self.library.Refitter(self._engine, self._logger)
            refused = why_refused(self.library, refitter, path, self._logger)
            if refused is not None:
                raise UsageError(
                    f"{path} does not have the weights of the engine's graph: {refused}",
                    what="weights", where=path, found=refused, hint="give another",
                )  # fmt: skip
            self._plans.close()
            if not refitter.refit_cuda_engine():  # some of the new weights stay in the engine
                self._closed = True
                self._close()
                raise DeviceError(
                    f"{self.backend} failed to load the weights of {path}: {self._last_error()}",
                    what="weights", where=path, found=self._last_error(), hint="open the engine again",
                )  # fmt: skip
            self.details["weights"] = str(path)

    def _make_locks(self) -> None:
        super()._make_locks()
        self._gate = threading.Lock()
        self._plans.unlock()

    def _lost_in_fork(self) -> str:
        return "CUDA does not work in a forked process"

    @contextlib.contextmanager
    def _in_use(self) -> Iterator[None]:
        with self._gate:
            pass  # a thread that wants exclusive access goes first
        with super()._in_use():
            yield
        cache = self._cache  # another thread may have closed it
        if cache is not None and self._unsaved and cache.is_due():
            self._save()

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Block new runs during this block, which begins after the runs in progress.

        Raises:
            UsageError: If the runtime is closed.
        """
        with self._gate, self._idle:
            self._idle.wait_for(lambda: not self._running)
            with super()._in_use():
                yield

    def _save(self) -> None:
        """Save compiled kernels, in case the process is killed before it closes the runtime.

        Exclusive, because a compiling run writes to the cache that is read here.
        """
        with contextlib.suppress(UsageError, OutputError), self._alone():  # closing saves as well, and reports errors
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
        """The result of `work` with a plan for these shapes; the plan is stored unless the work fails."""
        plan = self._plans.take(shapes)
        if plan is None:
            plan = self._make_plan(shapes)
            self._unsaved = True
        try:
            result = work(plan)
        except UsageError:  # the caller's error: the plan is unchanged
            self._plans.put_back(shapes, plan)
            raise
        except BaseException:
            plan.close()
            raise
        self._plans.put_back(shapes, plan)
        return result

    def _make_plan(self, shapes: Shapes) -> ShapePlan:
        profile = choose_profile(self._profiles, shapes)
        context = self._engine.create_execution_context(self._config)
        if context is None:
            raise DeviceError(
                f"{self.backend} cannot make a context on the GPU: {self._last_error()}",
                what="memory", found=self._last_error(),
            )  # fmt: skip
        dtypes = {spec.name: np.dtype(spec.dtype) for spec in self.inputs}
        errors: Sequence[str] = self._logger.errors
        return ShapePlan(context, profile, shapes, self.outputs, dtypes, capture=self._captures, errors=errors)

    def _close(self) -> None:
        with on_device(self._device):
            cache = self._cache
            self._cache = None
            try:
                self._plans.close()
                if cache is not None:
                    cache.save()
            finally:
                del cache, self._config, self._engine, self._runtime

    def _last_error(self) -> str:
        return last_of(self._logger.errors)
